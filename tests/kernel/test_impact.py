"""What `diff --live` says of connections, against where the next ones really come from."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
import yaml

from ipmasq_agent.policy.addresses import Family
from tests.kernel.agent import kept_backends, status_of
from tests.kernel.crossing import PLANS, PORT, Crossing, crossing
from tests.netns import Namespace
from tests.waiting import DEADLINE, wait_until

pytestmark = pytest.mark.kernel
BACKENDS = ("iptables-nft", "iptables-legacy", "ipset", "nftables", "bpf")
# Where destinations lie, and what documents speak of; the last of each is reached through eth1.
NETWORKS = {
    Family.IPV4: ("10.10.0.0/16", "10.20.0.0/16", "203.0.113.0/24", "70.1.0.0/16"),
    Family.IPV6: ("fd10:10::/32", "fd10:20::/32", "2001:db8:203::/48", "3fff:1::/32"),
}
SNAT = {"ipv4": "198.51.100.1", "ipv6": "2001:db8:2::1"}
# Connections are tracked also while no document needs that, as kube-proxy has it.
TRACKING = "table inet tracking { chain c { type filter hook forward priority 0; ct state new; }; }"
_AT_ONCE = 40  # connections, which neighbours that are still looked for have room for
_PKTINFO = {
    Family.IPV4: (socket.IPPROTO_IP, 8),
    Family.IPV6: (socket.IPPROTO_IPV6, 50),
}


class Pair(NamedTuple):
    """Who speaks to whom, as addresses."""

    family: Family
    source: str
    destination: str


class Talk:
    """UDP connections through a node, made again and again, in both families.

    Two pods and the node speak to the world; a pod to the other one, too.

    Args:
        node: between them.
        count: how many connections each family has.
        random: which.
    """

    def __init__(self, node: Crossing, count: int, random: Random) -> None:
        self._node = node
        self._held = contextlib.ExitStack()
        self._ears: dict[socket.socket, Family] = {}
        self._numbers = itertools.count()
        self._answers = itertools.cycle([True, False])
        self.pairs: dict[Pair, tuple[Namespace, bool]] = {}
        for family, plan in PLANS.items():
            dash = "-6" if family is Family.IPV6 else "-4"
            # All that the world has is what is spoken to; it answers whoever else spoke.
            world = [["del", "local", plan.everything, "dev", "lo", "table", "local"]]
            world += [["add", "local", network, "dev", "lo"] for network in NETWORKS[family]]
            world += [["add", pods, "via", plan.eth[0]] for pods in plan.pod_networks]
            for words in world:
                node.world.run(["ip", dash, "route", *words])
            for place in (node.world, node.pods[1]):
                self._ears[self._ear(place, family)] = family
            self._draw(family, count, random)
        timeouts = [f"net.netfilter.nf_conntrack_udp_timeout{end}=900" for end in ("", "_stream")]
        node.node.run(["sysctl", "-qw", *timeouts])
        node.node.run(["nft", "-f", "-"], stdin=TRACKING)
        node.world.run(["sysctl", "-qw", "net.ipv6.ip_nonlocal_bind=1"])

    def _draw(self, family: Family, count: int, random: Random) -> None:
        plan, networks = PLANS[family], NETWORKS[family]
        spots = [somewhere(random, network) for network in networks for _ in range(count // 6 + 2)]
        through_eth1 = ipaddress.ip_network(networks[-1])
        self.pairs[Pair(family, plan.pods[0], plan.pods[1])] = self._node.pods[0], True
        while len(self.pairs) < count * (1 + (family is Family.IPV6)):
            spot, number = random.choice(spots), random.randrange(3)
            sender = (*self._node.pods, self._node.node)[number]
            own = plan.eth[ipaddress.ip_address(spot) in through_eth1]
            source = (*plan.pods, own)[number]
            # Half of them are answered, and so established.
            self.pairs.setdefault(Pair(family, source, spot), (sender, random.random() < 0.5))

    def _ear(self, place: Namespace, family: Family) -> socket.socket:
        with place.entered():
            ear = self._held.enter_context(socket.socket(PLANS[family].kind, socket.SOCK_DGRAM))
        if family is Family.IPV4:
            ear.setsockopt(socket.IPPROTO_IP, 8, 1)
        else:
            ear.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            ear.setsockopt(socket.IPPROTO_IPV6, 49, 1)
        ear.bind(("", PORT))
        return ear

    def again(self) -> dict[Pair, str]:
        """Make a new connection of each pair; return the address with which it arrived."""
        heard: dict[Pair, str] = {}
        with contextlib.ExitStack() as stack:
            mouths: dict[tuple[Namespace, Family], socket.socket] = {}
            for pair, (sender, _) in self.pairs.items():
                if (sender, pair.family) not in mouths:
                    with sender.entered():
                        mouth = socket.socket(PLANS[pair.family].kind, socket.SOCK_DGRAM)
                    mouths[sender, pair.family] = stack.enter_context(mouth)
                    mouth.settimeout(DEADLINE)
            waiting = list(self.pairs.items())
            while waiting:
                some, waiting = waiting[:_AT_ONCE], waiting[_AT_ONCE:]
                asked: dict[int, tuple[Pair, bool, socket.socket]] = {}
                for pair, (sender, answered) in some:
                    mouth, number = mouths[sender, pair.family], next(self._numbers)
                    mouth.sendto(struct.pack("!Q", number), (pair.destination, PORT))
                    asked[number] = pair, answered, mouth
                heard |= self._hear(asked)
        return heard

    def _hear(self, asked: dict[int, tuple[Pair, bool, socket.socket]]) -> dict[Pair, str]:
        heard: dict[Pair, str] = {}
        deadline = time.monotonic() + DEADLINE
        while len(heard) < len(asked):
            ready, _, _ = select.select(list(self._ears), [], [], deadline - time.monotonic())
            assert ready, f"{len(asked) - len(heard)} of {len(asked)} did not arrive"
            for ear in ready:
                data, _, _, sender = ear.recvmsg(64, 256)
                pair, answered, mouth = asked[struct.unpack("!Q", data)[0]]
                heard[pair] = str(ipaddress.ip_address(sender[0]))
                if answered:
                    self._answer(ear, pair, sender)
                    assert mouth.recvfrom(64)[0] == b"heard"
        return heard

    def _answer(self, ear: socket.socket, pair: Pair, whom: Any) -> None:
        address = ipaddress.ip_address(pair.destination).packed
        if pair.family is Family.IPV4:
            told = struct.pack("=I4s4s", 0, address, address)
        else:
            told = address + bytes(4)
        ear.sendmsg([b"heard"], [(*_PKTINFO[pair.family], told)], 0, whom)

    def close(self) -> None:
        """Hear nothing more."""
        self._held.close()


def somewhere(random: Random, network: str) -> str:
    """Return an address of a network."""
    first = ipaddress.ip_network(network)
    return str(first[random.randrange(1, min(first.num_addresses, 1 << 32) - 1)])


def drawn(random: Random, talk: Talk) -> dict[str, Any]:
    """Return a document that speaks of some of the destinations."""
    spots = [pair.destination for pair in talk.pairs]

    def some(most: int) -> list[str]:
        found = []
        for _ in range(random.randrange(most)):
            spot = ipaddress.ip_address(random.choice(spots))
            length = random.choice([6, 12, 16, 24, 30, 32]) * (spot.max_prefixlen // 32)
            found.append(str(ipaddress.ip_network((int(spot), length), strict=False)))
        return list(dict.fromkeys(found))

    kept = some(12)
    masqueraded = [prefix for prefix in some(4) if prefix not in kept]
    document: dict[str, Any] = {"nonMasqueradeCIDRs": kept, "masqueradeCIDRs": masqueraded}
    if random.random() < 0.3:
        document["podCIDRs"] = ["172.20.0.0/24", "fd00:172:20::/64"]
    if random.random() < 0.3:
        document["egressInterfaces"] = [random.choice(["eth0", "eth1", "eth*"])]
    if random.random() < 0.3:
        document["snatAddress"] = SNAT
    if random.random() < 0.2:
        document["defaultAction"] = "keep"
    return document


@contextlib.contextmanager
def talking(count: int, random: Random) -> Iterator[tuple[Crossing, Talk]]:
    with crossing() as node, kept_backends(), node.node.entered():
        talk = Talk(node, count, random)
        try:
            yield node, talk
        finally:
            talk.close()


def check(
    backends: Sequence[str],
    documents: int,
    count: int,
    random: Random,
    path: Path,
    capsys: pytest.CaptureFixture[str],
) -> int:
    """Say what each of several documents changes, and look at it; return how much it was."""
    flags: tuple[str, ...] = ()
    turns, moves = itertools.cycle(backends), len(backends) > 1

    def write() -> None:
        nonlocal flags
        flags = ("--backend", next(turns), "--config", str(path), "--enable-ipv6")
        path.write_text(yaml.safe_dump(drawn(random, talk)))

    changes = 0
    with talking(count, random) as (_, talk):
        write()
        assert status_of("apply", *flags) == 0
        before = talk.again()
        for turn in range(1, documents + 1):
            write()
            capsys.readouterr()
            assert status_of("diff", "--live", "-o", "json", *flags) in (0, 1)
            told = json.loads(capsys.readouterr().out)["impact"]
            assert status_of("apply", *flags) == 0
            after = talk.again()
            rows = {
                (row["source"], row["destination"]): (row["leavesAs"], row["wouldLeaveAs"])
                for row in told["rows"]
            }
            assert rows == {
                (pair.source, pair.destination): (before[pair], after[pair])
                for pair in talk.pairs
                if before[pair] != after[pair]
            }, path.read_text()
            answered = {(p.source, p.destination) for p, (_, yes) in talk.pairs.items() if yes}
            for row in told["rows"]:
                both_ways = (row["source"], row["destination"]) in answered
                assert row["established"] == row["connections"] * both_ways, (row, turn)
                # Each data plane knows what began since it decides.
                assert 1 <= row["connections"] <= turn
                assert moves or row["connections"] == turn
            assert told["changed"] == sum(row["connections"] for row in told["rows"])
            assert told["connections"] >= len(talk.pairs) * (1 if moves else turn)
            changes += len(rows)
            before = after
    return changes


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_named_is_what_the_next_connection_shows(
    backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = Random(f"{backend} 1")
    assert check([backend], 3, 40, random, tmp_path / "config.yaml", capsys) > 20


def test_a_move_to_another_data_plane_is_told_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["nftables", "bpf", "iptables-legacy"]
    assert check(places, 3, 30, Random(5), tmp_path / "config.yaml", capsys) > 15


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_thousand_connections_under_random_documents(
    backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = Random(f"{backend} 2")
    assert check([backend], 4, 1000, random, tmp_path / "config.yaml", capsys) > 1000


def test_records_of_connections_tell_what_they_themselves_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, listed, captured = (tmp_path / name for name in ("cm", "flows.txt", "all.pcap"))
    flags = ("--backend", "nftables", "--config", str(path), "--enable-ipv6")
    path.write_text("nonMasqueradeCIDRs: [10.10.0.0/16, 'fd10:10::/32']\n")

    def rows(*words: str) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert status_of("diff", "-o", "json", *words, *flags) == 1
        found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["impact"]["rows"]
        return sorted(found, key=lambda row: (row["source"], row["destination"]))

    with talking(20, Random(3)) as (node, talk):
        assert status_of("apply", *flags) == 0
        capture = node.node.popen(
            ["tcpdump", "-Uni", "any", "-w", str(captured), "udp"], stderr=subprocess.PIPE
        )
        assert capture.stderr is not None
        assert any("listening" in line for line in capture.stderr)
        talk.again()
        path.write_text("nonMasqueradeCIDRs: [10.20.0.0/16, 'fd10:20::/32']\n")
        live = rows("--live")
        assert live
        tracked = [["conntrack", "-L", "-o", "extended", "-f", f] for f in ("ipv4", "ipv6")]
        listed.write_text("".join(node.node.run(words).stdout for words in tracked))
        assert rows("--flows", str(listed)) == live
        wait_until(lambda: rows("--flows", str(captured)) == live, "all of them are captured")
        listed.write_text(f"{listed.read_text()}what is this\n")
        assert status_of("diff", "--flows", str(listed), *flags) == 2
        assert f"{listed}:{len(listed.read_text().splitlines())}: 'what" in capsys.readouterr().err
