"""What the compiled object shares with the agent, and what it asks of the kernel."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.bpf import layout
from tests.bpf.datapath import PROGRAMS, SOURCES, Datapath, find_clang
from tests.bpf.syscall import LPM_TRIE

NEWEST = (6, 1)

# The release of Linux that a helper came with, by its number in enum bpf_func_id.
HELPERS = {
    1: ("map_lookup_elem", (3, 19)),
    2: ("map_update_elem", (3, 19)),
    3: ("map_delete_elem", (3, 19)),
    5: ("ktime_get_ns", (4, 1)),
    9: ("skb_store_bytes", (4, 1)),
    10: ("l3_csum_replace", (4, 1)),
    11: ("l4_csum_replace", (4, 1)),
    26: ("skb_load_bytes", (4, 5)),
    28: ("csum_diff", (4, 6)),
    131: ("ringbuf_reserve", (5, 8)),
    132: ("ringbuf_submit", (5, 8)),
    160: ("ktime_get_coarse_ns", (5, 11)),
    164: ("for_each_map_elem", (5, 13)),
    181: ("loop", (5, 17)),
}
MAP_TYPES = {
    1: ("hash", (3, 19)),
    2: ("array", (3, 19)),
    6: ("percpu_array", (4, 6)),
    9: ("lru_hash", (4, 10)),
    LPM_TRIE: ("lpm_trie", (4, 11)),
    12: ("array_of_maps", (4, 12)),
}

# Structs of local variables alone, of which the compiler tells nothing.
LOCAL = {"prefix", "collection", "block_to_write", "begun"}

# The second byte of a call has its kind: 0 a helper, 1 another function, 2 a kfunc.
CALL = re.compile(r"\b85 ([0-9a-f])0 00 00 ((?:[0-9a-f]{2} ){3}[0-9a-f]{2})\b")


@pytest.fixture(scope="module")
def types(programs: Path) -> list[dict[str, Any]]:
    """The BTF of the object."""
    argv = ["bpftool", "btf", "dump", "file", str(programs), "format", "raw", "-j"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)["types"]
    return found


@pytest.fixture(scope="module")
def calls(programs: Path) -> list[tuple[int, int]]:
    """Kind and number of every call in the programs."""
    objdump = shutil.which("llvm-objdump") or shutil.which("llvm-objdump-14")
    assert objdump, "llvm reads the instructions of the object"
    argv = [objdump, "-d", str(programs)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return [
        (int(kind, 16), int.from_bytes(bytes.fromhex(number), "little"))
        for kind, number in CALL.findall(done.stdout)
    ]


def assert_equal_in_c(place: Path, expected: dict[str, int]) -> None:
    """Let the compiler say whether expressions of masq.h have these values."""
    lines = [f'_Static_assert({of} == {value}, "{of}");' for of, value in expected.items()]
    source = place / "expected.c"
    source.write_text("\n".join([f'#include "{SOURCES / "masq.h"}"', *lines, ""]))
    argv = [*find_clang(), "-fsyntax-only", str(source)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_shared_struct_is_one_that_is_checked() -> None:
    header = (SOURCES / "masq.h").read_text()
    assert set(re.findall(r"^struct (\w+) \{", header, re.MULTILINE)) == set(layout.STRUCTS)


def test_shared_structs_are_laid_out_as_the_agent_has_them(tmp_path: Path) -> None:
    # Not by the BTF, which has no struct that only local variables are of.
    expected = {}
    for name, (size, offsets) in layout.STRUCTS.items():
        expected[f"sizeof(struct {name})"] = size
        for member, offset in offsets.items():
            expected[f"__builtin_offsetof(struct {name}, {member})"] = offset
    assert_equal_in_c(tmp_path, expected)


@pytest.mark.parametrize("name", sorted(set(layout.STRUCTS) - LOCAL))
def test_no_member_of_a_shared_struct_is_missing(types: list[dict[str, Any]], name: str) -> None:
    (found,) = [of for of in types if of["kind"] == "STRUCT" and of["name"] == name]
    assert {member["name"] for member in found["members"]} == set(layout.STRUCTS[name][1])


def test_outcomes_have_the_order_that_the_agent_counts_by(types: list[dict[str, Any]]) -> None:
    (found,) = [of for of in types if of["kind"] == "ENUM" and of["name"] == "outcome"]
    expected = {name: number for number, name in enumerate((*layout.OUTCOMES, "OUTCOMES"))}
    assert {value["name"]: value["val"] for value in found["values"]} == expected


def test_numbers_are_those_that_the_agent_writes(tmp_path: Path) -> None:
    names = (
        *("IPV4", "IPV6", "FAMILIES", "GENERATIONS", "SLOTS", "MASQUERADE", "NON_MASQUERADE"),
        *("MANAGED", "ONLY_SOURCES", "FIXED_SOURCES", "RANDOM_FULLY", "LOCAL_TOO", "DRAINING"),
        *("INDEXING", "FROM_OUTSIDE", "SEEN_OUTWARD", "SEEN_INWARD", "CONFIRMED"),
        *("FIN_OUTWARD", "FIN_INWARD", "RESET_OUTWARD", "INDEXED", "TAKING", "BY_FIXED"),
        *("RESET_INWARD", "ACCEPTED", "NUMBER_SHIFT"),
    )
    assert_equal_in_c(tmp_path, {name: getattr(layout, name) for name in names})


def test_no_helper_is_newer_than_the_oldest_kernel(calls: list[tuple[int, int]]) -> None:
    helpers = {number for kind, number in calls if kind == 0}
    assert len(helpers) > 10  # else the instructions were not understood
    assert helpers - set(HELPERS) == set(), "not in the table: which release had them first?"
    assert [HELPERS[number][0] for number in helpers if HELPERS[number][1] > NEWEST] == []


def test_nothing_of_the_kernels_own_functions_is_called(calls: list[tuple[int, int]]) -> None:
    assert {kind for kind, _ in calls} == {0, 1}  # helpers and functions of ours: no kfunc


def test_no_kind_of_map_is_newer_than_the_oldest_kernel(loaded: Datapath) -> None:
    for name, of in loaded.maps.items():
        found = re.search(r"^map_type:\s+(\d+)$", _fdinfo(of.descriptor), re.MULTILINE)
        assert found, name
        # What an array of maps holds is taken only of the type declared: tries, in the fixture.
        assert MAP_TYPES[int(found[1])][1] <= NEWEST


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_verifier_is_far_from_its_limit(loaded: Datapath, program: str) -> None:
    # Another release or compiler needs more of the million that there is.
    text = _fdinfo(loaded.programs[program])
    found = re.search(r"^verified_insns:\s+(\d+)$", text, re.MULTILINE)
    assert found
    assert int(found[1]) < 500_000


def _fdinfo(descriptor: int) -> str:
    return Path(f"/proc/self/fdinfo/{descriptor}").read_text()
