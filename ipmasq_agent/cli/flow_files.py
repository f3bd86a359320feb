"""Recorded connections, from a file or a pipe."""

from __future__ import annotations

from collections.abc import Iterator

from ipmasq_agent.answers.recorded import recorded
from ipmasq_agent.errors import UsageError
from ipmasq_agent.policy.flows import Flow


def flows_of(path: str) -> Iterator[Flow]:
    """Yield the connections in a file; ``-`` is standard input.

    Raises:
        UsageError: it cannot be read, or is of no form that is known.
    """
    piped = path == "-"
    try:
        with open(0 if piped else path, "rb", closefd=not piped) as file:
            yield from recorded(file, "standard input" if piped else path)
    except OSError as cause:
        raise UsageError(f"{path} cannot be read: {cause.strerror}") from cause
