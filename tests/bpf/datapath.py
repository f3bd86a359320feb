"""The programs under test, loaded once; each test puts its own policy into their maps."""

from __future__ import annotations

import ipaddress
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from platform import machine

from scapy.packet import Packet

from tests.bpf import layout
from tests.bpf.packets import NODE_MAC, Addresses, address, frame
from tests.bpf.syscall import Map, make_trie, pinned, possible_cpus, run_program
from tests.kernel import bpffs

SOURCES = Path(__file__).parents[2] / "ipmasq_agent/planes/bpf"
TABLES = ("kept", "flows")
PASS, DROP = -1, 2
MARK = 0x4D51
CLOCK_MONOTONIC_COARSE = 6  # include/uapi/linux/time.h
TABLE, SHED_AT_ONCE = 4096, 100
"""Room of both tables of flows as they are compiled here, and what goes at once to make some."""
PROGRAMS = ("outward", "inward", "collect", "index_flows")


def find_clang() -> list[str]:
    """Clang, told to compile for eBPF as the package does."""
    clang = shutil.which("clang") or shutil.which("clang-14")
    assert clang, "the eBPF programs are compiled by clang"
    return [clang, "-target", "bpf", "-mcpu=v3", f"-I/usr/include/{machine()}-linux-gnu"]


def compile_programs(place: Path, sources: Path = SOURCES) -> Path:
    """Compile a copy with small tables, and return the object."""
    copy = shutil.copytree(sources, place / "bpf")
    for header, large, small in (
        ("maps.h", "FLOWS_DEFAULT\t  (1 << 19)", f"FLOWS_DEFAULT {TABLE}"),
        ("maps.h", "KEPT_DEFAULT\t  (1 << 18)", f"KEPT_DEFAULT {TABLE}"),
        ("room.h", "SHED_AT_ONCE (1 << 13)", f"SHED_AT_ONCE {SHED_AT_ONCE}"),
    ):
        text = (copy / header).read_text()
        assert large in text
        (copy / header).write_text(text.replace(large, small))
    warnings = ("-Wall", "-Werror")
    done = subprocess.run(
        [*find_clang(), "-O2", "-g", *warnings, "-c", "masq.bpf.c", "-o", "masq.bpf.o"],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return copy / "masq.bpf.o"


@dataclass(frozen=True)
class Key:
    """What the packets of a flow are before translation, on their way out."""

    source: str
    sport: int
    destination: str
    dport: int
    protocol: int

    def packed(self, family: int, local: tuple[str, int] | None = None) -> bytes:
        """The key of its entry, with another local end where it is translated."""
        where, port = local or (self.source, self.sport)
        return struct.pack(
            layout.FLOW_KEY,
            *(address(self.destination), address(where)),
            *(socket.htons(self.dport), socket.htons(port)),
            *(self.protocol, family),
        )


@dataclass(frozen=True)
class Flow:
    """With which address and port it leaves, and how long it lives."""

    address: str
    port: int
    state: int
    expires: int
    translated: bool = False  # it is in the table of those with an address of the node

    @property
    def life(self) -> int:
        return self.state << 32 | self.expires


def _text(packed: bytes, family: int) -> str:
    size = 4 if family == layout.IPV4 else 16
    return str(ipaddress.ip_address(packed[:size]))


class Datapath:
    """The loaded programs and their maps, from the object at ``path``."""

    def __init__(self, path: Path, scratch: Path) -> None:
        mounted = scratch / "bpffs"
        with bpffs.private_mounts():
            bpffs.mount(mounted)
            done = subprocess.run(
                [
                    *("bpftool", "prog", "loadall", path, mounted / "programs"),
                    *("type", "classifier", "pinmaps", mounted / "maps"),
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            self.programs = {name: pinned(mounted / "programs" / name) for name in PROGRAMS}
            self.maps = {
                name: Map(pinned(mounted / "maps" / name), key, value)
                for name, (key, value) in layout.MAPS.items()
            }
        self._cpus = possible_cpus()
        counters = self.maps["counters"]
        self.maps["counters"] = Map(counters.descriptor, 4, 8 * self._cpus)
        self._tries = {
            (name, slot): make_trie(20, 16 if name == "fixed" else 1)
            for name in ("decisions", "sources", "fixed")
            for slot in range(layout.SLOTS)
        }
        for (name, slot), trie in self._tries.items():
            self.maps[name].put(struct.pack("=I", slot), struct.pack("=I", trie.descriptor))
        self.ifindex = 0

    def forget(self) -> None:
        """Make everything as it was after loading; inner tries stay, and are empty."""
        for name in ("flows", "kept", "moved", "fragments", "devices", "addresses", "exhausted"):
            self.maps[name].clear()
        for trie in self._tries.values():
            trie.clear()
        for slot in range(layout.SLOTS):
            self.maps["settings"].put(struct.pack("=I", slot), bytes(80))
        self.maps["tables"].put(bytes(4), bytes(16))
        self.maps["node"].put(bytes(4), struct.pack(layout.NODE, 1, 2, MARK, 0))
        for family in range(layout.FAMILIES):
            self.put_in_force(family, 0)
        for index in range(layout.FAMILIES * layout.MOST_OUTCOMES):
            self.maps["counters"].put(struct.pack("=I", index), bytes(8 * self._cpus))

    # -- what the agent writes ------------------------------------------------------------

    def policy(
        self,
        family: int,
        decisions: Mapping[str, int],
        *,
        generation: int = 0,
        sources: Iterable[str] = (),
        fixed: Mapping[str, str] | None = None,
        flags: int = layout.MANAGED,
        ports: Iterable[tuple[int, int]] = (),
    ) -> None:
        """Fill a generation of a family, and put it in force."""
        slot = family * layout.GENERATIONS + generation
        self._fill("decisions", slot, {net: bytes([v]) for net, v in decisions.items()})
        self._fill("sources", slot, dict.fromkeys(sources, b"\x01"))
        self._fill("fixed", slot, {net: address(to) for net, to in (fixed or {}).items()})
        flags |= layout.ONLY_SOURCES if sources else 0
        flags |= layout.FIXED_SOURCES if fixed else 0
        ranges = list(ports)
        numbers = [number for pair in ranges for number in pair]
        count = sum(last - first + 1 for first, last in ranges)
        numbers += [0] * (30 - len(numbers))
        value = struct.pack(layout.SETTINGS, 1, flags, len(ranges), *numbers, count)
        self.maps["settings"].put(struct.pack("=I", slot), value)
        self.put_in_force(family, generation)

    def put_in_force(self, family: int, generation: int) -> None:
        self.maps["control"].put(struct.pack("=I", family), struct.pack("=I", generation))

    def device(
        self,
        addresses: Addresses,
        *,
        source: str | None = "node",
        egress: int = 0b11,
        link_header: int = 14,
        loopback: bool = False,
        mac: bytes = NODE_MAC,
    ) -> None:
        """Say about the test's device what the agent says; ``source`` names an address."""
        held = [bytes(16), bytes(16)]
        has, bits = [0, 0], [0, 0]
        if source is not None:
            held[addresses.number] = address(getattr(addresses, source))
            has[addresses.number] = 1
        bits[addresses.number] = egress
        value = struct.pack(layout.DEVICE, *held, *has, *bits, link_header, loopback, mac)
        self.maps["devices"].put(struct.pack("=I", self.ifindex), value)

    def _fill(self, name: str, slot: int, entries: Mapping[str, bytes]) -> None:
        trie = self._tries[name, slot]
        trie.clear()
        for text, value in entries.items():
            net = ipaddress.ip_network(text)
            trie.put(struct.pack(layout.PREFIX, net.prefixlen, address(str(net[0]))), value)

    # -- packets --------------------------------------------------------------------------

    def own(self, family: int, *addresses: str) -> None:
        """Say which addresses the node has."""
        for one in addresses:
            key = struct.pack(layout.OWN_ADDRESS, address(one), family)
            self.maps["addresses"].put(key, b"\0")

    def several(self) -> None:
        """Say that more than one device has the programs."""
        self.maps["node"].put(bytes(4), struct.pack(layout.NODE, 1, 2, MARK, 1))

    def out(self, packet: Packet | bytes) -> bytes | None:
        """Send a packet out of the device: the frame that leaves, or None where it is dropped."""
        return self._run("outward", packet)

    def back(self, packet: Packet | bytes) -> bytes | None:
        """Let a packet come in through the device: the frame that goes on, or None."""
        return self._run("inward", packet)

    def sweep(self) -> int:
        """Offer every flow for removal, as if all had expired; return how many went."""
        return sum(self._of_flows("collect", name) for name in ("flows", "kept"))

    def index(self) -> None:
        """Have all flows found by what they are before translation too."""
        self._of_flows("index_flows", "flows")

    def _of_flows(self, program: str, name: str) -> int:
        """Run a program on all flows of a table; return the sum of what it returned."""
        total, keys = 0, list(self.maps[name].entries())
        for first in range(0, len(keys), layout.MOST_COLLECTED):
            some = keys[first : first + layout.MOST_COLLECTED]
            order = struct.pack(layout.COLLECTION, name == "kept", len(some))
            packet = order + b"".join(some)
            total += run_program(self.programs[program], packet, self.ifindex)[0]
        return total

    def _run(self, program: str, packet: Packet | bytes) -> bytes | None:
        data = packet if isinstance(packet, bytes) else frame(packet)
        verdict, after = run_program(self.programs[program], data, self.ifindex)
        assert verdict in (PASS, DROP)
        assert len(after) == len(data)
        return after if verdict == PASS else None

    # -- what the programs wrote ----------------------------------------------------------

    def counted(self, family: int) -> dict[str, int]:
        """What was counted for a family, without what was not."""
        found = {}
        for number, name in enumerate(layout.OUTCOMES):
            index = struct.pack("=I", family * layout.MOST_OUTCOMES + number)
            value = self.maps["counters"].get(index)
            assert value is not None
            if total := sum(struct.unpack(f"={self._cpus}Q", value)):
                found[name] = total
        return found

    def flows(self, family: int) -> dict[Key, Flow]:
        """All flows of a family."""
        return {key: flow for name in TABLES for key, flow in self._table(name, family).items()}

    def _table(self, name: str, family: int) -> dict[Key, Flow]:
        found = {}
        for key, value in self.maps[name].entries().items():
            remote, local, dport, lport, protocol, of = struct.unpack(layout.FLOW_KEY, key)
            if of != family:
                continue
            place = _text(local, family), socket.ntohs(lport)
            owner = place
            if name == "kept":
                (life,) = struct.unpack(layout.KEPT, value)
            else:
                packed, port, _, _, life = struct.unpack(layout.FLOW, value)
                owner = _text(packed, family), socket.ntohs(port)
            flow = Flow(*place, life >> 32, life & 0xFFFFFFFF, name == "flows")
            found[Key(*owner, _text(remote, family), socket.ntohs(dport), protocol)] = flow
        return found

    def port(self, family: Addresses, source: str) -> int:
        """The port that an address's only flow is translated to."""
        (found,) = [f for key, f in self.flows(family.number).items() if key.source == source]
        assert found.translated
        return found.port

    def alive(self, family: int) -> dict[Key, Flow]:
        """The flows of a family that have not expired."""
        found: dict[Key, Flow] = {}
        for name in TABLES:
            flows = self._table(name, family).items()
            found |= {key: flow for key, flow in flows if flow.expires > now()}
        return found

    def flow(self, family: int, key: Key) -> Flow | None:
        return self.flows(family).get(key)

    def put_flow(self, family: int, key: Key, flow: Flow) -> None:
        if not flow.translated:
            self.maps["kept"].put(key.packed(family), struct.pack(layout.KEPT, flow.life))
            return
        owner = address(key.source), socket.htons(key.sport)
        value = struct.pack(layout.FLOW, *owner, 0, self.ifindex, flow.life)
        self.maps["flows"].put(key.packed(family, (flow.address, flow.port)), value)

    def let_expire(self, family: int, protocol: int | None = None, *, since: int = 1) -> None:
        """Make every flow of a family, or of one protocol there, one that has expired."""
        for key, flow in self.flows(family).items():
            if protocol is None or key.protocol == protocol:
                self.put_flow(family, key, replace(flow, expires=now() - since))


def now() -> int:
    """Seconds by the clock of the programs, which lags some ms behind the exact one."""
    return int(time.clock_gettime(CLOCK_MONOTONIC_COARSE))
