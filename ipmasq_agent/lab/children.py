"""What we start, and what has to end with us however we end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

# The signal is lost on who asks for it when we have died already; then another process has
# become the parent, whose number the shell has taken before it reads this line.
_IF_NOT_TOO_LATE = '[ "$PPID" = "$0" ] && exec "$@"'
# What we leave may still be written to for a moment by who dies with us.
_REMOVE = """\
trap '' HUP INT TERM
read -r _
for second in 1 2 3 4 5; do rm -rf -- "$1" 2>/dev/null && exit; sleep 1; done
"""


def own(module: str) -> list[str]:
    """Return the argv of a module of this package, as this interpreter has it installed.

    Without -P it would be the one in the current folder, which may be another version's.
    """
    return [sys.executable, "-P", "-m", module]


def tied(argv: Sequence[str]) -> list[str]:
    """Return ``argv`` made to be killed when the thread that starts it ends."""
    tie = ["setpriv", "--pdeathsig", "KILL", "sh", "-c", _IF_NOT_TOO_LATE, str(os.getpid())]
    return [*tie, *argv]


def without_settings() -> list[str]:
    """Return arguments of env(1) that take our own settings out of the environment."""
    return [f"--unset={name}" for name in os.environ if name.startswith("IPMASQ_")]


@contextlib.contextmanager
def passing_directory(prefix: str) -> Iterator[Path]:
    """Make a directory that goes with the block, and with us if we are killed in it."""
    path = tempfile.mkdtemp(prefix=prefix)
    argv = ["sh", "-c", _REMOVE, "sh", path]
    # Its standard input ends when we do.
    with subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True):
        yield Path(path)
