"""Every error that a user may see, in one tree.

::

    AgentError                     what is wrong, and what to do next
    ├── ConfigError                a document cannot be used; carries every problem in it
    ├── UsageError                 flags or arguments cannot be used
    ├── SourceError                a document cannot be had
    │   ├── SourceUnavailable      not now: the API is unreachable, the file is half written
    │   └── AccessDenied           never, until somebody grants the permission it names
    ├── HostError                  this machine cannot do what is asked
    │   ├── MissingTool            a program is not installed
    │   ├── CommandFailed          a program ran and refused
    │   ├── NotPermitted           the kernel, or a filter of system calls, says no
    │   ├── LockTimeout            someone else holds the xtables lock
    │   └── Stopped                given up because the process was told to stop
    ├── KernelReadError            what the kernel holds cannot be read in full
    ├── KernelWriteError           the kernel does not hold what was written
    ├── UnexpectedError            something failed in a way that nobody foresaw
    ├── LabError                   the lab cannot be built or its traffic not observed
    └── BenchError                 nothing can be measured, or what was measured not be read

Nothing here exits the process or prints: that is the business of ``cli`` alone.
"""

from __future__ import annotations

import os
import shlex
import traceback
from collections.abc import Sequence

# Characters of what a program wrote: the message goes to a log, a status and a probe.
_SHOWN = 4000


MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What taking apart data in another form than is expected ends in."""


class AgentError(Exception):
    """The root: a sentence about what is wrong and, where one is known, its remedy."""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class ConfigError(AgentError):
    """A document that cannot be used. ``problems`` holds one readable line for each fault."""

    def __init__(self, problems: Sequence[str]) -> None:
        if not problems:
            raise ValueError("a ConfigError needs at least one problem")
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class UsageError(AgentError):
    """Flags or arguments that cannot be used together, or at all."""


class SourceError(AgentError):
    """A document cannot be had from where it should come from."""


class SourceUnavailable(SourceError):
    """The source does not answer now, which says nothing about whether a document exists."""


class AccessDenied(SourceError):
    """The API refuses us (401 or 403). The remedy names the permission that is missing."""


class HostError(AgentError):
    """This machine cannot do what is asked of it."""


class MissingTool(HostError):
    """A program that is needed is not installed. The remedy names its package."""


class CommandFailed(HostError):
    """A program ran and failed.

    The message shows the command so that it can be pasted into a shell, with its exit
    status and what it wrote to standard error.
    """

    def __init__(
        self, argv: Sequence[str], status: int, stderr: str, *, remedy: str | None = None
    ) -> None:
        self.argv = tuple(argv)
        self.status = status
        self.stderr = stderr.strip()[-_SHOWN:]
        detail = f": {self.stderr}" if self.stderr else ""
        super().__init__(f"`{shlex.join(argv)}` exited with {status}{detail}", remedy=remedy)


class NotPermitted(HostError):
    """A privilege is missing, or the container's filter of system calls refuses one."""


class LockTimeout(HostError):
    """Another process holds the xtables lock for longer than we are ready to wait."""


class Stopped(HostError):
    """What was waited for is given up, because the process was told to stop."""


class KernelReadError(AgentError):
    """What the kernel holds cannot be read in full, so nothing may be written on top of it."""


class KernelWriteError(AgentError):
    """A transaction was accepted, and yet the kernel does not hold what was written."""


class UnexpectedError(AgentError):
    """Something failed in a way that nobody foresaw; what was at work is tried again.

    It is told by its kind and its place. The text of a library's exception may hold what is
    nobody's business: a header with a token, a URL with a password, the content of a file.

    Attributes:
        trace: where it happened and what led to that, a line for each step.
    """

    def __init__(self, message: str, *, remedy: str | None = None, trace: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.trace = trace


def foreseen(error: Exception, what: str) -> AgentError:
    """Return an error that can be told: itself if it is one of ours."""
    if isinstance(error, AgentError):
        return error
    kind = type(error).__name__
    if isinstance(error, OSError) and error.errno:
        kind = f"{kind}: {os.strerror(error.errno)}"
    return UnexpectedError(
        f"{what} failed unexpectedly ({kind})",
        remedy="it is tried again; the log says where it failed, for a report",
        trace=_trace(error),
    )


def _trace(error: BaseException | None) -> str:
    lines: list[str] = []
    while error is not None:
        steps = traceback.extract_tb(error.__traceback__)
        place = [f"{step.filename}:{step.lineno} {step.name}" for step in steps]
        lines[:0] = [*place, type(error).__name__]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(lines)


class LabError(AgentError):
    """The lab cannot be built, or what its hosts saw cannot be observed."""


class BenchError(AgentError):
    """Nothing can be measured here, or results of an earlier benchmark cannot be used."""
