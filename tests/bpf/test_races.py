"""Two CPUs at the same moment in the same place of a table: one of them has it."""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.bpf import layout
from tests.bpf.datapath import PASS, Datapath, Flow, Key, now
from tests.bpf.packets import LINK, Addresses, frame, udp

COUNT = 3000
ONE = [(40_000, 40_000)]
UDP, LONG_AGO = 17, 100
ROUNDS = pytest.mark.parametrize("rounds", [5, pytest.param(50, marks=pytest.mark.long)])


class Lane(ctypes.Structure):
    """struct lane of race.c."""

    _fields_ = (
        ("cpu", ctypes.c_int),
        ("program", ctypes.c_int),
        ("ifindex", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
        ("frames", ctypes.c_void_p),
        ("verdicts", ctypes.c_void_p),
    )


class Race:
    """Two CPUs that run programs side by side."""

    def __init__(self, place: Path) -> None:
        library, source = place / "race.so", Path(__file__).parent / "race.c"
        words = ["gcc", "-O2", "-shared", "-fPIC", "-pthread", "-o"]
        done = subprocess.run(
            [*words, library, source], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        self._race = ctypes.CDLL(str(library)).race
        self._cpus = sorted(os.sched_getaffinity(0))[:2]

    def run(
        self, masq: Datapath, *lanes: tuple[str, Sequence[bytes]]
    ) -> list[list[tuple[int, bytes]]]:
        """Run a program on frames, and at each of them another one on that of its own.

        Returns:
            Of each of the two lanes, and of each of its frames, verdict and frame afterwards.
        """
        assert len(lanes) == len(self._cpus) == 2
        ((_, first), (_, second)) = lanes
        assert len(first) == len(second)
        made, kept = [], []
        for cpu, (program, frames) in zip(self._cpus, lanes, strict=True):
            (length,) = {len(one) for one in frames}
            data = ctypes.create_string_buffer(b"".join(frames), length * len(frames))
            verdicts = (ctypes.c_int32 * len(frames))()
            kept.append((data, verdicts, length))
            ends = ctypes.addressof(data), ctypes.addressof(verdicts)
            made.append(Lane(cpu, masq.programs[program], masq.ifindex, length, *ends))
        assert self._race(ctypes.byref(made[0]), ctypes.byref(made[1]), len(first)) == 0
        return [
            [(verdict, data.raw[n * size : (n + 1) * size]) for n, verdict in enumerate(verdicts)]
            for data, verdicts, size in kept
        ]


@pytest.fixture(scope="session")
def race(tmp_path_factory: pytest.TempPathFactory) -> Race:
    assert len(os.sched_getaffinity(0)) > 1, "a race takes two CPUs"
    return Race(tmp_path_factory.mktemp("race"))


def questions(source: str, family: Addresses) -> list[bytes]:
    """UDP packets to many ports; they have no checksum that would have to be computed."""
    first = frame(udp(source, 1500, family.outside, 0, chksum=0))
    return numbered(first, LINK + (20 if family.v4 else 40) + 2)


def numbered(first: bytes, at: int) -> list[bytes]:
    """Frames that differ in a port, which is at this offset."""
    return [first[:at] + n.to_bytes(2) + first[at + 2 :] for n in range(1, COUNT + 1)]


def expired(masq: Datapath, family: Addresses, owner: str) -> list[bytes]:
    """Let somebody have had the only port to each of these ports; return the keys."""
    flow = Flow(family.node, ONE[0][0], layout.SEEN_OUTWARD, now() - LONG_AGO, translated=True)
    keys = []
    for n in range(1, COUNT + 1):
        key = Key(owner, 1500, family.outside, n, UDP)
        masq.put_flow(family.number, key, flow)
        keys.append(key.packed(family.number, (flow.address, flow.port)))
    return keys


def owners_of(masq: Datapath, family: Addresses) -> list[str | None]:
    """Whose the flow to each port is."""
    size = 4 if family.v4 else 16
    found = {}
    for key, value in masq.maps["flows"].entries().items():
        _, _, port, *_ = struct.unpack(layout.FLOW_KEY, key)
        owner = struct.unpack(layout.FLOW, value)[0]
        found[socket.ntohs(port)] = str(ipaddress.ip_address(owner[:size]))
    return [found.get(n) for n in range(1, COUNT + 1)]


@ROUNDS
def test_first_packets_of_a_socket_on_two_cpus_get_one_port(
    masq: Datapath, family: Addresses, race: Race, rounds: int
) -> None:
    masq.policy(
        family.number,
        {family.everything: layout.MASQUERADE},
        flags=layout.MANAGED | layout.RANDOM_FULLY,
    )
    frames = questions(family.pod, family)
    for _ in range(rounds):
        masq.maps["flows"].clear()
        one, other = race.run(masq, ("outward", frames), ("outward", frames))
        assert [pair for pair in zip(one, other, strict=True) if pair[0] != pair[1]] == []
        assert {verdict for verdict, _ in one} == {PASS}
        assert owners_of(masq, family) == [family.pod] * COUNT


@ROUNDS
@pytest.mark.parametrize("owner", ["router", "pod"])
def test_a_place_whose_flow_has_expired_goes_to_one_of_two(
    masq: Datapath, family: Addresses, race: Race, owner: str, rounds: int
) -> None:
    masq.policy(family.number, {family.everything: layout.MASQUERADE}, ports=ONE)
    rivals = family.pod, family.other_pod
    lanes = [("outward", questions(of, family)) for of in rivals]
    for _ in range(rounds):
        expired(masq, family, getattr(family, owner))
        results = race.run(masq, *lanes)
        verdicts = zip(*([verdict for verdict, _ in found] for found in results), strict=True)
        passed = [
            [of for of, verdict in zip(rivals, pair, strict=True) if verdict == PASS]
            for pair in verdicts
        ]
        assert passed == [[of] for of in owners_of(masq, family)]


@ROUNDS
def test_what_begins_while_its_place_is_collected_stays(
    masq: Datapath, family: Addresses, race: Race, rounds: int
) -> None:
    masq.policy(family.number, {family.everything: layout.MASQUERADE}, ports=ONE)
    frames = questions(family.pod, family)
    for _ in range(rounds):
        keys = expired(masq, family, family.router)
        orders = [struct.pack(layout.COLLECTION, False, 1) + key for key in keys]
        before = masq.counted(family.number).get("FLOWS_COLLECTED", 0)
        begun, collected = race.run(masq, ("outward", frames), ("collect", orders))
        passed = [family.pod if verdict == PASS else None for verdict, _ in begun]
        assert passed == owners_of(masq, family)
        # A table that is not full makes no room.
        after = masq.counted(family.number)
        assert after["FLOWS_COLLECTED"] - before == sum(verdict for verdict, _ in collected)
        assert "FLOWS_SHED" not in after


@ROUNDS
def test_what_comes_in_while_its_record_is_collected_is_recorded_or_counted(
    masq: Datapath, family: Addresses, race: Race, rounds: int
) -> None:
    kept = masq.maps["kept"]
    first = frame(udp(family.outside, 0, family.pod, 1500, chksum=0))
    frames = numbered(first, LINK + (20 if family.v4 else 40))
    life = struct.pack(layout.KEPT, layout.FROM_OUTSIDE << 32 | now() - LONG_AGO)
    keys = [
        Key(family.pod, 1500, family.outside, n, UDP).packed(family.number)
        for n in range(1, COUNT + 1)
    ]
    orders = [struct.pack(layout.COLLECTION, True, 1) + key for key in keys]
    for _ in range(rounds):
        before = masq.counted(family.number)
        for key in keys:
            kept.put(key, life)
        _, collected = race.run(masq, ("inward", frames), ("collect", orders))
        after = masq.counted(family.number)
        lost = after.get("FLOWS_UNRECORDED", 0) - before.get("FLOWS_UNRECORDED", 0)
        assert len(kept.entries()) == COUNT - lost
        gone = after.get("FLOWS_COLLECTED", 0) - before.get("FLOWS_COLLECTED", 0)
        assert gone == sum(verdict for verdict, _ in collected)
