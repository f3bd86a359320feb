"""Our programs on the devices of a node: loaded once, pinned, attached in both directions."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from ipmasq_agent.bpf import bpffs
from ipmasq_agent.bpf.held import HeldPins
from ipmasq_agent.bpf.maps import BpfMap, open_pinned
from ipmasq_agent.bpf.objects import (
    by_id,
    closing,
    get_pinned,
    maps_of,
    number_of,
    open_number,
    program_info,
    run_program,
)
from ipmasq_agent.bpf.syscall import BpfCommand
from ipmasq_agent.errors import HostError, NotPermitted
from ipmasq_agent.planes.bpf import clsact, layout, strays, tcx
from ipmasq_agent.planes.bpf.libbpf import load
from ipmasq_agent.planes.bpf.pins import PinDirectory
from ipmasq_agent.planes.placement import Placement

BYTECODE = Path(__file__).parent / "masq.bpf.o"
# One flow for each 32 KiB of memory; with 212 bytes a flow that is 1 in 150 of it.
_MEMORY_OF_A_FLOW = 32 * 1024
_MOST_FLOWS, _LEAST_FLOWS = 1 << 19, 1 << 14


class NodePrograms:
    """The programs of one node, and their maps; what the kernel refuses is a HostError.

    Maps and links are held by descriptors too: what somebody unpins goes on, and is pinned
    again.

    Args:
        pins: directory on a bpf file system, which is mounted where it is not.
        flows: capacity of the table of flows where it is made anew; None for what suits
            the machine's memory.
        tcx: attach by links of tcx where the kernel has it, else as filters of clsact.
    """

    def __init__(self, pins: Path, flows: int | None = None, *, tcx: bool = True) -> None:
        self.pins = PinDirectory(pins)
        self._flows = flows
        self._tcx = tcx
        self._held = HeldPins()

    def exist(self) -> bool:
        """Whether maps or programs of this layout are there, pinned or held.

        Raises:
            HostError: we may not look.
        """
        return bool(self._held) or bool(self.pins.names())

    def whole(self) -> bool:
        """Whether all maps and programs are pinned, and the programs use those very maps."""
        used: set[int] = set()
        for name in layout.PROGRAMS:
            program = get_pinned(self.pins.objects / name)
            if program is None:
                return False
            with closing(program):
                used.update(maps_of(program))
        return used <= self._hold_maps()

    def _hold_maps(self) -> set[int]:
        """Hold the maps that are pinned; return their numbers."""
        held = (self._held.hold(self.pins.objects / name) for name in layout.MAPS)
        return {number_of(descriptor) for descriptor in held if descriptor is not None}

    def find_map(self, name: str) -> BpfMap | None:
        """Open a map by its pin, or without one where we hold it, or may open it by number."""
        path = self.pins.objects / name
        found = open_pinned(path)
        if found is None and (held := self._held.copy(path)) is not None:
            found = BpfMap(held)
        if found is None:
            with self._maps_in_use() as in_use:
                if name in in_use:
                    return BpfMap(os.dup(in_use[name].fd))
        return found

    @contextmanager
    def _maps_in_use(self) -> Iterator[dict[str, BpfMap]]:
        """Open the maps that our loaded programs use; none where we may not (CAP_SYS_ADMIN).

        Where there are programs with different ones, those of the pinned programs are meant.
        """
        known: set[int] = set()
        found: dict[str, BpfMap] = {}
        with ExitStack() as stack:
            for program in self._loaded_programs():
                numbers = set(maps_of(program))
                if known and known.isdisjoint(numbers):
                    continue
                for number in numbers - known:
                    try:
                        one = BpfMap(open_number(BpfCommand.MAP_GET_FD_BY_ID, number))
                    except OSError:
                        continue
                    found[stack.enter_context(one).name] = one
                known |= numbers
            yield found

    def _loaded_programs(self) -> Iterator[int]:
        """Yield descriptors of our programs, pinned ones and then those on devices."""
        for name in layout.PROGRAMS:
            program = get_pinned(self.pins.objects / name)
            if program is not None:
                with closing(program):
                    yield program
        for number in strays.find(frozenset(), strict=False):
            try:
                with by_id(BpfCommand.PROG_GET_FD_BY_ID, number) as program:
                    yield program
            except OSError:
                continue

    def load(self) -> list[str]:
        """Load the programs anew, unless all is there and of this very version.

        Maps that are there, or that programs still use, are used again.

        Returns:
            The names of the maps that had to be made.

        Raises:
            HostError: they are not compiled, or the kernel refuses them.
        """
        digest = _digest_of_bytecode()
        if self.pins.loaded(digest) and self.whole():
            return []
        self.pins.provide()
        flows = self._flows or _suitable_flows()
        capacities = {layout.FLOWS: flows, layout.MOVED: flows, layout.KEPT: max(1, flows // 2)}
        for name in layout.MAPS:
            self._held.pin_again(self.pins.objects / name)
        with self._maps_in_use() as in_use:
            made = load(BYTECODE, self.pins.objects, capacities, in_use)
        self.pins.note_loaded(digest)
        self._hold_maps()
        return made

    def attach(self, ifindex: int) -> None:
        """Put both programs on a device, in place of those that we have there.

        One that has gone meanwhile needs none: word of that comes by itself, and what is left
        of it goes with the pass.
        """
        try:
            self._attach(ifindex)
        except HostError:
            if is_there(ifindex):
                raise

    def _attach(self, ifindex: int) -> None:
        for hook in layout.TcHook:
            with self._pinned(hook.value) as program:
                link = self.pins.link(ifindex, hook)
                self._held.pin_again(link)
                if self._tcx and tcx.attach(ifindex, hook, program, link):
                    self._held.hold(link)
                else:
                    clsact.attach(ifindex, hook, program)

    def complete(self, ifindex: int) -> bool:
        """Whether both programs are on a device, in the version that we would load.

        Their links are held from then on, whoever has made them.
        """
        if not self.pins.loaded(_digest_of_bytecode()):
            return False
        for hook in layout.TcHook:
            program = get_pinned(self.pins.objects / hook.value)
            if program is None:
                return False
            with closing(program):
                loaded, _ = program_info(program)
            link = self.pins.link(ifindex, hook)
            by_link = tcx.attached(ifindex, link)
            if loaded != (by_link or clsact.attached(ifindex, hook)):
                return False
            if by_link and link not in self._held:
                self._held.hold(link)
        return True

    def collect(self, table: str, keys: Sequence[bytes]) -> None:
        """Remove those of these flows of a table that have expired for good."""
        self._run(layout.COLLECT, table, keys)

    def index(self, keys: Sequence[bytes]) -> None:
        """Have these flows found also by what their packets are before translation.

        Of those for which there is no room the program counts ``flows_unrecorded``.
        """
        self._run(layout.INDEX, layout.FLOWS, keys)

    def _run(self, name: str, table: str, keys: Sequence[bytes]) -> None:
        with self._pinned(name) as program:
            for first in range(0, len(keys), layout.MOST_COLLECTED):
                some = keys[first : first + layout.MOST_COLLECTED]
                run_program(program, layout.pack_collection(table, some))

    def strays(self) -> bool:
        """Whether programs of ours are on devices that are not those that are pinned here.

        Raises:
            NotPermitted: it may not be seen.
            KernelReadError: the devices cannot be listed.
        """
        try:
            seen, own = bpffs.holds(self.pins.root), self._numbers()
        except PermissionError:
            seen, own = False, frozenset()
        # Where pins would be seen there are none: what has no name here is somebody else's.
        return any(True for _ in strays.find(own, strict=not seen))

    def remove_strays(self) -> None:
        """Take programs of ours that are not those pinned here off the devices.

        Raises:
            NotPermitted: some may not be taken off.
            HostError: the kernel refuses.
        """
        strays.remove(self._numbers(), strict=False)

    def _numbers(self) -> frozenset[int]:
        """Return the numbers of the pinned programs."""
        numbers = set()
        for hook in layout.TcHook:
            path = self.pins.objects / hook.value
            # Who may not use bpf(2) is told so also of what is not there.
            program = get_pinned(path) if path.exists() else None
            if program is not None:
                with closing(program):
                    numbers.add(program_info(program)[0])
        return frozenset(numbers)

    def remove(self) -> None:
        """Take our programs off all devices, and remove every pin.

        Raises:
            NotPermitted: some may be there that may not be seen, or not be taken off.
            HostError: the kernel refuses.
        """
        for link in self.pins.links():
            tcx.detach(link)
        for path in self._held:  # also what has lost its pin
            if self.pins.is_link(path) and (held := self._held.copy(path)) is not None:
                with closing(held):
                    tcx.detach_link(held)
        pinned = self.pins.root.exists()
        self.pins.remove()
        self.close()
        strays.remove(frozenset(), strict=not pinned)

    def close(self) -> None:
        """Hold nothing any more; what is pinned goes on."""
        self._held.let_go_of_all()

    def tidy(self, gone: list[int]) -> None:
        """Remove the links of devices that are no more."""
        for ifindex in gone:
            for hook in layout.TcHook:
                link = self.pins.link(ifindex, hook)
                self._held.let_go(link)
                link.unlink(missing_ok=True)

    @contextmanager
    def _pinned(self, name: str) -> Iterator[int]:
        """Open a pinned program for as long as it is needed."""
        found = get_pinned(self.pins.objects / name)
        if found is None:
            raise HostError(f"{self.pins.objects / name} was removed just now")
        with closing(found):
            yield found


def is_there(number: int) -> bool:
    """Whether a device is there, by its ifindex."""
    with suppress(OSError):
        return bool(socket.if_indextoname(number))
    return False


def has_programs(placement: Placement) -> bool:
    """Whether pins are here, or programs on devices that have lost theirs."""
    try:
        # Those who may not look at the pins look at the devices.
        return os.path.exists(placement.pins) or NodePrograms(Path(placement.pins)).strays()
    except NotPermitted:
        return True  # so that somebody tries to read them, and says why that fails


def _digest_of_bytecode() -> str:
    try:
        written = BYTECODE.stat()
    except FileNotFoundError as cause:
        raise HostError(
            f"the eBPF programs are not compiled: {BYTECODE} is missing",
            remedy="install clang, llvm and libbpf-dev, then this package again",
        ) from cause
    return _digest(BYTECODE, written.st_mtime_ns, written.st_size)


@lru_cache(maxsize=1)
def _digest(path: Path, written: int, size: int) -> str:
    """Return what tells this content from others; read again once the file is another one."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _suitable_flows() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(max(memory // _MEMORY_OF_A_FLOW, _LEAST_FLOWS), _MOST_FLOWS)
