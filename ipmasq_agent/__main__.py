"""``python -m ipmasq_agent`` is the command line."""

from ipmasq_agent.cli import main

if __name__ == "__main__":
    main()
