"""Our programs on the devices of a node: loaded once, pinned, attached in both directions.

In the directory of the pins are the maps and programs by name, a link for each device and
direction, and an empty directory whose name tells which bytecode was loaded last, as a bpf
file system holds no files.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from ipmasq_agent.bpf.objects import get_pinned, program_id, run_program
from ipmasq_agent.errors import HostError
from ipmasq_agent.planes.bpf import strays
from ipmasq_agent.planes.bpf.libbpf import load
from ipmasq_agent.planes.bpf.strays import NAMES
from ipmasq_agent.planes.bpf.tc import Direction, attach, attached, detach

BYTECODE = Path(__file__).parent / "masq.bpf.o"
_VERSION = "bytecode-"
# One flow for each 32 KiB of memory; with 130 bytes a flow that is 1 in 250 of it.
_MEMORY_OF_A_FLOW = 32 * 1024
_MOST_FLOWS, _LEAST_FLOWS = 1 << 19, 1 << 14
_BPF_FS_MAGIC = 0xCAFE4A11

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def _files(pins: Path) -> Iterator[None]:
    """Tell what the file system of the pins refuses.

    Raises:
        HostError: it does.
    """
    try:
        yield
    except OSError as cause:
        raise HostError(
            f"{pins} cannot be used: {cause.strerror}",
            remedy="run as root, with a bpf file system there that can be written to",
        ) from cause


class Hooks:
    """The programs of one node.

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
        with _files(self._pins):
            return all((self._pins / name).exists() for name in ("control", *NAMES.values()))

    def load(self) -> None:
        """Load the programs, unless those of this very version are there.

        Raises:
            HostError: they are not compiled, or the kernel refuses them.
        """
        version = self._version()
        with _files(self._pins):
            if self.exist() and version.exists():
                return
            self._refuse_others()
            _on_bpf_fs(self._pins)
            self._pins.mkdir(parents=True, exist_ok=True)
            load(BYTECODE, self._pins, {"flows": self._flows or _suitable_flows()})
            for old in self._pins.glob(f"{_VERSION}*"):
                old.rmdir()
            version.mkdir()

    def attach(self, ifindex: int) -> None:
        """Put both programs on a device, in place of those that we have there.

        Raises:
            HostError: the kernel refuses, or the device is gone.
        """
        # What comes in is recorded before what goes out is translated.
        for direction in (Direction.INGRESS, Direction.EGRESS):
            with _Pinned(self._pins / NAMES[direction]) as program:
                attach(ifindex, direction, program, self._link(ifindex, direction), tcx=self._tcx)

    def complete(self, ifindex: int) -> bool:
        """Whether both programs are on a device, in the version that we would load.

        Raises:
            HostError: the kernel cannot be asked.
        """
        with _files(self._pins):
            if not self._version().exists():
                return False
        for direction, name in NAMES.items():
            with _Pinned(self._pins / name) as program:
                held = program_id(program)
            if attached(ifindex, direction, self._link(ifindex, direction)) != held:
                return False
        return True

    def run_sweep(self) -> None:
        """Remove flows that have expired, and count the others into the map ``swept``.

        Raises:
            HostError: the kernel refuses.
        """
        with _Pinned(self._pins / "sweep") as program:
            run_program(program)

    def strays(self) -> bool:
        """Whether programs of ours are on devices though nothing is pinned here.

        Raises:
            NotPermitted: it may not be seen.
            KernelReadError: the devices cannot be listed.
        """
        try:
            seen = _is_bpf_fs(_existing(self._pins))
        except PermissionError:
            seen = False
        # Where pins would be seen there are none: what has no name here is somebody else's.
        return any(True for _ in strays.find(strict=not seen))

    def remove(self) -> None:
        """Take our programs off all devices, and remove every pin.

        Raises:
            NotPermitted: some may be there that may not be seen, or not be taken off.
            HostError: the kernel refuses.
        """
        self._refuse_others()
        try:
            for link in self._pins.glob("link-*"):
                detach(link)
            pinned = self._pins.exists()
            if pinned:
                shutil.rmtree(self._pins)
        except OSError as cause:
            raise HostError(
                f"{self._pins} cannot be removed: {cause.strerror}",
                remedy="mount it so that it can be written to",
            ) from cause
        strays.remove_filters()
        if not pinned:
            strays.remove_links()

    def _refuse_others(self) -> None:
        """Make sure that the directory is ours, or nobody's: all in it goes when we leave."""
        try:
            names = [path.name for path in self._pins.iterdir()] if self._pins.exists() else []
        except OSError as cause:
            raise HostError(f"{self._pins} cannot be listed: {cause.strerror}") from cause
        if names and not any(n == "control" or n.startswith(_VERSION) for n in names):
            raise HostError(
                f"{self._pins} is another program's directory: it holds {sorted(names)[0]}, and "
                "no map of ours",
                remedy="give --bpf-pins a directory that is for us alone; nothing was written",
            )

    def tidy(self, gone: list[int]) -> None:
        """Remove the links of devices that are no more."""
        for ifindex in gone:
            for direction in NAMES:
                self._link(ifindex, direction).unlink(missing_ok=True)

    def _link(self, ifindex: int, direction: Direction) -> Path:
        return self._pins / f"link-{ifindex}-{direction.name.lower()}"

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


class _Pinned:
    """A descriptor of a pinned program, for as long as it is needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> int:
        found = get_pinned(self._path)
        if found is None:
            raise HostError(
                f"{self._path} is gone", remedy="`ipmasq-agent cleanup` removes what is left"
            )
        self._descriptor = found
        return found

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _suitable_flows() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(max(memory // _MEMORY_OF_A_FLOW, _LEAST_FLOWS), _MOST_FLOWS)


def _on_bpf_fs(place: Path) -> None:
    """Make sure that a directory to be is on a bpf file system; mount the usual one if need be.

    Raises:
        HostError: it is not, and that cannot be mended.
    """
    parent = _existing(place)
    if _is_bpf_fs(parent):
        return
    usual = Path("/sys/fs/bpf")
    if not place.is_relative_to(usual):
        raise HostError(
            f"{parent} is not on a bpf file system",
            remedy=f"mount one: mount -t bpf bpf {place.parent}",
        )
    if _libc.mount(b"bpf", os.fsencode(usual), b"bpf", ctypes.c_ulong(0), b"mode=0700"):
        code = ctypes.get_errno()
        raise HostError(
            f"no bpf file system can be mounted on {usual}: {os.strerror(code)}",
            remedy="mount it on the host, and give it to the agent's container",
        )


def _existing(place: Path) -> Path:
    return next(path for path in (place, *place.parents) if path.exists())


def _is_bpf_fs(path: Path) -> bool:
    room = ctypes.create_string_buffer(256)  # struct statfs begins with f_type
    if _libc.statfs(os.fsencode(path), room):
        return False
    return int.from_bytes(room.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder) == _BPF_FS_MAGIC
