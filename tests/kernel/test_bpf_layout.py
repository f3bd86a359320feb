"""What Python writes into the maps lies where the compiled programs look for it."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from functools import cache
from typing import Any

from ipmasq_agent.bpf import lpm
from ipmasq_agent.planes.bpf import layout
from ipmasq_agent.planes.bpf.bitmap import ASK_PART, ASK_TRIE, BLOCK_SIZE, PARTS
from ipmasq_agent.planes.bpf.layout import FlowState, SettingsFlag, SlotSettings
from ipmasq_agent.planes.bpf.programs import BYTECODE
from ipmasq_agent.planes.usage import Exhausted
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import EgressDevice
from ipmasq_agent.policy.flows import End, Flow
from ipmasq_agent.policy.model import PortRange

HEADER = BYTECODE.with_name("masq.h").read_text()


@cache
def types() -> dict[tuple[str, str], dict[str, Any]]:
    """The types of the compiled programs, as bpftool reads them, by kind and name."""
    argv = ["bpftool", "--json", "btf", "dump", "file", str(BYTECODE)]
    dumped = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    return {(one["kind"], one["name"]): one for one in dumped["types"]}


def offsets(name: str) -> dict[str, int]:
    members = types()["STRUCT", name]["members"]
    return {member["name"]: member["bits_offset"] // 8 for member in members}


def size(name: str) -> int:
    return int(types()["STRUCT", name]["size"])


def test_a_prefix() -> None:
    # The compiler leaves it out of BTF, as no map's type names it: its two members are in a row.
    assert re.search(r"struct prefix \{\s+__u32 length;.*\s+struct address address;\s+\};", HEADER)
    at = {"length": 0, "address": 4}
    for family, address in ((Family.IPV4, 10 << 24), (Family.IPV6, 0xFD << 120)):
        key = lpm.pack_keys(family, [(address, 8)], layout.ADDRESS_SIZE)
        assert len(key) == 4 + size("address")
        assert struct.unpack_from("=I", key, at["length"]) == (8,)
        assert key[at["address"] :] == address.to_bytes(family.bits // 8).ljust(16, b"\0")


def test_a_block_to_write() -> None:
    # As with a prefix: it is of local variables alone.
    members = r"header\[16\];\s+__u32 slot;\s+__u32 number;\s+struct block block;\s+"
    assert re.search(rf"struct block_to_write {{\s+__u8 {members}}};", HEADER)
    assert size("block") == BLOCK_SIZE
    told = layout.pack_block(1, 1 << 16, bytes(range(BLOCK_SIZE)))
    assert told[:16] == bytes(16)
    assert struct.unpack_from("=II", told, 16) == (1, 1 << 16)
    assert told[24:] == bytes(range(BLOCK_SIZE))


def test_codes_have_the_same_numbers() -> None:
    assert f"#define ASK_TRIE {ASK_TRIE}\n#define ASK_PART {ASK_PART} " in HEADER
    assert f"#define PARTS\t {PARTS}\n" in HEADER


def test_settings() -> None:
    at = offsets("settings")
    ports = (PortRange(1024, 2047), PortRange(3000, 3000))
    told = layout.pack_settings(SlotSettings(0x1122334455667788, SettingsFlag.DRAINING, ports))
    assert len(told) == size("settings")
    assert struct.unpack_from("=Q", told, at["stamp"]) == (0x1122334455667788,)
    assert struct.unpack_from("=I", told, at["flags"]) == (SettingsFlag.DRAINING,)
    assert struct.unpack_from("=I", told, at["port_ranges"]) == (2,)
    assert struct.unpack_from("=5H", told, at["ports"]) == (1024, 2047, 3000, 3000, 0)
    assert struct.unpack_from("=I", told, at["port_count"]) == (1025,)
    assert f"#define MAX_PORT_RANGES {layout.MAX_PORT_RANGES}\n" in HEADER


def test_a_device() -> None:
    at = offsets("device")
    device = EgressDevice(2, {Family.IPV4: 7}, 14, True, b"abcdef")
    told = layout.pack_device(layout.DeviceEntry(device, {Family.IPV4: 1, Family.IPV6: 2}))
    assert len(told) == size("device")
    assert told[at["source"] :][:20] == (7).to_bytes(4) + bytes(16)
    assert told[at["has_source"] :][:2] == bytes([1, 0])
    assert told[at["egress"] :][:2] == bytes([1, 2])
    assert told[at["link_header"]] == 14
    assert told[at["loopback"]] == 1
    assert told[at["mac"] :][:6] == b"abcdef"


def test_what_is_of_the_node() -> None:
    at = offsets("node")
    told = layout.pack_node(5 | 6 << 64, 7)
    assert len(told) == size("node")
    assert struct.unpack_from("=QQ", told, at["secret"]) == (5, 6)
    assert struct.unpack_from("=H", told, at["mark"]) == (7,)
    several = layout.with_several(told, True)
    assert struct.unpack_from("=H", several, at["several"]) == (1,)
    assert layout.with_several(several, False) == told


REMOTE, LOCAL, POD = (0xFD << 120 | n for n in range(3))


def _key() -> bytes:
    of = offsets("flow_key")
    key = bytearray(size("flow_key"))
    for name, data in (
        ("remote", REMOTE.to_bytes(16)),
        ("local", LOCAL.to_bytes(16)),
        ("remote_port", (80).to_bytes(2)),
        ("local_port", (4000).to_bytes(2)),
        ("protocol", bytes([6])),
        ("family", bytes([1])),
    ):
        key[of[name] : of[name] + len(data)] = data
    return bytes(key)


def test_a_flow_with_an_address_of_the_node() -> None:
    at = offsets("flow")
    value = bytearray(size("flow"))
    struct.pack_into("=16s", value, at["address"], POD.to_bytes(16))
    struct.pack_into(">H", value, at["port"], 1000)
    ends = End(POD, 1000), End(REMOTE, 80), End(LOCAL, 4000), End(REMOTE, 80)
    flow = Flow(Family.IPV6, 6, *ends, established=True)
    told = layout.TrackedFlow(flow, FlowState.SEEN_OUTWARD | FlowState.SEEN_INWARD, 5)
    struct.pack_into("=Q", value, at["life"], told.state << 32 | 105)
    assert layout.unpack_flow("flows", _key(), bytes(value), 100) == told
    struct.pack_into("=Q", value, at["life"], FlowState.TAKING << 32 | 105)
    assert layout.unpack_flow("flows", _key(), bytes(value), 100).seconds == 0


def test_a_flow_that_keeps_its_source() -> None:
    value = struct.pack("=Q", FlowState.FROM_OUTSIDE << 32 | 105)
    assert len(value) == size("kept")
    ends = End(REMOTE, 80), End(LOCAL, 4000), End(REMOTE, 80), End(LOCAL, 4000)
    told = layout.TrackedFlow(Flow(Family.IPV6, 6, *ends), FlowState.FROM_OUTSIDE, 5)
    assert layout.unpack_flow("kept", _key(), value, 100) == told


def test_states_are_the_same_bits() -> None:
    for state in FlowState:
        bit = state.value.bit_length() - 1
        assert re.search(rf"#define {state.name}\s+\(1 << {bit}\)", HEADER)


def test_columns_of_flows() -> None:
    of_key, of_value = offsets("flow_key"), offsets("flow")
    keys, values = bytearray(3 * size("flow_key")), bytearray(3 * size("flow"))
    for number, (family, owner, expires) in enumerate(
        ((1, b"xx", 105), (0, b"xx", 99), (0, b"", 101))
    ):
        at, place = number * size("flow_key"), number * size("flow")
        keys[at + of_key["family"]] = family
        values[place : place + len(owner)] = owner
        struct.pack_into("=Q", values, place + of_value["life"], 3 << 32 | expires)
    assert list(layout.families(bytes(keys))) == [1, 0, 0]
    assert layout.expiries("flows", bytes(values)) == [105, 99, 101]
    assert len(list(layout.shared_ports(bytes(keys), bytes(values), 100))) == 1
    lives = struct.pack("=2Q", 3 << 32 | 7, 8)
    assert layout.expiries("kept", lives) == [7, 8]
    assert {"flows": size("flow"), "kept": size("kept")} == layout.TABLES
    life_h = BYTECODE.with_name("life.h").read_text()
    assert re.search(rf"#define GRACE\s+{layout.GRACE}\n", life_h)


def test_a_collection() -> None:
    # Nor is this one in BTF.
    assert re.search(r"struct collection \{\s+__u32 of_kept;.*\s+__u32 count;\s+\};", HEADER)
    keys = [bytes([n]) * size("flow_key") for n in range(2)]
    assert layout.pack_collection("kept", keys) == struct.pack("=2I", 1, 2) + b"".join(keys)
    assert layout.pack_collection("flows", keys[:1]) == struct.pack("=2I", 0, 1) + keys[0]
    assert f"#define MOST_COLLECTED {layout.MOST_COLLECTED} " in HEADER


def test_an_exhausted_destination() -> None:
    at = offsets("exhausted_key")
    key = bytearray(size("exhausted_key"))
    key[at["remote"] : at["remote"] + 16] = (0xFD << 120 | 1).to_bytes(16)
    key[at["remote_port"] : at["remote_port"] + 2] = (443).to_bytes(2)
    key[at["protocol"]], key[at["family"]] = 6, 1
    found = layout.unpack_exhausted(bytes(key), struct.pack("=Q", 9))
    assert found == Exhausted(Family.IPV6, 0xFD << 120 | 1, 443, 6, 9)


def test_verdicts_and_outcomes_have_the_same_numbers() -> None:
    outcomes = [value["name"].lower() for value in types()["ENUM", "outcome"]["values"]]
    assert outcomes == [*layout.OUTCOMES, "outcomes"]
    assert f"#define MOST_OUTCOMES {layout.MOST_OUTCOMES}\n" in HEADER
    assert (
        f"MASQUERADE = {layout.MASQUERADE},\n\tNON_MASQUERADE = {layout.NON_MASQUERADE}," in HEADER
    )


def test_maps_and_programs_have_the_same_names() -> None:
    maps = BYTECODE.with_name("maps.h").read_text()
    programs = BYTECODE.with_name("masq.bpf.c").read_text()
    names = re.findall(r"^\} (\w+) SEC\(\"\.maps\"\);", maps, re.MULTILINE)
    assert sorted(layout.MAPS) == sorted(names)
    assert max(map(len, names)) < 16  # the kernel cuts them off there
    assert sorted(layout.PROGRAMS) == sorted(
        re.findall(r"^SEC\(\"tc\"\)\nint (\w+)\(", programs, re.M)
    )


def test_flags_are_the_same_bits() -> None:
    bits = dict(re.findall(r"#define (\w+)\s+\(1 << (\d+)\) /\* [^*]*\*/", HEADER))
    assert {flag.name: flag.value for flag in SettingsFlag} == {
        name: 1 << int(bits[name]) for name in bits.keys() & SettingsFlag.__members__.keys()
    }
