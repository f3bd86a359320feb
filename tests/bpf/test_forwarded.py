"""Packets that the node forwards, through two programs one after the other.

They come in at `in0`, whose other end sends them, and are forwarded to `out0`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from tests.bpf import layout
from tests.bpf.datapath import Datapath
from tests.bpf.packets import FAMILIES, LINK, NODE_MAC, Addresses, flow, frame
from tests.bpf.syscall import pin
from tests.kernel import bpffs
from tests.netns import Namespace

MAC = "02:00:00:00:00:02"  # of in0
PROTOCOLS = ("tcp", "udp", "echo")
DEVICES = "in0", "out0"
SETTINGS = (
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.in0.rp_filter=0",
)


@pytest.fixture(scope="module")
def relay() -> Iterator[Namespace]:
    """A node that forwards from `in0` to `out0`; it has none of the addresses itself."""
    with Namespace("relay") as made:
        made.run(["ip", "link", "add", "in0", "address", MAC, "type", "veth", "peer", "pod0"])
        of_node = "address", NODE_MAC.hex(":")
        made.run(["ip", "link", "add", "out0", *of_node, "type", "veth", "peer", "far0"])
        made.run(["sysctl", "-qw", *SETTINGS])
        for device in ("in0", "pod0", "out0", "far0"):
            made.run(["ip", "link", "set", device, "up"])
        for family in FAMILIES:
            made.run(["ip", "route", "add", family.everything, "dev", "out0"])
            neighbour = ("ip", "neigh", "add", family.outside, "lladdr", MAC)
            made.run([*neighbour, "dev", "out0", "nud", "permanent"])
            made.run(["ip", "route", "add", family.pod, "dev", "in0"])
            neighbour = ("ip", "neigh", "add", family.pod, "lladdr", MAC)
            made.run([*neighbour, "dev", "in0", "nud", "permanent"])
        yield made


@pytest.fixture
def masq(
    loaded: Datapath, relay: Namespace, family: Addresses, tmp_path: Path
) -> Iterator[Datapath]:
    """The programs with a policy, attached to `out0`."""
    with relay.entered():
        loaded.ifindex = socket.if_nametoindex("out0")
        loaded.forget()
        loaded.policy(family.number, {family.everything: layout.MASQUERADE})
        loaded.device(family)
        for device in DEVICES:
            relay.run(["tc", "qdisc", "add", "dev", device, "clsact"])
        with bpffs.private_mounts():
            mounted = bpffs.mount(tmp_path / "bpffs")
            for name, hook in (("outward", "egress"), ("inward", "ingress")):
                pin(loaded.programs[name], mounted / name)
                filtered = ("bpf", "direct-action", "object-pinned", str(mounted / name))
                # Twice, as where a second device of ours is below the first.
                for device in ("out0", "out0", "in0"):
                    relay.run(["tc", "filter", "add", "dev", device, hook, *filtered])
        yield loaded
        for device in DEVICES:
            relay.run(["tc", "qdisc", "del", "dev", device, "clsact"])


def forwarded(family: Addresses, packet: Packet) -> Packet:
    """Send a packet in at `in0`, and return what came out at the other end of `out0`."""
    sent = frame(packet, destination=bytes.fromhex(MAC.replace(":", "")))
    return _through(family, "pod0", sent, "far0", packet.dst)


def _through(family: Addresses, at: str, sent: bytes, end: str, destination: str) -> Packet:
    """Send a frame from one device, and return the packet that comes to another one."""
    kind = 0x0800 if family.v4 else 0x86DD
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind)) as receiver,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender,
    ):
        receiver.bind((end, kind))
        receiver.settimeout(10)
        sender.bind((at, 0))
        sender.send(sent)
        while True:
            came = (IP if family.v4 else IPv6)(receiver.recv(2048)[LINK:])
            if came.dst == destination:
                return came


def hop(packet: Packet) -> Packet:
    """A packet as the node that forwards it makes it."""
    name = "ttl" if isinstance(packet, IP) else "hlim"
    packet.setfieldval(name, packet.getfieldval(name) - 1)
    return packet


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_forwarded_packet_is_translated_once(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    came = forwarded(family, flow(protocol, family.pod, 1500, family.outside, 80))
    assert bytes(came) == bytes(hop(flow(protocol, family.node, 1500, family.outside, 80)))
    # The second program has left it alone.
    counted = masq.counted(family.number)
    counted.pop("OUT_KEPT_SCOPE", None)  # neighbour discovery
    assert counted == {"OUT_TRANSLATED": 1, "FLOWS_TRANSLATED": 1}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_reply_is_translated_once(masq: Datapath, family: Addresses, protocol: str) -> None:
    masq.out(flow(protocol, family.pod, 1500, family.outside, 80))
    begun = set(masq.flows(family.number))
    reply = frame(flow(protocol, family.outside, 80, family.node, 1500, reply=True))
    came = _through(family, "far0", reply, "pod0", family.pod)
    expected = hop(flow(protocol, family.outside, 80, family.pod, 1500, reply=True))
    assert bytes(came) == bytes(expected)
    # To the second program it is not something new that comes in for a pod.
    assert set(masq.flows(family.number)) == begun
    assert "FLOWS_FROM_OUTSIDE" not in masq.counted(family.number)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_reply_that_goes_on_through_another_device_is_no_new_flow(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    masq.out(flow(protocol, family.pod, 1500, family.outside, 80))
    masq.ifindex = socket.if_nametoindex("in0")
    masq.device(family, mac=bytes.fromhex(MAC.replace(":", "")))
    reply = frame(flow(protocol, family.outside, 80, family.node, 1500, "A", reply=True))
    came = _through(family, "far0", reply, "pod0", family.pod)
    expected = hop(flow(protocol, family.outside, 80, family.pod, 1500, "A", reply=True))
    assert bytes(came) == bytes(expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_drained_flow_is_handed_over_to_who_translates_it_by_now(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    masq.out(flow(protocol, family.pod, 1500, family.outside, 80))
    masq.out(flow(protocol, family.pod, 1501, family.outside, 80))
    masq.policy(
        family.number, {family.everything: layout.MASQUERADE}, flags=layout.DRAINING, generation=1
    )
    sent = flow(protocol, family.node, 1500, family.outside, 80, "A")
    assert bytes(forwarded(family, sent)) == bytes(hop(sent))
    assert masq.counted(family.number)["OUT_HANDED_OVER"] == 1
    left = masq.alive(family.number)
    assert [key.sport for key in left] in ([1501], [1501, 0])
