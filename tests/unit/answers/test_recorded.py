"""Recorded connections are read back whoever wrote them down, and what is none is refused."""

from __future__ import annotations

import io
import ipaddress
import itertools
import json
import struct
from collections.abc import Sequence

import pytest

from ipmasq_agent.answers.recorded import recorded
from ipmasq_agent.errors import UsageError
from ipmasq_agent.policy.flows import Flow

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
SYN, ACK = 0x02, 0x10
V4, V6 = ("172.20.0.10", "10.10.1.200"), ("fd00:172:20::10", "2001:db8::7")
ENDS = pytest.mark.parametrize("ends", [V4, V6], ids=["ipv4", "ipv6"])


def read(content: bytes | str) -> list[Flow]:
    data = content.encode() if isinstance(content, str) else content
    return list(recorded(io.BufferedReader(io.BytesIO(data)), "flows.log"))


def told(flow: Flow) -> str:
    ends = flow.source, flow.destination, flow.left_as, flow.reached
    shown = [end.shown(flow.family) for end in ends]
    return " ".join([flow.protocol_name, *shown, "answered" if flow.established else "asked"])


# -- captures ---------------------------------------------------------------------------


def tcp(source: int, destination: int, flags: int) -> bytes:
    return struct.pack(">HHIIBBHHH", source, destination, 0, 0, 5 << 4, flags, 0, 0, 0)


def packet(ends: Sequence[str], protocol: int, payload: bytes, *, extended: bool = False) -> bytes:
    """Return an IP packet; of IPv6 with a header of options and one of a first fragment."""
    source, destination = (ipaddress.ip_address(end).packed for end in ends)
    if len(source) == 4:
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0)
        return head + source + destination + payload
    kind = protocol
    if extended:
        options, fragment = bytes([44, 0]) + bytes(6), bytes([protocol, 0, 0, 1]) + bytes(4)
        kind, payload = 0, options + fragment + payload
    head = struct.pack(">IHBB", 6 << 28, len(payload), kind, 64)
    return head + source + destination + payload


def frame(link: int, ip: bytes) -> bytes:
    """Return a packet as a capture of that link type has it; on Ethernet in two VLANs."""
    kind = b"\x08\x00" if ip[0] >> 4 == 4 else b"\x86\xdd"
    return {
        1: bytes(12) + b"\x88\xa8\x00\x05\x81\x00\x00\x06" + kind + ip,
        113: bytes(14) + kind + ip,
        276: kind + bytes(18) + ip,
        101: ip,
        0: b"\x02\x00\x00\x00" + ip,
    }[link]


def classic(link: int, frames: Sequence[bytes], order: str = "<") -> bytes:
    head = struct.pack(f"{order}IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link)
    records = (struct.pack(f"{order}4I", 0, 0, len(one), len(one) + 4) + one for one in frames)
    return head + b"".join(records)


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack(f"{order}I", len(body) + 12)
    return struct.pack(f"{order}I", kind) + size + body + size


def next_generation(link: int, frames: Sequence[bytes], order: str = "<") -> bytes:
    """Return a pcapng: a section, an unknown block, an interface, packets of both kinds."""
    made = block(order, 0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))
    made += block(order, 0x0BAD, b"xx") + block(order, 1, struct.pack(f"{order}HHI", link, 0, 0))
    for one, simple in zip(frames, itertools.cycle([False, True]), strict=False):
        if simple:
            made += block(order, 3, struct.pack(f"{order}I", len(one)) + one)
        else:
            head = struct.pack(f"{order}5I", 0, 0, 0, len(one), len(one))
            made += block(order, 6, head + one)
    return made


@ENDS
@pytest.mark.parametrize("link", [1, 113, 276, 101, 0])
@pytest.mark.parametrize("form", [classic, next_generation])
@pytest.mark.parametrize("order", "<>")
def test_a_capture_of_any_device_tells_its_connections(
    ends: tuple[str, str], link: int, form: object, order: str
) -> None:
    echo, protocol = ((8, 0), ICMP) if ends is V4 else ((128, 129), ICMPV6)
    back = ends[::-1]
    packets = [
        packet(ends, TCP, tcp(40000, 443, SYN)),
        packet(back, TCP, tcp(443, 40000, SYN | ACK)),
        packet(ends, TCP, tcp(40000, 443, ACK), extended=True),
        packet(ends, UDP, struct.pack(">HHHH", 5000, 53, 8, 0)),
        packet(ends, protocol, struct.pack(">BBHHH", echo[0], 0, 0, 77, 1)),
        packet(back, protocol, struct.pack(">BBHHH", echo[1], 0, 0, 77, 1)),
        packet(ends, protocol, struct.pack(">BBHHH", 3, 0, 0, 0, 0)),  # an error is nobody's
        packet(ends, UDP, b"\x13"),  # cut off before its ports
    ]
    assert callable(form)
    found = [told(flow) for flow in read(form(link, [frame(link, p) for p in packets], order))]
    source, destination = (f"[{end}]" if ":" in end else end for end in ends)
    word, far = ("icmp", ends[1]) if ends is V4 else ("icmpv6", ends[1])
    expected = [
        ("tcp", f"{source}:40000", f"{destination}:443", "answered"),
        ("udp", f"{source}:5000", f"{destination}:53", "asked"),
        (word, f"{source}:77", far, "answered"),
    ]
    assert found == [f"{name} {a} {b} {a} {b} {seen}" for name, a, b, seen in expected]


@ENDS
def test_a_capture_that_begins_in_the_middle_knows_who_asked(ends: tuple[str, str]) -> None:
    back = ends[::-1]
    packets = [
        packet(back, TCP, tcp(443, 40000, SYN | ACK)),
        packet(back, UDP, struct.pack(">HHHH", 53, 5000, 8, 0)),
        packet(ends, TCP, tcp(40001, 8080, ACK)),
    ]
    for flow in read(classic(101, packets)):
        assert flow.family.show(flow.source.address) == ends[0]


def test_a_capture_that_breaks_off_is_read_as_far_as_it_goes() -> None:
    syn = frame(1, packet(V4, TCP, tcp(40000, 443, SYN)))
    whole = classic(1, [syn, syn])
    assert len(read(whole[:-3])) == len(read(whole[: -len(syn) - 3])) == 1
    assert read(whole[:24]) == []
    assert len(read(next_generation(1, [syn, syn])[:-5])) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (classic(1, [])[:10], "does not begin"),
        (classic(147, [b"x"]), "packet 1: link type 147"),
        (classic(1, [])[:24] + b"\xff" * 16, "claims"),
        (next_generation(1, [])[:8] + b"xxxx", "byte order"),
        (next_generation(1, []) + block("<", 6, bytes(8)), "flows.log: "),
    ],
)
def test_what_is_no_capture_says_so(content: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read(content)


# -- lines ------------------------------------------------------------------------------

KEPT = (
    "tcp      6 431999 ESTABLISHED src=172.20.0.10 dst=10.10.1.200 sport=40000 dport=443 "
    "src=10.10.1.200 dst=172.20.0.10 sport=443 dport=40000 [ASSURED] mark=0 use=1"
)
MASQUERADED = (
    "udp      17 29 src=172.20.0.10 dst=8.8.8.8 sport=5000 dport=53 packets=1 bytes=60 "
    "[UNREPLIED] src=8.8.8.8 dst=192.168.10.100 sport=53 dport=61000 packets=0 bytes=0 mark=0 "
    "use=1 id=3000000000"
)
SERVICE = (
    "ipv4     2 tcp      6 100 TIME_WAIT src=172.20.0.10 dst=10.96.0.1 sport=40001 dport=443 "
    "src=10.10.1.200 dst=192.168.10.100 sport=6443 dport=1024 [ASSURED] mark=0 use=1"
)
PING = (
    "ipv6     10 icmpv6   58 29 src=fd00:172:20::10 dst=2001:db8::7 type=128 code=0 id=77 "
    "src=2001:db8::7 dst=fd00:192::100 type=129 code=0 id=78 mark=0 use=1 id=12345"
)
NEW = (
    "[1764255600.123456]\t    [NEW] tcp      6 120 SYN_SENT src=172.20.0.10 dst=10.10.1.200 "
    "sport=40002 dport=443 [UNREPLIED] src=10.10.1.200 dst=172.20.0.10 sport=443 dport=40002"
)


def test_lines_of_conntrack_are_read_in_all_their_forms() -> None:
    remark = "conntrack v1.4.7 (conntrack-tools): 4 flow entries have been shown."
    found = read("\n".join([KEPT, "", MASQUERADED, SERVICE, PING, NEW, NEW, remark]))
    kept, served = "172.20.0.10:40000 10.10.1.200:443", "192.168.10.100:1024 10.10.1.200:6443"
    begun = "172.20.0.10:40002 10.10.1.200:443"
    assert [told(flow) for flow in found] == [
        f"tcp {kept} {kept} answered",
        "udp 172.20.0.10:5000 8.8.8.8:53 192.168.10.100:61000 8.8.8.8:53 asked",
        f"tcp 172.20.0.10:40001 10.96.0.1:443 {served} answered",
        "icmpv6 [fd00:172:20::10]:77 2001:db8::7 [fd00:192::100]:78 2001:db8::7 answered",
        f"tcp {begun} {begun} asked",
    ]


def test_lines_of_hubble_are_read_and_those_of_answers_are_not_connections() -> None:
    flow = {
        "IP": {"source": "172.20.0.10", "destination": "10.10.1.200", "ipVersion": "IPv4"},
        "l4": {"TCP": {"source_port": 40000, "destination_port": 443, "flags": {"SYN": True}}},
    }
    lines = [{"flow": flow}, {"flow": flow}, {"flow": {**flow, "is_reply": True}}]
    lines += [{"lost_events": {"num_events_lost": 3}}, {"agent_event": {"type": "STARTED"}}]
    lines.append({"flow": {"verdict": "FORWARDED", "ethernet": {}}})  # of no IP
    (found,) = read("\n".join(map(json.dumps, lines)))
    assert told(found).startswith("tcp 172.20.0.10:40000 10.10.1.200:443 ")


def test_lines_of_observe_tell_what_was_reached_behind_a_service() -> None:
    line = {
        "time": None,
        "verdict": "masquerade",
        "IP": {"source": "172.20.0.5", "destination": "10.96.0.1", "ipVersion": "IPv4"},
        "l4": {"UDP": {"source_port": 40254, "destination_port": 53}},
        "left_as": {"address": "192.168.10.100", "port": 40255},
        "reached": {"address": "10.10.1.200", "port": 5353},
    }
    ping = {**line, "l4": {"ICMPv4": {"id": 7}}, "left_as": None, "reached": None}
    tunnels = [ping | {"l4": {number: dict[str, int]()}} for number in ("47", "50")]
    one, other, *rest = read("\n".join(map(json.dumps, (line, ping, *tunnels))))
    assert [flow.protocol for flow in rest] == [47, 50]
    assert told(one) == (
        "udp 172.20.0.5:40254 10.96.0.1:53 192.168.10.100:40255 10.10.1.200:5353 asked"
    )
    assert told(other) == "icmp 172.20.0.5:7 10.96.0.1 172.20.0.5:7 10.96.0.1 asked"


@pytest.mark.parametrize(
    "wrong",
    [
        "hello",
        "{",
        '{"nonMasqueradeCIDRs": []}',
        "tcp 6 src=172.20.0.10 dst=fd00::1 sport=1 dport=2",
        "tcp 6 100 src=172.20.0.300 dst=10.0.0.1",
        '{"IP": {"source": "172.20.0.10"}}',
        '{"IP": {"source": "172.20.0.10", "destination": "fd00::1"}}',
        '{"IP": {"source": "::1", "destination": "::2"}, "l4": {"TCP": {"source_port": "x"}}}',
        "\x00\x01\x02",
    ],
)
def test_a_line_that_is_no_connection_is_named(wrong: str) -> None:
    with pytest.raises(UsageError, match=r"flows\.log:3: .* is no connection") as told_:
        read(f"{KEPT}\n\n{wrong}\n{KEPT}\n")
    assert "conntrack -L" in str(told_.value.remedy)
