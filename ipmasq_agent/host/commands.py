"""The programs that verbs and the agent run to their end, shown whole when they fail."""

from __future__ import annotations

import errno
import logging
import os
import select
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import IO, Any, NamedTuple

from ipmasq_agent.errors import CommandFailed, HostError, MissingTool
from ipmasq_agent.host.capabilities import lacking
from ipmasq_agent.host.patience import Patience

logger = logging.getLogger(__name__)

# Which Debian package to name when a program is missing; the names are much the same elsewhere.
PACKAGES: Mapping[str, str] = {
    "conntrack": "conntrack",
    "curl": "curl",
    "ip": "iproute2",
    "ipset": "ipset",
    **{
        f"{stem}tables-{verb}": "iptables"
        for stem in ("ip", "ip6")
        for verb in ("legacy-restore", "legacy-save", "nft", "nft-restore", "nft-save")
    },
    "nft": "nftables",
    "ping": "iputils-ping",
    "sysctl": "procps",
    "tcpdump": "tcpdump",
}
# What to do where the system cannot start a program.
_REMEDIES: Mapping[int, str] = {
    errno.EAGAIN: "raise the limit of processes (pids.max of its cgroup, `ulimit -u`)",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "raise the node's limit of open files (fs.file-max)",
    errno.ENOMEM: "raise the memory limit of the container",
    errno.EACCES: "see its mode, a noexec mount, or a security profile that forbids it",
    errno.EPERM: "see which security profile forbids it",
    errno.ENOEXEC: "it is damaged or made for another kind of machine: install it anew",
}
# What programs say, and no more, where the kernel or the node lacks something.
_LACKING: Mapping[str, str] = {
    "CHAIN_ADD failed (No such file or directory)": "this kernel has no nat for that family: load "
    "nft_chain_nat, or for IPv6 leave --enable-ipv6 away",
    "nitialize table": "this kernel may have no nat for that family: load iptable_nat or "
    "ip6table_nat, or for IPv6 leave --enable-ipv6 away",
    "Address family not supported": "this node has no IPv6: leave --enable-ipv6 away",
}
# By what programs ask the kernel: netlink, and for ipsets and legacy tables a raw socket.
_NEEDED = ("NET_ADMIN", "NET_RAW")
LIMIT = 64 << 20
"""Bytes that a program may write and be listened to; 1,000,000 entries of a set are 30 MiB."""
_CHUNK = 1 << 16


class Completed(NamedTuple):
    """What a program left behind: exit status, and its two streams as text."""

    status: int
    stdout: str
    stderr: str


def run(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    check: bool = True,
    timeout: float = 60.0,
    keep: Callable[[str], bool] | None = None,
    inherited: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> Completed:
    """Run a program to its end and return what it wrote.

    Args:
        argv: the program and its arguments; never a shell line.
        stdin: text to feed it; without it, standard input is empty.
        check: raise when the exit status is not 0.
        timeout: seconds until the program is killed.
        keep: asked of each line of its output, without the newline, as it comes. Those that
            it does not want are dropped at once, and count for no limit.
        inherited: descriptors that it gets, under the same numbers.
        environment: what it gets beside our own.

    Raises:
        MissingTool: the program is not installed.
        CommandFailed: it exited with a status other than 0, and ``check`` is set.
        Stopped: the agent is told to stop; the program was killed.
        HostError: it cannot be started, did not end in time, or wrote more than ``LIMIT``.
    """
    shown = " ".join(argv)
    stdout, stderr = _Output(keep), _Output()
    try:
        how = {"pass_fds": inherited, "env": {**os.environ, **(environment or {})}}
        status = _run(argv, how, stdin or "", stdout, stderr, Patience(timeout))
    except FileNotFoundError as cause:
        package = PACKAGES.get(argv[0], argv[0])
        raise MissingTool(
            f"{argv[0]} is not installed", remedy=f"install the package {package}"
        ) from cause
    except _TooSlow as cause:
        raise HostError(f"`{shown}` did not end within {timeout:g} s") from cause
    except _TooMuch as cause:
        raise HostError(
            f"`{shown}` wrote more than {LIMIT >> 20} MiB and was ended",
            remedy="run it by hand and see what it writes",
        ) from cause
    except OSError as cause:
        raise HostError(
            f"`{shown}` cannot be run: {cause.strerror}", remedy=_REMEDIES.get(cause.errno or 0)
        ) from cause
    if check and status != 0:
        # Programs say "you must be root" to root, or "Can't open socket" and no more.
        said = stderr.text()
        remedy = next((words for text, words in _LACKING.items() if text in said), None)
        if missing := " and ".join(lacking(_NEEDED)):
            remedy = f"it may need the capability {missing}, which this agent lacks"
        raise CommandFailed(argv, status, said, remedy=remedy)
    return Completed(status, stdout.text(), stderr.text())


class _TooSlow(Exception):
    """The program did not end while there was patience."""


class _TooMuch(Exception):
    """The program wrote more than we listen to."""


class _Output:
    """What a program wrote on one stream: all of it, or the lines that somebody wants."""

    def __init__(self, keep: Callable[[str], bool] | None = None) -> None:
        self._keep = keep
        self._kept: list[str] = []
        self._size = 0
        self._rest = bytearray()

    def take(self, data: bytes) -> bool:
        """Take in what was read; false at the end, of which there is nothing to read."""
        if not data:
            self._sift(self._rest)
            self._rest = bytearray()
        elif b"\n" in data:
            self._rest += data
            whole, newline, self._rest = self._rest.rpartition(b"\n")
            self._sift(whole, newline.decode())
        else:
            self._rest += data
        if self._size + len(self._rest) > LIMIT:
            raise _TooMuch
        return bool(data)

    def text(self) -> str:
        """Return what was kept."""
        return "".join(self._kept)

    def _sift(self, whole: bytearray, newline: str = "") -> None:
        text = whole.decode(errors="surrogateescape")
        if self._keep is not None:
            lines = [line for line in text.split("\n") if self._keep(line)]
            if not lines:
                return
            text = "\n".join(lines)
        self._kept.append(text + newline)
        self._size += len(text)


def _run(
    argv: Sequence[str],
    how: Mapping[str, Any],
    text: str,
    stdout: _Output,
    stderr: _Output,
    patience: Patience,
) -> int:
    """Run the program and return its exit status, as ``Popen`` has it."""
    patience.left()  # who was told to stop starts nothing
    with ExitStack() as files:
        # In memory, so that nobody waits for a program that reads nothing.
        feed = files.enter_context(os.fdopen(os.memfd_create("stdin"), "w+b"))
        feed.write(text.encode(errors="surrogateescape"))
        feed.seek(0)
        (out, its_out), (err, its_err) = _pipe(files), _pipe(files)
        process = subprocess.Popen(argv, stdin=feed, stdout=its_out, stderr=its_err, **how)
        try:
            its_out.close()
            its_err.close()
            poll = select.poll()
            outputs = {out.fileno(): stdout, err.fileno(): stderr}
            for descriptor in outputs:
                poll.register(descriptor, select.POLLIN)
            while outputs:
                for descriptor, _ in poll.poll(_wait(patience) * 1000):
                    if not outputs[descriptor].take(os.read(descriptor, _CHUNK)):
                        poll.unregister(descriptor)
                        del outputs[descriptor]
            while process.poll() is None:
                _wait_for(process, _wait(patience))
            return process.returncode
        except BaseException:
            process.kill()
            if not _wait_for(process, 1):
                # It sits in the kernel, and dies when it comes out of there. Whoever starts
                # the next program takes it off the list of processes (subprocess._cleanup).
                logger.warning("the killed process %d does not end", process.pid)
            raise


def _pipe(files: ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    """Return the end to read from and the one to write to, closed with ``files`` at the latest.

    ``Popen`` itself leaves open what it has of three pipes when there is no third, so each
    program that cannot be started would leave less for the next.
    """
    ends = zip(os.pipe(), ("rb", "wb"), strict=True)
    reading, writing = (files.enter_context(os.fdopen(end, mode)) for end, mode in ends)
    return reading, writing


def _wait(patience: Patience) -> float:
    left = patience.left()
    if not left:
        raise _TooSlow
    return left


def _wait_for(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
