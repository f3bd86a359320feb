"""The program, as ``ipmasq-agent`` or ``python -m ipmasq_agent``: from here on it can be stopped.

What a verb needs takes some hundred milliseconds to import, and a Ctrl-C meanwhile would be a
traceback from wherever it came. What was before is Python's own start.
"""

import os


def leave_at_once(*_: object) -> None:
    """Say that we were interrupted, and go: nothing was begun that would have to be undone."""
    os.write(2, b"interrupted\n")
    os._exit(130)


try:
    import signal

    # It is SIG_IGN where a shell started us in the background, and stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave_at_once)
    from ipmasq_agent.cli import main
except KeyboardInterrupt:
    leave_at_once()


def plugin() -> None:
    """Be ``kubectl ipmasq``."""
    from ipmasq_agent.cli.fleet import main as program

    program()


if __name__ == "__main__":
    main()
