"""The eBPF programs on the oldest kernel that they are for: loaded, and used for packets."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tests.bpf.conftest import COMPILED
from tests.bpf.datapath import compile_programs
from tests.oldest import guest
from tests.oldest.__main__ import BYTECODE, table, verdicts

# A million and 512 bytes are allowed; another compiler may make more of a program.
MOST_INSTRUCTIONS = 500_000
MOST_STACK = 480

pytestmark = [
    pytest.mark.long,
    pytest.mark.kernel,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the guest's kernel is for x86"),
]


def test_the_verifiers_take_every_program_with_room(capsys: pytest.CaptureFixture[str]) -> None:
    found = verdicts(BYTECODE)
    with capsys.disabled():
        print(f"\n{table(found)}")
    for said in found:
        for name, answer in said["programs"].items():
            assert "refused" not in answer, name
            assert answer["instructions"] <= MOST_INSTRUCTIONS, name
            assert answer["stack"] <= MOST_STACK, name
    assert found[0]["release"].startswith("6.1.")


def test_packets_fare_there_as_here(tmp_path: Path) -> None:
    """The tests of the programs, and a scene with the agent, pass in the guest."""
    programs = compile_programs(tmp_path)
    done = guest.run(
        [
            *("env", f"{COMPILED}={programs}", guest.python(), "-m", "pytest", "-q", "--color=no"),
            *("-p", "no:cacheprovider", "tests/bpf", "tests/oldest/scene.py"),
            # Of the object alone by the compiler, and thousands of packets, which take minutes.
            *("--ignore", "tests/bpf/test_object.py", "--ignore", "tests/bpf/test_model.py"),
        ],
        [programs, guest.tool("bpftool")],
        ("pytest", "pytest-timeout", "hypothesis", "scapy"),
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
