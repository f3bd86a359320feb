"""Names, keys, values and numbers that the programs and the agent share, as ``masq.h`` has them.

All integers are in the order of the machine, addresses and ports of packets in that of
the network. A test compares sizes and offsets with those of the compiled program.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ipmasq_agent.planes.usage import Exhausted
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import EgressDevice
from ipmasq_agent.policy.flows import ICMP, End, Flow
from ipmasq_agent.policy.model import PortRange
from ipmasq_agent.policy.ports import IDENTIFIERS, PortPool, PortUse

FAMILIES = (Family.IPV4, Family.IPV6)
GENERATIONS = 2
ADDRESS_SIZE = 16
MAX_PORT_RANGES = 15
MASQUERADE, NON_MASQUERADE = 1, 2
"""Values of the trie of decisions, a byte each."""
TRIES = {"decisions": 1, "sources": 1, "fixed": ADDRESS_SIZE}
"""Maps of tries, one trie a slot, and the size of their values."""
LAYOUT = 2
"""Another number wherever an older agent would misread the maps, or a newer one these."""
FLOWS, KEPT, MOVED, FILTERS, NODE = "flows", "kept", "moved", "filters", "node"
CONTROL, SETTINGS, DEVICES, OWN = "control", "settings", "devices", "addresses"
OUTLINE, DETAILS = "outline", "details"
OBSERVERS, UNTOLD = "observers", "untold"
MOST_OBSERVERS = 4
INNER = (*TRIES, DETAILS)
"""Maps of maps, with one for each slot; ``DETAILS`` for those of IPv4 alone."""
MAPS = (
    *(CONTROL, SETTINGS, *INNER, OUTLINE, DEVICES, NODE, OWN),
    *(FLOWS, KEPT, MOVED, "fragments", "counters", "exhausted", "tables", FILTERS),
    *(OBSERVERS, UNTOLD),
)
"""Each is pinned by its name."""
COLLECT, INDEX, WRITE = "collect", "index_flows", "write_block"
"""Programs that are run and not attached."""
NUMBER = struct.Struct("=I")
"""A slot, an ifindex, the number of a family, a descriptor... as key or value."""
_SETTINGS = struct.Struct(f"=QII{2 * MAX_PORT_RANGES}HI")
_DEVICE = struct.Struct("=16s16s2B2BBB6s")
_OWN_ADDRESS = struct.Struct("=16sI")
_NODE = struct.Struct("=QQHH4x")
_COLLECTION = struct.Struct("=II")
MOST_COLLECTED = 80
"""How many flows ``collect`` and ``index_flows`` are told of at once."""
_FLOW_KEY = struct.Struct("=16s16s2s2sBB2x")  # its remote end, then its local one
_FLOW = struct.Struct("=16s2s2xIQ")
_KEPT = struct.Struct("=Q")
_BEGUN = struct.Struct("=8x40s16s2s6xQ")  # behind the header of a ring
BEGUN_SIZE = _BEGUN.size - 8
_PORTS_AT, _FAMILY_AT = 32, 37  # of a flow's key
TABLES = {"flows": _FLOW.size, "kept": _KEPT.size}
"""The tables of flows: those with an address of the node and the others; the size of values."""
_EXHAUSTED = struct.Struct("=16s2sBB")
GRACE = 2
"""Seconds from when a flow expires until it may be removed."""
_BLOCK_TO_WRITE = struct.Struct("=16xII64s")


class TcHook(enum.Enum):
    """Where at a device packets meet a program of ours; the value is the program's name.

    In this order programs are attached: what comes in is recorded before what goes out is
    translated.
    """

    INGRESS = "inward"
    EGRESS = "outward"


PROGRAMS = (*(hook.value for hook in TcHook), COLLECT, INDEX, WRITE)
"""Each is pinned by its name."""


class SettingsFlag(enum.IntFlag):
    """Bits of ``settings.flags``."""

    MANAGED = 1 << 0
    ONLY_SOURCES = 1 << 1
    FIXED_SOURCES = 1 << 2
    RANDOM_FULLY = 1 << 3
    ONLY_DEVICES = 1 << 4
    LOCAL_TOO = 1 << 5
    DRAINING = 1 << 6
    INDEXING = 1 << 7


class FlowState(enum.IntFlag):
    """Bits of a flow's state that are asked for here, or set."""

    FROM_OUTSIDE = 1 << 0
    SEEN_OUTWARD = 1 << 1
    SEEN_INWARD = 1 << 2
    CONFIRMED = 1 << 3
    FIN_OUTWARD = 1 << 4
    FIN_INWARD = 1 << 5
    RESET_OUTWARD = 1 << 6
    TAKING = 1 << 8
    BY_FIXED = 1 << 9
    RESET_INWARD = 1 << 10
    RESET = RESET_OUTWARD | RESET_INWARD


_BOTH_WAYS = FlowState.SEEN_OUTWARD | FlowState.SEEN_INWARD

OUTCOMES = (
    "out_translated",
    "out_kept_by_policy",
    "out_kept_source",
    "out_kept_device",
    "out_kept_reply",
    "out_kept_scope",
    "out_kept_draining",
    "out_handed_over",
    "out_error_translated",
    "out_dropped_ports",
    "out_dropped_address",
    "out_dropped_protocol",
    "out_dropped_icmp",
    "out_dropped_fragment",
    "out_dropped_table",
    "out_dropped_malformed",
    "in_translated",
    "in_error_translated",
    "in_passed",
    "in_dropped_malformed",
    "flows_translated",
    "flows_kept",
    "flows_from_outside",
    "in_passed_fragment",
    "out_dropped_race",
    "out_kept_own",
    "flows_own",
    "flows_unrecorded",
    "flows_collected",
    "flows_shed",
)
"""Names of the counters, in the order of ``enum outcome``."""
MOST_OUTCOMES = 64


class SlotSettings(NamedTuple):
    """What is in force besides the tries."""

    stamp: int = 0
    flags: SettingsFlag = SettingsFlag(0)
    ports: tuple[PortRange, ...] = ()


class DeviceEntry(NamedTuple):
    """What the programs know of a device.

    Attributes:
        device: as it was when they were told.
        egress: family → bit n is set where it is a device of generation n's policy.
    """

    device: EgressDevice
    egress: Mapping[Family, int]


class TrackedFlow(NamedTuple):
    """A flow as the tables have it.

    Attributes:
        seconds: that it lives without a packet; of one that has expired 0 or less.
    """

    flow: Flow
    state: FlowState
    seconds: int


def slot(family: Family, generation: int) -> int:
    """Return the number of tries and settings."""
    return FAMILIES.index(family) * GENERATIONS + generation


def pack_address(family: Family, address: int) -> bytes:
    """Return an address as ``struct address``."""
    return address.to_bytes(family.bits // 8).ljust(ADDRESS_SIZE, b"\0")


def unpack_address(family: Family, data: bytes) -> int:
    """Return the address of a ``struct address``."""
    return int.from_bytes(data[: family.bits // 8])


def pack_settings(settings: SlotSettings) -> bytes:
    """Return settings as their struct; at most ``MAX_PORT_RANGES`` ranges."""
    ends = [end for ports in settings.ports for end in ports]
    ends += [0] * (2 * MAX_PORT_RANGES - len(ends))
    count = sum(ports.size for ports in settings.ports)
    return _SETTINGS.pack(settings.stamp, settings.flags, len(settings.ports), *ends, count)


def unpack_settings(data: bytes) -> SlotSettings:
    """Return settings from their struct."""
    stamp, flags, ranges, *ends, _ = _SETTINGS.unpack(data)
    pairs = zip(ends[::2], ends[1::2], strict=True)
    ports = tuple(PortRange(first, last) for first, last in pairs)
    return SlotSettings(stamp, SettingsFlag(flags), ports[:ranges])


def pack_device(entry: DeviceEntry) -> bytes:
    """Return what is known of a device as its struct, without its number."""
    device, egress = entry
    return _DEVICE.pack(
        *(pack_address(family, device.sources.get(family, 0)) for family in FAMILIES),
        *(family in device.sources for family in FAMILIES),
        *(egress.get(family, 0) for family in FAMILIES),
        device.link_header,
        device.loopback,
        device.mac,
    )


def unpack_device(number: int, data: bytes) -> DeviceEntry:
    """Return what is known of the device with a number from its struct."""
    *of_families, link_header, loopback, mac = _DEVICE.unpack(data)
    addresses, has, egress = of_families[:2], of_families[2:4], of_families[4:]
    sources = {
        family: unpack_address(family, address)
        for family, address, there in zip(FAMILIES, addresses, has, strict=True)
        if there
    }
    device = EgressDevice(number, sources, link_header, bool(loopback), mac)
    return DeviceEntry(device, dict(zip(FAMILIES, egress, strict=True)))


def pack_own(family: Family, address: int) -> bytes:
    """Return an address of the node as its struct."""
    return _OWN_ADDRESS.pack(pack_address(family, address), FAMILIES.index(family))


def unpack_own(data: bytes) -> tuple[Family, int]:
    """Return an address of the node from its struct."""
    address, number = _OWN_ADDRESS.unpack(data)
    family = FAMILIES[number & 1]
    return family, unpack_address(family, address)


def pack_node(secret: int, mark: int) -> bytes:
    """Return what is of the node as its struct.

    Args:
        secret: 128 bits that give ports to flows; who knows it could guess them.
        mark: not 0; in ``tc_index`` of packets that one of our devices has dealt with.
    """
    return _NODE.pack(secret & (1 << 64) - 1, secret >> 64, mark, 0)


def with_several(node: bytes, several: bool) -> bytes:
    """Return what is of the node, and whether several of its devices have the programs."""
    *others, _ = _NODE.unpack(node)
    return _NODE.pack(*others, several)


class FlowEnd(NamedTuple):
    """An address and a port, as packets have them."""

    address: bytes
    port: bytes


def flow_end(family: Family, address: int, port: int) -> FlowEnd:
    """Return an end of a flow as the programs know it."""
    return FlowEnd(pack_address(family, address), port.to_bytes(2))


def pack_flow_key(family: Family, protocol: int, remote: FlowEnd, local: FlowEnd) -> bytes:
    """Return the key of a flow whose packets leave from ``local``."""
    ends = remote.address, local.address, remote.port, local.port
    return _FLOW_KEY.pack(*ends, protocol, FAMILIES.index(family))


def pack_flow(owner: FlowEnd, ifindex: int, state: FlowState, expires: int) -> bytes:
    """Return the entry of a flow; it expires at a second of CLOCK_MONOTONIC, as of all here."""
    return _FLOW.pack(*owner, ifindex, state << 32 | expires)


def pack_kept(state: FlowState, expires: int) -> bytes:
    """Return the entry of a flow that keeps its source; as ``pack_flow``."""
    return _KEPT.pack(state << 32 | expires)


def unpack_flow(table: str, key: bytes, value: bytes, now: int) -> TrackedFlow:
    """Return a flow by its entry in a table; one that keeps its source comes from there."""
    if table == FLOWS:
        owner, port, _, life = _FLOW.unpack(value)
    else:
        _, owner, _, port, *_ = _FLOW_KEY.unpack(key)
        (life,) = _KEPT.unpack(value)
    state, expires = divmod(life, 1 << 32)
    flow = _flow(key, owner, port, FlowState(state))
    return TrackedFlow(flow, FlowState(state), 0 if state & FlowState.TAKING else expires - now)


def _flow(key: bytes, owner: bytes, owner_port: bytes, state: FlowState) -> Flow:
    """Return a flow by its key and what its packets come from."""
    remote, local, remote_port, local_port, protocol, number = _FLOW_KEY.unpack(key)
    family = FAMILIES[number & 1]
    pod, far, left_as = (
        End(unpack_address(family, address), int.from_bytes(port))
        for address, port in ((owner, owner_port), (remote, remote_port), (local, local_port))
    )
    both_ways = state & _BOTH_WAYS == _BOTH_WAYS
    if state & FlowState.FROM_OUTSIDE:
        return Flow(family, protocol, far, pod, far, pod, both_ways)
    return Flow(family, protocol, pod, far, left_as, far, both_ways)


_NEW = FlowState(0)


def unpack_begun(records: bytes) -> Iterator[tuple[int, Flow]]:
    """Yield the flows that began, each with the moment, in ns of CLOCK_MONOTONIC."""
    for key, owner, port, moment in _BEGUN.iter_unpack(records):
        yield moment, _flow(key, owner, port, _NEW)


def has_port(key: bytes, port: int) -> bool:
    """Whether one end of a flow has a port, as its packets leave or come in."""
    packed = port.to_bytes(2)
    return packed in (key[_PORTS_AT : _PORTS_AT + 2], key[_PORTS_AT + 2 : _PORTS_AT + 4])


def families(keys: bytes) -> bytes:
    """Return the number of the family of each flow whose keys these are, one after the other."""
    return keys[_FAMILY_AT :: _FLOW_KEY.size]


def expiries(table: str, values: bytes) -> list[int]:
    """Return when each flow of a table expires, in seconds of CLOCK_MONOTONIC.

    A loop of its own, as there may be half a million.
    """
    words = TABLES[table] // 8  # the last one is the life
    return [life & 0xFFFFFFFF for life in memoryview(values).cast("Q")[words - 1 :: words]]


SharedPorts = tuple[bytes, bytes, bytes, int, int]
"""Remote and local address, remote port, protocol and family of a flow, as its key has them."""


def shared_ports(keys: bytes, values: bytes, now: int) -> Iterator[SharedPorts]:
    """Yield for each flow that lives and had another address or port what shares its port."""
    entries = zip(_FLOW_KEY.iter_unpack(keys), _FLOW.iter_unpack(values), strict=True)
    for (remote, local, port, local_port, protocol, family), (owner, its, _, life) in entries:
        if life & 0xFFFFFFFF > now and (local, local_port) != (owner, its):
            yield remote, local, port, protocol, family


def unpack_shared(shared: SharedPorts, pools: Sequence[PortPool]) -> PortUse:
    """Return what shares a port; ``pools`` has the ports of each family."""
    remote, local, port, protocol, number = shared
    family = FAMILIES[number & 1]
    reached = End(unpack_address(family, remote), int.from_bytes(port))
    pool = IDENTIFIERS if protocol in ICMP else pools[number & 1]
    return PortUse(family, protocol, unpack_address(family, local), reached, pool)


def of_families(wanted: Collection[Family], keys: bytes) -> list[bytes]:
    """Return the keys of those flows that are of some families."""
    numbers, size = {FAMILIES.index(family) for family in wanted}, _FLOW_KEY.size
    starts = (n * size for n, number in enumerate(families(keys)) if number in numbers)
    return [keys[start : start + size] for start in starts]


def pack_collection(table: str, keys: Sequence[bytes]) -> bytes:
    """Return what lists flows of a table to a program; at most ``MOST_COLLECTED`` of them."""
    return _COLLECTION.pack(table == "kept", len(keys)) + b"".join(keys)


def unpack_exhausted(key: bytes, value: bytes) -> Exhausted:
    """Return a destination to which no port was free."""
    remote, port, protocol, number = _EXHAUSTED.unpack(key)
    family = FAMILIES[number & 1]
    (times,) = _KEPT.unpack(value)
    address = unpack_address(family, remote)
    return Exhausted(family, address, int.from_bytes(port), protocol, times)


def pack_block(slot: int, number: int, codes: bytes | bytearray) -> bytes:
    """Return the packet by which ``write_block`` is told of a block of a slot's bitmap."""
    return _BLOCK_TO_WRITE.pack(slot, number, codes)


def summed(values: Iterable[bytes]) -> int:
    """Return the sum of a counter's values, one for each CPU."""
    return sum(struct.unpack("=Q", value)[0] for value in values)
