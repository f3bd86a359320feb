"""The local socket of a running agent: where it listens, and how a program of this node asks.

A file that root alone may open. What is asked and answered is HTTP, as on the port.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from ipmasq_agent.errors import HostError, UsageError

DEFAULT_PATH = "/run/ipmasq-agent/agent.sock"
_LONGEST = 107  # unix(7): sun_path, less one
_PATIENCE = 5.0  # seconds for an answer; the agent answers in a thread of its own


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
    # With it comes TLS, for which the agent would pay some megabytes.
    from http.client import HTTPException, HTTPResponse

    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(_PATIENCE)
            asking.connect(path)
            asking.sendall(f"GET {page} HTTP/1.1\r\nHost: agent\r\n\r\n".encode())
            answer = HTTPResponse(asking)
            answer.begin()
            body = answer.read()
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return None
    except (OSError, HTTPException) as cause:
        raise HostError(
            f"the agent at {path} does not answer: {cause or type(cause).__name__}",
            remedy="give an empty --socket to ask nobody, and the agent's settings as flags",
        ) from cause
    if answer.status != 200:
        raise HostError(f"the agent at {path} answers {answer.status}: {body.decode().strip()}")
    return body


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
