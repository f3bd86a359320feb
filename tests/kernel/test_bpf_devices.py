"""What the eBPF programs know of devices and addresses, and what they leave to others."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from ipmasq_agent.agent.reconcile import clean
from ipmasq_agent.planes import detect
from ipmasq_agent.planes.bpf import clsact, layout, tcx
from ipmasq_agent.planes.bpf.layout import SettingsFlag
from ipmasq_agent.planes.bpf.maps import PinnedMaps
from ipmasq_agent.planes.bpf.pins import PinDirectory
from ipmasq_agent.planes.bpf.plane import BpfPlane
from ipmasq_agent.planes.bpf.programs import NodePrograms
from ipmasq_agent.planes.plane import AnyPlane
from ipmasq_agent.policy.addresses import Family, parse_address
from tests.bpf.packets import udp
from tests.kernel.agent import Verb, status_of
from tests.kernel.crossing import PLANS, PORT, Crossing, arrivals, crossing
from tests.kernel.pins import placement
from tests.kernel.running import Running
from tests.kernel.test_bpf_survival import MASQUERADING, bring
from tests.kernel.test_network_watch import add_pod
from tests.netns import Namespace
from tests.waiting import wait_until

ONLY_ETH0 = "nonMasqueradeCIDRs: [10.0.0.0/8]\negressInterfaces: [eth0]"
WORLD = {Family.IPV4: "203.0.113.7", Family.IPV6: "2001:db8:f::7"}
BOTH_ALLOWED = ["net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth1.rp_filter=0"]


def pinned() -> PinnedMaps:
    return PinnedMaps(PinDirectory(Path(placement().pins)).objects)


def own() -> set[str]:
    """The addresses that the programs take for the node's."""
    with pinned() as maps:
        return {family.show(address) for family in Family for address in maps.own(family)}


def test_the_programs_know_each_address_of_the_node_whatever_device_has_it(
    run: Callable[..., Running], in_ns: Namespace, tmp_path: Path
) -> None:
    in_ns.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far0"])
    in_ns.run(["ip", "link", "add", "kube-ipvs0", "type", "bridge"])  # a dummy, on real nodes
    for device in ("eth0", "far0"):
        in_ns.run(["ip", "link", "set", device, "up"])
    in_ns.address("eth0", "192.0.2.1/24", "2001:db8::1/64")
    in_ns.address("lo", "198.51.100.1/32")
    in_ns.address("kube-ipvs0", "10.96.0.1/32", "fd00:96::1/128")
    document = tmp_path / "config"
    document.write_text("resyncInterval: 1h\n")
    words = f"--config={document}", "--backend=bpf", "--enable-ipv6"
    agent = run("run", *words)
    agent.wait_ready()
    held = {"192.0.2.1", "2001:db8::1", "198.51.100.1", "10.96.0.1", "fd00:96::1"}
    loopback = {"127.0.0.1", "::1"}
    assert own() == held | loopback

    # Far more than a batch, and each side of it told by the kernel alone.
    services = [f"10.96.{n // 250 + 1}.{n % 250 + 1}" for n in range(400)]
    lines = [f"addr add {service}/32 dev kube-ipvs0" for service in services]
    in_ns.run(["ip", "-batch", "-"], stdin="\n".join(lines))
    in_ns.address("lo", "2001:db8:9::9/128")
    in_ns.run(["ip", "addr", "del", "198.51.100.1/32", "dev", "lo"])
    held = held - {"198.51.100.1"} | {*services, "2001:db8:9::9"}
    wait_until(lambda: own() == held | loopback, "it is followed")
    wait_until(agent.ready, "and said to be in step")
    assert status_of("diff", *words) == 0
    in_ns.run(["ip", "link", "del", "kube-ipvs0"])
    wait_until(lambda: own() == {"192.0.2.1", "2001:db8::1", "2001:db8:9::9"} | loopback, "gone")


# -- devices beside those of the policy ------------------------------------------------------


@pytest.fixture
def lab() -> Iterator[Crossing]:
    """A node with two ways out, in a world that has one address besides those of its devices."""
    with crossing() as made:
        made.node.run(["sysctl", "-qw", *BOTH_ALLOWED])
        for family, plan in PLANS.items():
            ip(made.world, family, "route", "del", "local", plan.everything, "dev", "lo")
            made.world.address("lo", f"{WORLD[family]}/{family.bits}")
        with made.node.entered():
            yield made


def ip(host: Namespace, family: Family, *words: str) -> None:
    host.run(["ip", "-4" if family is Family.IPV4 else "-6", *words])


@contextlib.contextmanager
def in_force(name: str, document: str) -> Iterator[AnyPlane]:
    plane = detect.make(name, placement())
    with contextlib.closing(plane):
        bring(plane, document)
        yield plane
        clean(plane, Family)


class Talk:
    """A flow of UDP from a pod, with an end in the world that has its address for itself."""

    def __init__(self, lab: Crossing, family: Family, stack: contextlib.ExitStack) -> None:
        with lab.world.entered():
            self.world = stack.enter_context(socket.socket(PLANS[family].kind, socket.SOCK_DGRAM))
        with lab.pods[0].entered():
            self.pod = stack.enter_context(socket.socket(PLANS[family].kind, socket.SOCK_DGRAM))
        self.world.bind((WORLD[family], 0))
        for one in (self.world, self.pod):
            one.settimeout(5)
        self.pod.connect(self.world.getsockname()[:2])

    def exchange(self) -> str:
        """Send something, get the answer, and return the source that the world saw."""
        self.pod.send(b"question")
        _, sender = self.world.recvfrom(100)
        self.world.sendto(b"answer", sender)
        assert self.pod.recv(100) == b"answer"
        return str(sender[0])


@pytest.mark.parametrize("name", ["iptables-nft", "bpf"])
@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_replies_find_their_pod_through_whatever_device_they_come(
    lab: Crossing, family: Family, name: str
) -> None:
    plan = PLANS[family]
    # The world answers by the other way.
    ip(lab.world, family, "route", "add", f"{plan.eth[0]}/{family.bits}", "via", plan.eth[1])
    with contextlib.ExitStack() as stack, in_force(name, ONLY_ETH0):
        assert Talk(lab, family, stack).exchange() == plan.eth[0]


@pytest.mark.parametrize("name", ["iptables-nft", "bpf"])
@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_a_flow_that_began_beside_the_policys_devices_keeps_its_address_on_them(
    lab: Crossing, family: Family, name: str
) -> None:
    plan = PLANS[family]
    ip(lab.world, family, "route", "add", plan.pod_networks[0], "via", plan.eth[1])
    ip(lab.node, family, "route", "replace", "default", "via", plan.next_hops[1])
    with contextlib.ExitStack() as stack, in_force(name, ONLY_ETH0):
        talk = Talk(lab, family, stack)
        assert talk.exchange() == plan.pods[0]
        ip(lab.node, family, "route", "replace", "default", "via", plan.next_hops[0])
        assert talk.exchange() == plan.pods[0]
        assert Talk(lab, family, stack).exchange() == plan.eth[0]


def test_devices_for_replies_are_told_from_those_of_the_policy(
    lab: Crossing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "config"
    document.write_text(ONLY_ETH0)
    words = f"--config={document}", "--backend=bpf"
    assert status_of("apply", *words) == 0
    assert status_of("diff", *words) == 0
    assert status_of("compare", str(document), "kernel:bpf") == 0
    capsys.readouterr()

    # Somebody takes the programs of such a device away, as of any other.
    plane = BpfPlane(Path(placement().pins))
    assert not plane.disturbed()
    number = socket.if_nametoindex("eth1")
    for link in Path(placement().pins).glob(f"link-{number}-*"):
        link.unlink()
    assert plane.disturbed()
    assert status_of("diff", *words) == 1
    assert "+ipv4 programs eth1 source 198.51.100.1 for replies" in capsys.readouterr().out
    assert status_of("apply", *words) == 0
    assert not plane.disturbed()

    document.write_text(ONLY_ETH0.replace("eth0", "eth1"))
    assert status_of("diff", *words) == 1
    told = capsys.readouterr().out
    for line in (
        "-ipv4 programs eth0 source 192.0.2.1\n",
        "+ipv4 programs eth0 source 192.0.2.1 for replies\n",
        "-ipv4 programs eth1 source 198.51.100.1 for replies\n",
        "+ipv4 programs eth1 source 198.51.100.1\n",
    ):
        assert line in told
    assert status_of("apply", *words) == 0
    assert status_of("diff", *words) == 0
    lab.node.run(["ip", "link", "del", "eth0"])
    assert not plane.disturbed()  # word of that comes by itself
    assert status_of("cleanup", "--backend=bpf") == 0


def test_host_ends_of_pods_pairs_that_have_an_address_get_no_programs(
    in_ns: Namespace, verb: Verb
) -> None:
    """As ptp makes them, also where they are called gke0123; explain knows of it."""
    in_ns.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far0"])
    in_ns.run(["ip", "link", "set", "eth0", "up"])
    in_ns.address("eth0", "192.0.2.1/24", "2001:db8::1/64")
    with Namespace("pods") as pods:
        for number in range(3):
            add_pod(in_ns, pods, number)
        for document in (MASQUERADING, ONLY_ETH0):
            with in_force("bpf", document), pinned() as maps:
                assert set(maps.devices()) == {socket.if_nametoindex("eth0")}
                assert {"10.244.0.1", "fd00:244::1"} < own()
        # Not in the list, and yet left alone: no program is on their way.
        with in_force("bpf", "nonMasqueradeCIDRs: [192.0.2.0/24]"):
            for pod in ("10.244.0.2", "fd00:244::2"):
                answer = json.loads(verb("explain", pod, "--backend=bpf", "-o", "json")[1])
                assert answer["verdict"] == "non-masquerade"
                assert "what leaves through eth0" in answer["rule"]


def test_what_a_killed_agent_began_for_flows_to_be_found_ends_with_the_next_change(
    lab: Crossing,
) -> None:
    with in_force("bpf", MASQUERADING) as plane, pinned() as maps:
        slot = layout.slot(Family.IPV4, maps.generation(Family.IPV4))
        held = maps.settings(slot)
        maps.set_settings(slot, held._replace(flags=held.flags | SettingsFlag.INDEXING))
        lab.node.address("eth0", "192.0.2.77/24")
        bring(plane, MASQUERADING)
        assert maps.settings(slot) == held


# -- frames that are not the device's --------------------------------------------------------


def mac_of(host: Namespace, device: str) -> str:
    shown = json.loads(host.run(["ip", "-j", "link", "show", "dev", device]).stdout)
    return str(shown[0]["address"])


class Wire:
    """Sends frames into a device as they are; a macvlan or a VLAN on it would do so."""

    def __init__(self, host: Namespace, device: str, stack: contextlib.ExitStack) -> None:
        with host.entered():
            self._socket = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        self._socket.bind((device, 0))

    def send(self, packet: Packet, source: str, destination: str, tag: int | None = None) -> None:
        frame = Ether(src=source, dst=destination)
        whole = frame / packet if tag is None else frame / Dot1Q(vlan=tag) / packet
        self._socket.send(bytes(whole))


OTHER_MAC = "02:00:00:00:00:77"
CHILD = {Family.IPV4: "192.0.2.77", Family.IPV6: "2001:db8:1::77"}


def numbered(family: Family, number: int) -> Packet:
    """A packet of another host on eth0, such as a macvlan there, that `arrivals` reads."""
    return udp(CHILD[family], 1500 + number, WORLD[family], PORT, struct.pack("!Q", number))


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_frames_of_other_devices_leave_as_they_are(lab: Crossing, family: Family) -> None:
    here, there = mac_of(lab.node, "eth0"), mac_of(lab.world, "node0")
    with contextlib.ExitStack() as stack, in_force("bpf", MASQUERADING):
        listener = stack.enter_context(lab.listening(family))
        with lab.world.entered():
            heard = stack.enter_context(
                socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(0x0003))  # all
            )
        heard.bind(("node0", 0x0003))
        heard.settimeout(5)
        wire = Wire(lab.node, "eth0", stack)
        wire.send(numbered(family, 1), OTHER_MAC, there)
        wire.send(numbered(family, 2), here, there)
        wire.send(numbered(family, 3), here, there, tag=5)
        sources = {number: place.source for number, (_, place) in arrivals(listener, 2).items()}
        assert sources == {1: CHILD[family], 2: PLANS[family].eth[0]}
        # Nobody in the world has that VLAN.
        tagged = struct.pack("!Q", 3)
        while tagged not in (frame := heard.recv(2000)):
            continue
        assert parse_address(CHILD[family])[1].to_bytes(family.bits // 8) in frame


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_frames_for_other_devices_are_none_of_ours(lab: Crossing, family: Family) -> None:
    here, there = mac_of(lab.node, "eth0"), mac_of(lab.world, "node0")
    plan = PLANS[family]
    with contextlib.ExitStack() as stack, in_force("bpf", MASQUERADING) as plane:
        assert isinstance(plane, BpfPlane)
        talk = Talk(lab, family, stack)
        talk.pod.send(b"question")
        _, (_, port, *_) = talk.world.recvfrom(100)
        before = plane.counters()[family, "in_translated"]
        wire = Wire(lab.world, "node0", stack)

        def reply(data: bytes) -> Packet:
            return udp(WORLD[family], talk.world.getsockname()[1], plan.eth[0], port, data)

        wire.send(reply(b"for a macvlan"), there, OTHER_MAC)
        wire.send(reply(b"for a VLAN"), there, here, tag=5)
        wire.send(reply(b"for the pod"), there, here)
        assert talk.pod.recv(100) == b"for the pod"
        assert plane.counters()[family, "in_translated"] == before + 1


def test_a_device_is_known_by_its_new_address_of_the_link(lab: Crossing, tmp_path: Path) -> None:
    document = tmp_path / "config"
    document.write_text(f"{MASQUERADING}\nresyncInterval: 1h\n")
    words = "run", f"--config={document}", "--backend=bpf", "--enable-ipv6"
    agent = Running(tmp_path / "log", *words)
    number = socket.if_nametoindex("eth0")

    def known() -> bytes:
        with pinned() as maps:
            return maps.devices()[number].device.mac

    try:
        agent.wait_ready()
        with contextlib.ExitStack() as stack:
            talks = {family: Talk(lab, family, stack) for family in Family}
            for family, talk in talks.items():
                assert talk.exchange() == PLANS[family].eth[0]
            lab.node.run(["ip", "link", "set", "eth0", "address", OTHER_MAC])
            lab.world.run(["ip", "neigh", "flush", "all"])
            wait_until(lambda: known().hex(":") == OTHER_MAC, "it is told")
            for family, talk in talks.items():
                assert talk.exchange() == PLANS[family].eth[0]
                assert Talk(lab, family, stack).exchange() == PLANS[family].eth[0]
    finally:
        agent.stop()


# -- devices that come and go ----------------------------------------------------------------


def come(number: int) -> str:
    """Return what makes a device through which packets leave the node, for ``ip -batch``."""
    return f"""link add late{number} type veth peer name far{number}
addr add 198.18.{number}.1/24 dev late{number}
link set far{number} up
link set late{number} up
"""


@pytest.mark.parametrize("hook", list(layout.TcHook), ids=lambda hook: hook.name.lower())
@pytest.mark.parametrize("how", [tcx, clsact], ids=["tcx", "clsact"])
def test_a_device_that_goes_while_programs_are_put_on_it_is_no_failure(
    lab: Crossing, monkeypatch: pytest.MonkeyPatch, how: ModuleType, hook: layout.TcHook
) -> None:
    monkeypatch.setattr(NodePrograms.__init__, "__kwdefaults__", {"tcx": how is tcx})
    with in_force("bpf", MASQUERADING) as plane, pinned() as maps:
        lab.node.run(["ip", "-batch", "-"], stdin=come(1) + come(2) + come(3))
        late = [socket.if_nametoindex(f"late{number}") for number in (1, 2, 3)]
        attach = how.attach

        def attach_too_late(ifindex: int, to: layout.TcHook, *how_else: object) -> object:
            if (ifindex, to) == (late[1], hook):
                lab.node.run(["ip", "link", "del", "late2"])
            return attach(ifindex, to, *how_else)

        monkeypatch.setattr(how, "attach", attach_too_late)
        bring(plane, MASQUERADING)
        assert {late[0], late[2]} < maps.devices().keys()
        assert late[1] not in maps.devices()
        assert not list(Path(placement().pins).glob(f"link-{late[1]}-*"))
        assert not plane.disturbed()


def test_no_pass_fails_while_devices_come_and_go_by_the_hundred(
    lab: Crossing, tmp_path: Path
) -> None:
    document = tmp_path / "config"
    document.write_text(f"{MASQUERADING}\nresyncInterval: 1h\n")
    words = "run", f"--config={document}", "--backend=bpf", "--enable-ipv6"
    agent = Running(tmp_path / "log", *words)
    try:
        agent.wait_ready()
        before = agent.status()["changes"]
        some = range(1, 9)
        coming = "".join(map(come, some))
        going = "".join(f"link del late{number}\n" for number in some)

        def known() -> bool:
            with pinned() as maps:
                return {socket.if_nametoindex(f"late{n}") for n in some} <= maps.devices().keys()

        for turn in range(15):
            lab.node.run(["ip", "-batch", "-"], stdin=coming)
            if turn % 3 == 2:  # now and then there is the time to put programs on them
                wait_until(known, "they are known")
            lab.node.run(["ip", "-batch", "-"], stdin=going)
        here = {number for number, _ in socket.if_nameindex()}
        with pinned() as maps:
            wait_until(lambda: maps.devices().keys() <= here, "all have gone")
        wait_until(agent.ready, "and it is ready")
        assert agent.status()["changes"] > before
        assert "pass failed" not in agent.log.read_text()
    finally:
        agent.stop()
