"""What masq.h shares with the agent, said a second time: sizes, offsets and numbers."""

from __future__ import annotations

IPV4, IPV6 = 0, 1
FAMILIES, GENERATIONS = 2, 2
SLOTS = FAMILIES * GENERATIONS

MASQUERADE, NON_MASQUERADE = 1, 2
MANAGED, ONLY_SOURCES, FIXED_SOURCES, RANDOM_FULLY = 1, 2, 4, 8
LOCAL_TOO, DRAINING = 1 << 5, 1 << 6

OUTWARD, INWARD = 0, 1
TRANSLATED, FROM_OUTSIDE, SEEN_OUTWARD, SEEN_INWARD = 1, 2, 4, 8
FIN_OUTWARD, FIN_INWARD, RESET = 16, 32, 64

MOST_OUTCOMES = 64
OUTCOMES = (
    "OUT_TRANSLATED",
    "OUT_KEPT_BY_POLICY",
    "OUT_KEPT_SOURCE",
    "OUT_KEPT_DEVICE",
    "OUT_KEPT_REPLY",
    "OUT_KEPT_SCOPE",
    "OUT_KEPT_DRAINING",
    "OUT_HANDED_OVER",
    "OUT_ERROR_TRANSLATED",
    "OUT_DROPPED_PORTS",
    "OUT_DROPPED_ADDRESS",
    "OUT_DROPPED_PROTOCOL",
    "OUT_DROPPED_ICMP",
    "OUT_DROPPED_FRAGMENT",
    "OUT_DROPPED_TABLE",
    "OUT_DROPPED_MALFORMED",
    "IN_TRANSLATED",
    "IN_ERROR_TRANSLATED",
    "IN_PASSED",
    "IN_DROPPED_MALFORMED",
    "FLOWS_TRANSLATED",
    "FLOWS_KEPT",
    "FLOWS_FROM_OUTSIDE",
)

PREFIX = "=I16s"  # struct prefix
SETTINGS = "=QII30HI"
DEVICE = "=16s16s2B2BBB2x"
FLOW_KEY = "=16s16sHHBBBB"  # ports as they are on the wire
FLOW = "=16sHHII"
FRAGMENT_KEY = "=16s16sIBBBB"
FRAGMENT = "=HHI"
SWEPT = "=5Q"

# Of each struct its size and the offset of each member, in bytes.
STRUCTS: dict[str, tuple[int, dict[str, int]]] = {
    "address": (16, {"word": 0}),
    "prefix": (20, {"length": 0, "address": 4}),
    "port_range": (4, {"first": 0, "last": 2}),
    "settings": (
        80,
        {"stamp": 0, "flags": 8, "port_ranges": 12, "ports": 16, "port_count": 76},
    ),
    "control": (4, {"generation": 0}),
    "device": (
        40,
        {"source": 0, "has_source": 32, "egress": 34, "link_header": 36, "loopback": 37, "pad": 38},
    ),
    "flow_key": (
        40,
        {
            "source": 0,
            "destination": 16,
            "source_port": 32,
            "destination_port": 34,
            "protocol": 36,
            "family": 37,
            "side": 38,
            "pad": 39,
        },
    ),
    "flow": (28, {"address": 0, "port": 16, "pad": 18, "state": 20, "expires": 24}),
    "fragment_key": (
        40,
        {
            "source": 0,
            "destination": 16,
            "id": 32,
            "protocol": 36,
            "family": 37,
            "side": 38,
            "pad": 39,
        },
    ),
    "fragment": (8, {"source_port": 0, "destination_port": 2, "expires": 4}),
    "swept": (40, {"removed": 0, "alive": 8, "translated": 24}),
}

# Of each map its key's and value's size.
MAPS: dict[str, tuple[int, int]] = {
    "decisions": (4, 4),
    "sources": (4, 4),
    "fixed": (4, 4),
    "settings": (4, 80),
    "control": (4, 4),
    "devices": (4, 40),
    "flows": (40, 28),
    "fragments": (40, 8),
    "counters": (4, 8),
    "swept": (4, 40),
}
