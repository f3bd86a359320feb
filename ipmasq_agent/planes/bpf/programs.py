"""Our programs on the devices of a node: loaded once, pinned, attached in both directions.

In the directory of the pins are the maps and programs by name, with tcx a link for each
device and direction, and an empty directory whose name tells which bytecode was loaded last,
as a bpf file system holds no files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from ipmasq_agent.bpf import bpffs
from ipmasq_agent.bpf.objects import closing, get_pinned, program_info, run_program
from ipmasq_agent.errors import HostError
from ipmasq_agent.planes.bpf import clsact, strays, tcx
from ipmasq_agent.planes.bpf.layout import (
    COLLECT,
    CONTROL,
    MOST_COLLECTED,
    TcHook,
    pack_collection,
)
from ipmasq_agent.planes.bpf.libbpf import load

BYTECODE = Path(__file__).parent / "masq.bpf.o"
_VERSION = "bytecode-"
# One flow for each 32 KiB of memory; with 212 bytes a flow that is 1 in 150 of it.
_MEMORY_OF_A_FLOW = 32 * 1024
_MOST_FLOWS, _LEAST_FLOWS = 1 << 19, 1 << 14


class NodePrograms:
    """The programs of one node; what the kernel refuses is a HostError.

    Args:
        pins: directory on a bpf file system, which is mounted where it is not.
        flows: capacity of the table of flows where it is made anew; None for what suits
            the machine's memory.
        tcx: attach by links of tcx where the kernel has it, else as filters of clsact.
    """

    def __init__(self, pins: Path, flows: int | None = None, *, tcx: bool = True) -> None:
        self._pins = pins
        self._flows = flows
        self._tcx = tcx

    def exist(self) -> bool:
        """Whether maps and programs have been loaded, of whatever version.

        Raises:
            HostError: we may not look.
        """
        names = (CONTROL, *(hook.value for hook in TcHook))
        with self._usable():
            return all((self._pins / name).exists() for name in names)

    def load(self) -> None:
        """Load the programs, unless those of this very version are there.

        Raises:
            HostError: they are not compiled, or the kernel refuses them.
        """
        version = self._version()
        with self._usable():
            if self.exist() and version.exists():
                return
            self._refuse_others()
            bpffs.provide(self._pins)
            self._pins.mkdir(parents=True, exist_ok=True)
            flows = self._flows or _suitable_flows()
            load(BYTECODE, self._pins, {"flows": flows, "moved": flows, "kept": max(1, flows // 2)})
            for old in self._pins.glob(f"{_VERSION}*"):
                old.rmdir()
            version.mkdir()

    def attach(self, ifindex: int) -> None:
        """Put both programs on a device, in place of those that we have there."""
        for hook in TcHook:
            with self._pinned(hook.value) as program:
                link = self._link(ifindex, hook)
                if not (self._tcx and tcx.attach(ifindex, hook, program, link)):
                    clsact.attach(ifindex, hook, program)

    def complete(self, ifindex: int) -> bool:
        """Whether both programs are on a device, in the version that we would load."""
        with self._usable():
            if not self._version().exists():
                return False
        for hook in TcHook:
            with self._pinned(hook.value) as program:
                loaded, _ = program_info(program)
            link = self._link(ifindex, hook)
            if loaded != (tcx.attached(ifindex, link) or clsact.attached(ifindex, hook)):
                return False
        return True

    def collect(self, table: str, keys: Sequence[bytes]) -> None:
        """Remove those of these flows of a table that have expired for good."""
        with self._pinned(COLLECT) as program:
            for first in range(0, len(keys), MOST_COLLECTED):
                some = keys[first : first + MOST_COLLECTED]
                run_program(program, pack_collection(table, some))

    def strays(self) -> bool:
        """Whether programs of ours are on devices though nothing is pinned here.

        Raises:
            NotPermitted: it may not be seen.
            KernelReadError: the devices cannot be listed.
        """
        try:
            seen = bpffs.holds(self._pins)
        except PermissionError:
            seen = False
        # Where pins would be seen there are none: what has no name here is somebody else's.
        return strays.exist(strict=not seen)

    def remove(self) -> None:
        """Take our programs off all devices, and remove every pin.

        Raises:
            NotPermitted: some may be there that may not be seen, or not be taken off.
            HostError: the kernel refuses.
        """
        self._refuse_others()
        try:
            for link in self._pins.glob("link-*"):
                tcx.detach(link)
            pinned = self._pins.exists()
            if pinned:
                shutil.rmtree(self._pins)
        except OSError as cause:
            raise HostError(
                f"{self._pins} cannot be removed: {cause.strerror}",
                remedy="mount it so that it can be written to",
            ) from cause
        strays.remove(links=not pinned)

    def tidy(self, gone: list[int]) -> None:
        """Remove the links of devices that are no more."""
        for ifindex in gone:
            for hook in TcHook:
                self._link(ifindex, hook).unlink(missing_ok=True)

    # -- the directory of the pins ----------------------------------------------------------

    def _refuse_others(self) -> None:
        """Make sure that the directory is ours, or nobody's: all in it goes when we leave."""
        try:
            names = [path.name for path in self._pins.iterdir()] if self._pins.exists() else []
        except OSError as cause:
            raise HostError(f"{self._pins} cannot be listed: {cause.strerror}") from cause
        if names and not any(name == CONTROL or name.startswith(_VERSION) for name in names):
            raise HostError(
                f"{self._pins} is another program's directory: it holds {sorted(names)[0]}, and "
                "no map of ours",
                remedy="give --bpf-pins a directory that is for us alone; nothing was written",
            )

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Tell what the file system of the pins refuses.

        Raises:
            HostError: it does.
        """
        try:
            yield
        except OSError as cause:
            raise HostError(
                f"{self._pins} cannot be used: {cause.strerror}",
                remedy="run as root, with a bpf file system there that can be written to",
            ) from cause

    @contextmanager
    def _pinned(self, name: str) -> Iterator[int]:
        """Open a pinned program for as long as it is needed."""
        found = get_pinned(self._pins / name)
        if found is None:
            raise HostError(
                f"{self._pins / name} is gone",
                remedy="`ipmasq-agent cleanup` removes what is left",
            )
        with closing(found):
            yield found

    def _link(self, ifindex: int, hook: TcHook) -> Path:
        return self._pins / f"link-{ifindex}-{hook.name.lower()}"

    def _version(self) -> Path:
        try:
            written = BYTECODE.stat()
        except FileNotFoundError as cause:
            raise HostError(
                f"the eBPF programs are not compiled: {BYTECODE} is missing",
                remedy="install clang and libbpf-dev, then this package again",
            ) from cause
        return self._pins / f"{_VERSION}{_digest(BYTECODE, written.st_mtime_ns, written.st_size)}"


@lru_cache(maxsize=1)
def _digest(path: Path, written: int, size: int) -> str:
    """Return what tells this content from others; read again once the file is another one."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _suitable_flows() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(max(memory // _MEMORY_OF_A_FLOW, _LEAST_FLOWS), _MOST_FLOWS)
