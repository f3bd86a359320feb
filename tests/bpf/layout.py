"""What masq.h shares with the agent, said a second time: sizes, offsets and numbers."""

from __future__ import annotations

IPV4, IPV6 = 0, 1
FAMILIES, GENERATIONS = 2, 2
SLOTS = FAMILIES * GENERATIONS

MASQUERADE, NON_MASQUERADE = 1, 2
MANAGED, ONLY_SOURCES, FIXED_SOURCES, RANDOM_FULLY = 1, 2, 4, 8
LOCAL_TOO, DRAINING, INDEXING = 1 << 5, 1 << 6, 1 << 7

FROM_OUTSIDE, SEEN_OUTWARD, SEEN_INWARD, CONFIRMED = 1, 2, 4, 8
FIN_OUTWARD, FIN_INWARD, RESET_OUTWARD = 16, 32, 64
INDEXED, TAKING, BY_FIXED = 128, 256, 512
RESET_INWARD, ACCEPTED = 1024, 2048
NUMBER_SHIFT = 16

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
    "IN_PASSED_FRAGMENT",
    "OUT_DROPPED_RACE",
    "OUT_KEPT_OWN",
    "FLOWS_OWN",
    "FLOWS_UNRECORDED",
    "FLOWS_COLLECTED",
    "FLOWS_SHED",
)

PREFIX = "=I16s"  # struct prefix
SETTINGS = "=QII30HI"
DEVICE = "=16s16s2B2BBB6s"
NODE = "=QQHH4x"
OWN_ADDRESS = "=16sI"
FLOW_KEY = "=16s16sHHBB2x"  # remote, then local end; ports as they are on the wire
FLOW = "=16sHHIQ"
KEPT = "=Q"
FRAGMENT_KEY = "=16s16sIBB2x"
FRAGMENT = "=HHI"
COLLECTION = "=II"
MOST_COLLECTED = 80

# Of each struct its size and the offset of each member, in bytes.
STRUCTS: dict[str, tuple[int, dict[str, int]]] = {
    "address": (16, {"word": 0}),
    "prefix": (20, {"length": 0, "address": 4}),
    "block": (64, {"codes": 0}),
    "block_to_write": (88, {"header": 0, "slot": 16, "number": 20, "block": 24}),
    "port_range": (4, {"first": 0, "last": 2}),
    "settings": (
        80,
        {"stamp": 0, "flags": 8, "port_ranges": 12, "ports": 16, "port_count": 76},
    ),
    "control": (4, {"generation": 0}),
    "node": (24, {"secret": 0, "mark": 16, "several": 18, "pad": 20}),
    "device": (
        44,
        {"source": 0, "has_source": 32, "egress": 34, "link_header": 36, "loopback": 37, "mac": 38},
    ),
    "own_address": (20, {"address": 0, "family": 16}),
    "flow_key": (
        40,
        {
            "remote": 0,
            "local": 16,
            "remote_port": 32,
            "local_port": 34,
            "protocol": 36,
            "family": 37,
            "pad": 38,
        },
    ),
    "flow": (32, {"address": 0, "port": 16, "pad": 18, "ifindex": 20, "life": 24}),
    "kept": (8, {"life": 0}),
    "begun": (
        72,
        {
            "key": 0,
            "owner": 40,
            "owner_port": 56,
            "pad": 58,
            "moment": 64,
        },
    ),
    "place": (20, {"address": 0, "port": 16, "pad": 18}),
    "fragment_key": (
        40,
        {
            "source": 0,
            "destination": 16,
            "id": 32,
            "protocol": 36,
            "family": 37,
            "pad": 38,
        },
    ),
    "fragment": (8, {"source_port": 0, "destination_port": 2, "expires": 4}),
    "collection": (8, {"of_kept": 0, "count": 4}),
    "tables": (16, {"relief_of_flows": 0, "relief_of_kept": 8}),
    "exhausted_key": (20, {"remote": 0, "remote_port": 16, "protocol": 18, "family": 19}),
}

# Of each map its key's and value's size.
MAPS: dict[str, tuple[int, int]] = {
    "decisions": (4, 4),
    "sources": (4, 4),
    "fixed": (4, 4),
    "outline": (4, 64),
    "details": (4, 4),
    "settings": (4, 80),
    "control": (4, 4),
    "node": (4, 24),
    "devices": (4, 44),
    "addresses": (20, 1),
    "flows": (40, 32),
    "kept": (40, 8),
    "moved": (40, 20),
    "fragments": (40, 8),
    "counters": (4, 8),
    "exhausted": (20, 8),
    "tables": (4, 16),
    "filters": (4, 4),
    "observers": (4, 4),
    "untold": (4, 8),
}
