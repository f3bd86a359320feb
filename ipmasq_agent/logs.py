"""Log lines with fields: ``key=value`` for people, one JSON object a line for machines."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from ipmasq_agent.errors import AgentError

logger = logging.getLogger("ipmasq_agent")


def event(level: int, message: str, **fields: Any) -> None:
    """Log ``message`` with ``fields``; those that are None are left out."""
    if logger.isEnabledFor(level):
        present = {key: value for key, value in fields.items() if value is not None}
        logger.log(level, message, extra={"fields": present})


def one_line(text: str) -> str:
    """Return what others wrote as it can stand in a line of ours, whatever is in it."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


_traced: set[str] = set()


def failure(message: str, error: AgentError, **fields: Any) -> None:
    """Log an error, and where it came from if nobody foresaw it: each place once."""
    trace = getattr(error, "trace", None)
    if trace in _traced:
        trace = None
    elif trace is not None:
        _traced.add(trace)
    event(logging.ERROR, message, **fields, error=str(error), trace=trace)


def configure(
    form: str,
    level: str,
    stream: TextIO | None = None,
    *,
    handlers: Sequence[logging.Handler] = (),
) -> None:
    """Send the log, as ``text`` or ``json``, to handlers, or else a stream (standard error)."""
    logger.handlers[:] = handlers or [logging.StreamHandler(stream or sys.stderr)]
    for handler in logger.handlers:
        handler.setFormatter(_Json() if form == "json" else _Text())
    logger.setLevel(level.upper())
    logger.propagate = False
    logging.raiseExceptions = False  # a log that takes no more lines is no reason to print others


def rfc3339(moment: float) -> str:
    """Return seconds since 1970 as RFC 3339 has them, in UTC, to the microsecond."""
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))
    return f"{seconds}.{int(moment % 1 * 1e6):06d}Z"


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        shown = "".join(f" {key}={_shown(value)}" for key, value in fields.items())
        line = (
            f"{rfc3339(record.created)} {record.levelname.lower():7} {record.getMessage()}{shown}"
        )
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        line = {
            "time": rfc3339(record.created),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _shown(value: Any) -> str:
    text = str(value)
    return text if text and not set(text) & set(' "=\n') else json.dumps(text, ensure_ascii=False)
