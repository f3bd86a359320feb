"""klog's flags, which upstream's agent takes: where its log went, ours goes.

What has no meaning here is taken all the same and named in one warning, so that a container
with upstream's arguments starts.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from ipmasq_agent.cli.goflags import KLOG_BOOLEANS, KLOG_VALUES, GoBool

F = TypeVar("F", bound=Callable[..., Any])

_DEBUG = 4
"""What upstream logs at this verbosity and above is what we call debug."""
_LEVELS = {"info": "info", "warning": "warning", "error": "error", "fatal": "critical"}
_LARGEST = 1800
"""Megabytes of a log file, unless --log_file_max_size says another number."""
_OF_A_FILE = frozenset(
    {"log_file", "log_dir", "log_file_max_size", "alsologtostderr", "stderrthreshold"}
)


def klog_options(function: F) -> F:
    """Give a command klog's flags, which its help does not show."""
    for name in sorted(KLOG_BOOLEANS):
        function = click.option(f"--{name}", f"klog_{name}", type=GoBool(), hidden=True)(function)
    for name in sorted(KLOG_VALUES):
        kind = int if name in ("v", "log_file_max_size") else str
        flags = ("--v", "-v") if name == "v" else (f"--{name}",)
        function = click.option(*flags, f"klog_{name}", type=kind, hidden=True)(function)
    return function


def configure(form: str, level: str, options: dict[str, Any]) -> None:
    """Send the log where the flags say, and say which of them change nothing.

    Args:
        form: text or json.
        level: the least that is logged.
        options: all of a command; those of klog are taken out.
    """
    from ipmasq_agent import logs

    given = {
        name: value
        for name in sorted(KLOG_BOOLEANS | KLOG_VALUES)
        if (value := options.pop(f"klog_{name}", None)) not in (None, "")
    }
    verbose = given.pop("v", 0) >= _DEBUG
    to_stderr = given.pop("logtostderr", True)
    to_file = not to_stderr and bool(given.keys() & {"log_file", "log_dir"})
    handlers: list[logging.Handler] = []
    failure = None
    if to_file:
        try:
            handlers += _handlers(given)
        except OSError as error:
            failure = error
    logs.configure(form, "debug" if verbose else level, handlers=handlers)
    if failure is not None:
        logs.event(logging.WARNING, "the log goes to standard error", error=str(failure))
    honoured = _OF_A_FILE if to_file else {"alsologtostderr"}
    idle = [f"--{name}" for name, value in given.items() if value and name not in honoured]
    if not (to_stderr or to_file):
        idle.append("--logtostderr=false")
    if idle:
        logs.event(logging.WARNING, "these flags of klog change nothing here", flags=" ".join(idle))


def _handlers(given: dict[str, Any]) -> Iterator[logging.Handler]:
    """Yield where the log goes.

    Raises:
        OSError: a file cannot be written.
    """
    path = given.get("log_file") or os.path.join(given["log_dir"], "ipmasq-agent.log")
    # Opened anew, these fail where the stream is a socket.
    streams = {"/dev/stdout": sys.stdout, "/dev/stderr": sys.stderr}
    if path in streams:
        yield logging.StreamHandler(streams[path])
    elif os.path.exists(path) and not os.path.isfile(path):
        yield logging.StreamHandler(open(path, "a"))  # noqa: SIM115  as long as we live
    else:
        from logging.handlers import RotatingFileHandler

        largest = given.get("log_file_max_size", _LARGEST) << 20
        yield RotatingFileHandler(path, maxBytes=largest, backupCount=1 if largest else 0)
    threshold = _LEVELS.get(str(given.get("stderrthreshold")).lower())
    if given.get("alsologtostderr") or threshold:
        also = logging.StreamHandler(sys.stderr)
        if threshold and not given.get("alsologtostderr"):
            also.setLevel(threshold.upper())
        yield also
