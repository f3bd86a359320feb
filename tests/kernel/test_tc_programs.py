"""Programs on devices, by tcx and by clsact; maps; what libbpf says when it cannot."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipmasq_agent.bpf.maps import LPM_TRIE, create, open_pinned
from ipmasq_agent.bpf.objects import get_pinned, pin
from ipmasq_agent.errors import HostError
from ipmasq_agent.planes.bpf import clsact, libbpf, programs, tcx
from ipmasq_agent.planes.bpf.layout import TcHook
from ipmasq_agent.planes.bpf.pins import PinDirectory
from ipmasq_agent.planes.bpf.programs import NodePrograms
from tests.kernel.pins import PINS
from tests.netns import Namespace

FLOWS = 4096


@pytest.fixture
def pins() -> Path:
    return Path(os.environ[PINS])


@pytest.fixture
def device(in_ns: Namespace) -> int:
    in_ns.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far"])
    return socket.if_nametoindex("eth0")


@pytest.fixture(params=[True, False], ids=["tcx", "clsact"])
def hooks(request: pytest.FixtureRequest, pins: Path, device: int) -> Iterator[NodePrograms]:
    made = NodePrograms(pins, FLOWS, tcx=request.param)
    made.load()
    yield made
    made.remove()


def filters(namespace: Namespace) -> str:
    """What tc(8) shows of both directions."""
    shown = (namespace.run(["tc", "filter", "show", "dev", "eth0", d]).stdout for d in WAYS)
    return "".join(shown)


WAYS = ("ingress", "egress")


def test_programs_come_and_go_and_those_of_others_stay(
    hooks: NodePrograms, in_ns: Namespace, device: int, pins: Path, request: pytest.FixtureRequest
) -> None:
    in_ns.run(["tc", "qdisc", "add", "dev", "eth0", "clsact"])
    program = ["bpf", "direct-action", "object-pinned", str(PinDirectory(pins).objects / "collect")]
    in_ns.run(["tc", "filter", "add", "dev", "eth0", "egress", "prio", "7", *program])
    foreign = filters(in_ns)
    assert not hooks.complete(device)
    hooks.attach(device)
    assert hooks.complete(device)
    hooks.attach(device)  # again, in their own place
    by_filter = "clsact" in request.node.name
    assert filters(in_ns).count("direct-action") == 1 + 2 * by_filter
    hooks.remove()
    assert filters(in_ns) == foreign
    assert not pins.exists()
    for hook in TcHook:
        assert clsact.attached(device, hook) is None


def test_what_somebody_took_away_is_missed(
    hooks: NodePrograms, in_ns: Namespace, device: int
) -> None:
    hooks.attach(device)
    in_ns.run(["tc", "filter", "del", "dev", "eth0", "egress"], check=False)
    for link in Path(os.environ[PINS]).glob("link-*-egress"):
        link.unlink()
    assert not hooks.complete(device)
    hooks.attach(device)
    assert hooks.complete(device)


def test_a_link_that_the_kernel_is_still_letting_go_is_waited_for(
    pins: Path, device: int, in_ns: Namespace
) -> None:
    hooks = NodePrograms(pins, FLOWS)
    hooks.load()
    hooks.attach(device)
    held = get_pinned(link_of(pins, device, TcHook.EGRESS))
    assert held is not None
    letting_go = threading.Timer(0.2, os.close, [held])
    for link in pins.glob("link-*"):
        link.unlink()
    letting_go.start()
    hooks.attach(device)
    letting_go.join()
    assert hooks.complete(device)
    hooks.remove()


def test_a_device_that_is_gone_leaves_links_that_can_be_tidied(
    hooks: NodePrograms, in_ns: Namespace, device: int, pins: Path
) -> None:
    hooks.attach(device)
    in_ns.run(["ip", "link", "del", "eth0"])
    assert not hooks.complete(device)
    hooks.tidy([device])
    assert list(pins.glob("link-*")) == []


def test_an_upgrade_replaces_the_programs_and_keeps_the_flows(
    hooks: NodePrograms, device: int, pins: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hooks.attach(device)
    before = [attached(device, hook, pins) for hook in TcHook]
    flows = open_pinned(PinDirectory(pins).objects / "flows")
    assert flows is not None
    with flows:
        assert flows.capacity == FLOWS
        entry = os.urandom(flows.key_size), os.urandom(flows.value_size)
        flows.update(*entry)
        other = tmp_path / "masq.bpf.o"
        shutil.copy(programs.BYTECODE, other)
        with other.open("ab") as more:
            more.write(b"\0")
        monkeypatch.setattr(programs, "BYTECODE", other)
        assert not hooks.complete(device)
        NodePrograms(pins, 2 * FLOWS).load()  # another size is for maps that are made anew
        hooks.attach(device)
        assert list(flows.entries()) == [entry]
    kept = open_pinned(PinDirectory(pins).objects / "flows")
    assert kept is not None
    with kept:
        assert list(kept.entries()) == [entry]
    after = [attached(device, hook, pins) for hook in TcHook]
    assert all(after)
    assert not set(before) & set(after)


def attached(device: int, hook: TcHook, pins: Path) -> int | None:
    return tcx.attached(device, link_of(pins, device, hook)) or clsact.attached(device, hook)


def link_of(pins: Path, device: int, hook: TcHook) -> Path:
    return pins / f"link-{device}-{hook.name.lower()}"


def test_a_directory_of_another_program_is_neither_filled_nor_removed(
    pins: Path, in_ns: Namespace
) -> None:
    pins.mkdir()
    with create(LPM_TRIE, "cilium_ipmasq", 8, 1, 16) as theirs:
        pin(theirs.fd, pins / "cilium_ipmasq_v4")
    for act in (NodePrograms(pins).load, NodePrograms(pins).remove):
        with pytest.raises(HostError, match="another program's directory: it holds cilium_ipmasq"):
            act()
    assert [path.name for path in pins.iterdir()] == ["cilium_ipmasq_v4"]


def test_bytecode_that_is_missing_or_broken_is_told(
    pins: Path, device: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(programs, "BYTECODE", tmp_path / "masq.bpf.o")
    with pytest.raises(HostError, match="not compiled"):
        NodePrograms(pins).load()
    (tmp_path / "masq.bpf.o").write_bytes(b"\x7fELF and no more")
    with pytest.raises(HostError, match="cannot be opened"):
        NodePrograms(pins).load()


def test_the_verifier_has_the_last_word(pins: Path, tmp_path: Path) -> None:
    source = tmp_path / "bad.c"
    stores = "".join(f"\troom[{n % 60}] = s->len + {n};\n" for n in range(3000))
    source.write_text(
        "#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n"
        'SEC("tc") int bad(struct __sk_buff *s) {\n\tvolatile int room[60];\n'
        f"{stores}\treturn *(int *)(long)s->len;\n}}\n"
        'char LICENSE[] SEC("license") = "GPL";\n'
    )
    headers = f"/usr/include/{os.uname().machine}-linux-gnu"
    argv = ["clang", "-O2", "-g", "-target", "bpf", f"-I{headers}", "-c", str(source)]
    subprocess.run([*argv, "-o", str(tmp_path / "bad.o")], check=True)
    pins.mkdir()
    with pytest.raises(HostError, match=r"invalid mem access") as refused:
        libbpf.load(tmp_path / "bad.o", pins, {}, {})
    assert "Linux 6.1" in str(refused.value)
    assert list(pins.iterdir()) == []


def test_many_keys_are_written_and_read_back() -> None:
    keys = [struct.pack("=I16s", 32, n.to_bytes(4)) for n in range(100_000)]
    with create(LPM_TRIE, "many", 20, 1, len(keys)) as trie:
        trie.fill(b"".join(keys), bytes(n % 251 for n in range(len(keys))), len(keys))
        assert dict(trie.entries()) == {key: bytes([n % 251]) for n, key in enumerate(keys)}
        assert trie.lookup(keys[7]) == bytes([7])
        assert trie.delete(keys[7])
        assert not trie.delete(keys[7])
        assert trie.lookup(keys[7]) is None


def test_a_map_that_is_full_says_so() -> None:
    keys = [struct.pack("=I16s", 32, n.to_bytes(4)) for n in range(2)]
    with (
        create(LPM_TRIE, "small", 20, 1, 1) as trie,
        pytest.raises(HostError, match="the map is full"),
    ):
        trie.fill(b"".join(keys), b"\1\1", 2)


def test_entries_of_another_size_never_reach_the_kernel() -> None:
    with create(LPM_TRIE, "few", 20, 1, 4) as trie:
        for keys, values, count in ((bytes(40), bytes(2), 3), (bytes(40), bytes(1), 2)):
            with pytest.raises(ValueError, match="cannot be made of"):
                trie.fill(keys, values, count)
        with pytest.raises(ValueError, match="cannot be made of"):
            trie.update(bytes(20), b"")


def test_nothing_is_pinned_where_nothing_is(pins: Path) -> None:
    assert open_pinned(PinDirectory(pins).objects / "flows") is None
