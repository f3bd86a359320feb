"""Keys, values and numbers of the eBPF maps, as ``masq.h`` has them.

All integers are in the order of the machine, addresses and ports of packets in that of
the network. A test compares sizes and offsets with those of the compiled program.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.model import PortRange

FAMILIES = (Family.IPV4, Family.IPV6)
GENERATIONS = 2
ADDRESS_SIZE = 16
PREFIX = struct.Struct("=I16s")
NUMBER = struct.Struct("=I")
VERDICT = struct.Struct("=B")
MAX_PORT_RANGES = 15
SETTINGS = struct.Struct(f"=QII{2 * MAX_PORT_RANGES}HI")
DEVICE = struct.Struct("=16s16s2B2BBB2x")
SWEPT = struct.Struct("=5Q")
FLOW_KEY = struct.Struct("=16s16s2s2sBBBx")
FLOW = struct.Struct("=16s2s2xII")
OUTWARD = 0

MASQUERADE, NON_MASQUERADE = 1, 2


class Flag(enum.IntFlag):
    """Bits of ``settings.flags``."""

    MANAGED = 1 << 0
    ONLY_SOURCES = 1 << 1
    FIXED_SOURCES = 1 << 2
    RANDOM_FULLY = 1 << 3
    ONLY_DEVICES = 1 << 4
    LOCAL_TOO = 1 << 5
    DRAINING = 1 << 6


class FlowState(enum.IntFlag):
    """Bits of ``flow.state`` that are asked for here."""

    FROM_OUTSIDE = 1 << 1
    RESET = 1 << 6


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
)
"""Names of the counters, in the order of ``enum outcome``."""
MOST_OUTCOMES = 64


class Settings(NamedTuple):
    """What is in force besides the tries."""

    stamp: int
    flags: Flag
    ports: tuple[PortRange, ...]


class Device(NamedTuple):
    """What the programs know of a device.

    Attributes:
        sources: family → the address that masquerading gives, or None.
        egress: family → bit n is set where it is a device of generation n's policy.
        link_header: bytes before the IP header.
        loopback: all that leaves here is for the node itself.
    """

    sources: tuple[int | None, int | None]
    egress: tuple[int, int]
    link_header: int
    loopback: bool = False


class Flow(NamedTuple):
    """A flow as packets on their way out had it before translation.

    Attributes:
        source, destination: addresses, each with its port.
        seconds: that it lives without a packet; of one that has expired 0 or less.
    """

    family: Family
    protocol: int
    source: tuple[int, int]
    destination: tuple[int, int]
    state: FlowState
    seconds: int


class Swept(NamedTuple):
    """What a sweep through the flows found; a number for each family.

    Attributes:
        removed: those that had expired.
        alive: those that have not.
        translated: of these, those that get another address or port.
    """

    removed: int
    alive: tuple[int, int]
    translated: tuple[int, int]


def slot(family: Family, generation: int) -> int:
    """Return the number of tries and settings."""
    return FAMILIES.index(family) * GENERATIONS + generation


def pack_address(family: Family, address: int) -> bytes:
    """Return an address as ``struct address``."""
    return address.to_bytes(family.bits // 8).ljust(ADDRESS_SIZE, b"\0")


def unpack_address(family: Family, data: bytes) -> int:
    """Return the address of a ``struct address``."""
    return int.from_bytes(data[: family.bits // 8])


def pack_prefix(family: Family, first: int, length: int) -> bytes:
    """Return a prefix as a key of a trie."""
    return PREFIX.pack(length, pack_address(family, first))


def unpack_prefix(family: Family, key: bytes) -> Prefix:
    """Return the prefix of a trie's key.

    Raises:
        KernelReadError: it has a length that no prefix of the family has.
    """
    length, data = PREFIX.unpack(key)
    if length > family.bits:
        raise KernelReadError(
            f"a trie of {family.value} prefixes has one of length {length}",
            remedy="another program writes our maps; `ipmasq-agent cleanup` removes them",
        )
    first = unpack_address(family, data)
    host_bits = family.bits - length
    return Prefix(family, first >> host_bits << host_bits, length)


def pack_settings(settings: Settings) -> bytes:
    """Return settings as their struct; at most ``MAX_PORT_RANGES`` ranges."""
    ends = [end for ports in settings.ports for end in ports]
    ends += [0] * (2 * MAX_PORT_RANGES - len(ends))
    count = sum(ports.size for ports in settings.ports)
    return SETTINGS.pack(settings.stamp, settings.flags, len(settings.ports), *ends, count)


def unpack_settings(data: bytes) -> Settings:
    """Return settings from their struct."""
    stamp, flags, ranges, *ends, _ = SETTINGS.unpack(data)
    pairs = zip(ends[::2], ends[1::2], strict=True)
    ports = tuple(PortRange(first, last) for first, last in pairs)
    return Settings(stamp, Flag(flags), ports[:ranges])


def pack_device(device: Device) -> bytes:
    """Return what is known of a device as its struct."""
    known = list(zip(FAMILIES, device.sources, strict=True))
    return DEVICE.pack(
        *(pack_address(family, address or 0) for family, address in known),
        *(address is not None for _, address in known),
        *device.egress,
        device.link_header,
        device.loopback,
    )


def unpack_device(data: bytes) -> Device:
    """Return what is known of a device from its struct."""
    four, six, has_four, has_six, *others = DEVICE.unpack(data)
    egress_four, egress_six, link_header, loopback = others
    return Device(
        (
            unpack_address(Family.IPV4, four) if has_four else None,
            unpack_address(Family.IPV6, six) if has_six else None,
        ),
        (egress_four, egress_six),
        link_header,
        bool(loopback),
    )


def unpack_flow(key: bytes, value: bytes, now: int) -> Flow | None:
    """Return the flow of an entry; None for the way back of one.

    Args:
        key: of the entry.
        value: of the entry.
        now: in seconds of CLOCK_MONOTONIC.
    """
    source, destination, port, other_port, protocol, number, side = FLOW_KEY.unpack(key)
    if side != OUTWARD:
        return None
    _, _, state, expires = FLOW.unpack(value)
    family = FAMILIES[number & 1]
    return Flow(
        family,
        protocol,
        (unpack_address(family, source), int.from_bytes(port)),
        (unpack_address(family, destination), int.from_bytes(other_port)),
        FlowState(state),
        expires - now,
    )


def unpack_swept(data: bytes) -> Swept:
    """Return what a sweep found from its struct."""
    removed, *counts = SWEPT.unpack(data)
    return Swept(removed, (counts[0], counts[1]), (counts[2], counts[3]))


def counter_index(family: Family, outcome: int) -> bytes:
    """Return the key of a counter."""
    return NUMBER.pack(FAMILIES.index(family) * MOST_OUTCOMES + outcome)


def summed(values: Iterable[bytes]) -> int:
    """Return the sum of a counter's values, one for each CPU."""
    return sum(struct.unpack("=Q", value)[0] for value in values)


def pack_numbers(numbers: Sequence[int]) -> bytes:
    """Return numbers as 32 bits each."""
    return struct.pack(f"={len(numbers)}I", *numbers)
