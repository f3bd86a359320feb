"""The local socket of a running agent: where it listens, and how a program of this node asks.

A file that root alone may open. What is asked and answered is HTTP, as on the port.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from pathlib import Path

from ipmasq_agent.errors import HostError, UsageError
from ipmasq_agent.logs import one_line

DEFAULT_PATH = "/run/ipmasq-agent/agent.sock"
_LONGEST = 107  # unix(7): sun_path, less one
_PATIENCE = 5.0  # seconds for an answer; the agent answers in a thread of its own
_PATIENCE_IN_ALL = 60.0  # seconds, as long as some of it comes
_HEAD = re.compile(rb"HTTP/1\.1 (\d+) .*\r\nContent-Length: (\d{1,9})\r\n", re.DOTALL)
_MOST = 64 << 20  # bytes of an answer: several documents of 1 MiB each


def listen(path: str, waiting: int) -> socket.socket:
    """Return a socket that listens at a path, in the place of one that nobody answers at.

    Args:
        path: of the file, whose directory is made where it is not there.
        waiting: how many may wait to be let in.

    Raises:
        UsageError: the path is too long for a socket.
        HostError: somebody else answers there, or it cannot be made.
    """
    if len(os.fsencode(path)) + len(".new") > _LONGEST:
        raise UsageError(
            f"--socket: {path} is longer than {_LONGEST} bytes, which the kernel allows"
        )
    if _answered(path):
        raise HostError(f"another agent answers at {path}", remedy="give this one its own --socket")
    listener = socket.socket(socket.AF_UNIX)
    new = f"{path}.new"
    try:
        Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        listener.bind(new)
        os.chmod(new, 0o600)
        listener.listen(waiting)
        # Nobody finds it before it listens, and what was left there is gone at once.
        os.rename(new, path)
    except OSError as cause:
        listener.close()
        raise HostError(
            f"cannot listen at {path}: {cause.strerror or cause}",
            remedy="choose another --socket, or an empty one for none",
        ) from cause
    return listener


def get(path: str, page: str) -> bytes | None:
    """Return a page of the agent that listens at a path; None where nobody does.

    Raises:
        HostError: somebody does, and does not answer as an agent.
    """
    told = bytearray()
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(_PATIENCE)
            asking.connect(path)
            asking.sendall(f"GET {page} HTTP/1.1\r\nHost: agent\r\n\r\n".encode())
            until = time.monotonic() + _PATIENCE_IN_ALL
            while some := asking.recv(1 << 16):
                told += some
                if len(told) > _MOST or time.monotonic() > until:
                    raise _unanswered(path, "as it comes to no end")
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return None
    except OSError as cause:
        raise _unanswered(path, f"{cause}") from cause
    # The agent's own server closes after an answer; a library for HTTP would bring TLS with it.
    head, _, body = bytes(told).partition(b"\r\n\r\n")
    found = _HEAD.match(head + b"\r\n")
    if found is None or int(found[2]) != len(body):
        raise _unanswered(path, "not as an agent does, or not in full")
    if found[1] != b"200":
        said = one_line(body[:1000].decode(errors="replace"))
        raise HostError(f"the agent at {path} answers {found[1].decode()}: {said}")
    return body


def identity(path: str) -> object:
    """Return what tells the socket at a path from another one that takes its place."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _unanswered(path: str, why: str) -> HostError:
    return HostError(
        f"the agent at {path} does not answer: {why}",
        remedy="give an empty --socket to ask nobody, and the agent's settings as flags",
    )


def _answered(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(_PATIENCE)
        try:
            asking.connect(path)
        except TimeoutError:
            return True
        except OSError:
            return False
    return True
