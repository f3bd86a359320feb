"""Network namespaces that have a name, and ending what runs in them.

A name is a file in ``/run/netns`` on which the namespace is mounted, as ip-netns(8) keeps
them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ipmasq_agent.libc import checked, libc

RUN_NETNS = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
T = TypeVar("T")


def names() -> list[str]:
    """Return the names of all namespaces that have one."""
    try:
        return sorted(os.listdir(RUN_NETNS))
    except FileNotFoundError:
        return []


def inode(name: str) -> int | None:
    """Return the number by which the kernel knows the namespace; None if there is none."""
    try:
        return os.stat(RUN_NETNS / name).st_ino
    except FileNotFoundError:
        return None


def made_inside(namespace: Path, make: Callable[[], T]) -> T:
    """Return what ``make`` makes in a namespace, such as a socket, which stays of it.

    Args:
        namespace: the file that stands for it.
        make: is called in a thread that ends with it, as a thread has a namespace of its own.

    Raises:
        OSError: of entering it, or of ``make``.
    """

    def inside() -> T:
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            checked(libc.setns(descriptor, _CLONE_NEWNET))
        finally:
            os.close(descriptor)
        return make()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(inside).result()


def mounted() -> bool:
    """Whether ``/run/netns`` is a mount of its own, as the first `ip netns add` makes it."""
    try:
        return _mount_id(RUN_NETNS) != _mount_id(RUN_NETNS.parent)
    except FileNotFoundError:
        return False


def _mount_id(path: Path) -> str:
    """Return the mount that a path is on (proc_pid_fdinfo(5)); st_dev cannot tell binds apart."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    finally:
        os.close(descriptor)
    return next(line for line in lines if line.startswith("mnt_id:"))


def unmount_if_empty() -> None:
    """Undo what the first `ip netns add` of a machine did, unless somebody has a namespace."""
    # The kernel refuses while a namespace is mounted below (EBUSY), whoever made it, and
    # so does rmdir: nobody else's can be lost here.
    if libc.umount2(str(RUN_NETNS).encode(), 0) == 0:
        with contextlib.suppress(OSError):
            RUN_NETNS.rmdir()


def end_processes(inodes: Collection[int], patience: float = 2.0) -> None:
    """End every process in these namespaces.

    Each is first asked (SIGTERM), then killed when it has not gone within ``patience``
    seconds. A pidfd stands for the process from before it is looked at, so that a number
    which the kernel gives to somebody else meanwhile is never signalled.
    """
    for deadly in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + patience
        # What a process starts while it is being ended is met in the next round.
        while time.monotonic() < deadline:
            with _in_namespaces(inodes) as waiting:
                if not waiting:
                    return
                for descriptor in waiting:
                    with contextlib.suppress(ProcessLookupError):  # it ended by itself
                        signal.pidfd_send_signal(descriptor, deadly)
                _await_exits(waiting, deadline)


def _await_exits(descriptors: list[int], deadline: float) -> None:
    left = set(descriptors)
    poll = select.poll()  # a pidfd is readable once its process has ended (pidfd_open(2))
    for descriptor in left:
        poll.register(descriptor, select.POLLIN)
    while left and (remaining := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(remaining * 1000):
            poll.unregister(descriptor)
            left.discard(descriptor)


@contextmanager
def _in_namespaces(inodes: Collection[int]) -> Iterator[list[int]]:
    """Yield a pidfd for every process that is in one of the namespaces, except this one."""
    descriptors = []
    try:
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            descriptor = _pidfd_if_inside(int(entry), inodes)
            if descriptor is not None:
                descriptors.append(descriptor)
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _pidfd_if_inside(pid: int, inodes: Collection[int]) -> int | None:
    try:
        if os.stat(f"/proc/{pid}/ns/net").st_ino not in inodes:
            return None
        descriptor = os.pidfd_open(pid)
    except OSError:  # it ended, or it is a kernel thread
        return None
    try:
        # Asked again now that the descriptor keeps the number from meaning someone else.
        if os.stat(f"/proc/{pid}/ns/net").st_ino in inodes:
            return descriptor
    except OSError:
        os.close(descriptor)
        return None
    os.close(descriptor)
    return None
