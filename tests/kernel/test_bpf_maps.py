"""Pinned maps of prefixes, made with bpftool and read back."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipmasq_agent.bpf import bpffs as file_systems
from ipmasq_agent.bpf import maps as bpf_maps
from ipmasq_agent.bpf.syscall import BpfCommand, bpf
from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.planes.cilium.maps import read_prefixes
from ipmasq_agent.policy.addresses import Family
from tests.kernel import bpffs

PREFIXES = {
    Family.IPV4: ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "192.0.2.1/32"],
    Family.IPV6: ["::/0", "2001:db8::/32", "2001:db8::1/128", "fe80::/10"],
}
VERSION = {Family.IPV4: 4, Family.IPV6: 6}


@pytest.fixture
def place() -> Iterator[Path]:
    with bpffs.private_mounts():
        yield bpffs.mount()


def shown(path: Path, family: Family) -> list[str]:
    return [str(prefix) for prefix in read_prefixes(path, family).prefixes]


@pytest.mark.parametrize("family", Family)
def test_every_prefix_of_a_map_is_read(place: Path, family: Family) -> None:
    path = bpffs.make_map(place, VERSION[family], reversed(PREFIXES[family]))
    assert shown(path, family) == PREFIXES[family]


@pytest.mark.parametrize("family", Family)
def test_an_empty_map_has_no_prefixes(place: Path, family: Family) -> None:
    path = bpffs.make_map(place, VERSION[family])
    held = read_prefixes(path, family)
    assert (held.prefixes, held.capacity, held.full) == ((), 64, False)


def test_bits_past_the_length_are_not_part_of_a_prefix(place: Path) -> None:
    path = bpffs.make_map(place, 4, ["10.1.2.3/8"])
    assert shown(path, Family.IPV4) == ["10.0.0.0/8"]


def test_a_map_that_holds_all_it_can_is_full(place: Path) -> None:
    path = bpffs.make_map(place, 4, PREFIXES[Family.IPV4], capacity=5)
    assert not read_prefixes(path, Family.IPV4).full
    bpffs.put(path, ["203.0.113.0/24"])
    assert read_prefixes(path, Family.IPV4).full


def test_a_map_of_another_shape_is_refused(place: Path) -> None:
    path = bpffs.make_map(place, 4, ["10.0.0.0/8"])
    with pytest.raises(KernelReadError, match="not a trie of ipv6 prefixes"):
        read_prefixes(path, Family.IPV6)
    hashed = place / "hash"
    create = f"bpftool map create {hashed} type hash key 8 value 1 entries 4 name hash"
    subprocess.run(create.split(), check=True)
    with pytest.raises(KernelReadError, match="a map of type 1 with"):
        read_prefixes(hashed, Family.IPV4)


def test_what_is_no_map_is_refused_with_its_reason(place: Path, tmp_path: Path) -> None:
    with pytest.raises(KernelReadError, match="No such file"):
        read_prefixes(place / "nothing", Family.IPV4)
    plain = tmp_path / "file"
    plain.write_text("")
    with pytest.raises(KernelReadError, match="not a pinned map"):
        read_prefixes(plain, Family.IPV4)


def test_file_systems_are_found_wherever_they_are_mounted(place: Path, tmp_path: Path) -> None:
    before = set(file_systems.mounts())  # the machine may have some of its own
    other = bpffs.mount(tmp_path / "a place")
    found = file_systems.mounts()
    assert found[0] == place
    assert set(found) - before == {other}


def test_without_the_capability_the_remedy_names_it(place: Path) -> None:
    path = bpffs.make_map(place, 4)
    place.chmod(0o755)
    code = (
        "from ipmasq_agent.planes.cilium.maps import read_prefixes\n"
        "from ipmasq_agent.policy.addresses import Family\n"
        "from pathlib import Path\n"
        "try:\n"
        f"    read_prefixes(Path({str(path)!r}), Family.IPV4)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    argv = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(("HostError", "KernelReadError")), done
    assert "capability BPF" in done.stdout or "keeps uid 65534 out" in done.stdout


def test_a_change_in_the_middle_of_a_walk_gives_the_state_after_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what was taken away behind the walk is in the answer, nor what came missing."""
    path = bpffs.make_map(place, 4, [f"10.{number}.0.0/16" for number in range(8)])
    monkeypatch.setattr(bpf_maps, "_ENTRIES_AT_ONCE", 2)
    calls = 0

    def meanwhile(command: BpfCommand, attributes: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls == 3:  # a half of the map has been read
            bpffs.put(path, ["10.0.0.0/17"])
            bpffs.delete(path, ["10.0.0.0/16"])
        return bpf(command, attributes)

    monkeypatch.setattr(bpf_maps, "bpf", meanwhile)
    assert shown(path, Family.IPV4) == [
        "10.0.0.0/17",
        *(f"10.{number}.0.0/16" for number in range(1, 8)),
    ]


def test_a_map_that_others_write_is_read_whole_or_not_at_all(place: Path) -> None:
    """What stays is in every answer, once: a walk that was thrown back is begun again."""
    stays = [f"10.{number}.0.0/16" for number in range(200)]
    comes = [f"11.{number}.0.0/16" for number in range(50)]
    path = bpffs.make_map(place, 4, stays, capacity=400)
    done = threading.Event()

    def write() -> None:
        for _ in range(20):
            bpffs.put(path, comes)
            bpffs.delete(path, comes)
        done.set()

    # A thread takes the mounts of the one that starts it.
    writer = threading.Thread(target=write)
    writer.start()
    answers = 0
    restless = "changed 10 times while it was read"
    try:
        while not done.is_set():
            try:
                held = shown(path, Family.IPV4)
            except KernelReadError as error:
                held = stays if restless in error.message else []
            else:
                answers += 1
            assert len(held) == len(set(held))
            assert set(stays) <= set(held) <= {*stays, *comes}
    finally:
        writer.join()
    assert answers
