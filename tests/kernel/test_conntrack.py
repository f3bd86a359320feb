"""What connection tracking is told of, as conntrack(8) lists it."""

from __future__ import annotations

import re
import socket

import pytest

from ipmasq_agent.netlink.ct import introduce
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.flows import End, Flow
from tests.netns import Namespace

ENDS = {
    Family.IPV4: ("10.0.0.1", "192.0.2.2"),
    Family.IPV6: ("fd00::1", "2001:db8::2"),
}


def address(family: Family, text: str) -> int:
    kind = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
    return int.from_bytes(socket.inet_pton(kind, text))


def connection(family: Family, protocol: int, port: int) -> tuple[Flow, int]:
    source, destination = (address(family, text) for text in ENDS[family])
    ends = End(source, port), End(destination, 443)
    return Flow(family, protocol, *ends, *ends), 600


def listed(namespace: Namespace, family: Family) -> list[str]:
    return namespace.run(["conntrack", "-L", "-f", family.value]).stdout.splitlines()


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_connections_are_in_the_table_without_nat_and_as_if_both_sides_had_spoken(
    in_ns: Namespace, family: Family
) -> None:
    introduce([connection(family, socket.IPPROTO_TCP, 1000)])
    introduce([connection(family, socket.IPPROTO_UDP, 1001)])
    source, destination = ENDS[family]
    there = f"src={source} dst={destination} sport=%d dport=443"
    back = f"src={destination} dst={source} sport=443 dport=%d"
    tcp, udp = sorted(listed(in_ns, family))
    assert re.match(r"tcp +6 (59\d|600) ESTABLISHED ", tcp)
    assert re.match(r"udp +17 (59\d|600) ", udp)
    for line, port in ((tcp, 1000), (udp, 1001)):
        assert f"{there % port} {back % port} [ASSURED]" in line


def test_more_than_fit_into_one_message_and_twice(in_ns: Namespace) -> None:
    many = [connection(Family.IPV4, socket.IPPROTO_TCP, 1000 + n) for n in range(1000)]
    introduce(many[:700])
    introduce(many)
    assert len(listed(in_ns, Family.IPV4)) == 1000


def test_a_connection_that_is_known_stays_as_it_is(in_ns: Namespace) -> None:
    ends = ["--src", "10.0.0.1", "--dst", "192.0.2.2", "--sport", "1000", "--dport", "443"]
    nat = ["--src-nat", "192.0.2.1:2000", "--timeout", "30"]
    in_ns.run(["conntrack", "-I", "-p", "udp", *ends, *nat])
    (before,) = listed(in_ns, Family.IPV4)
    introduce([connection(Family.IPV4, socket.IPPROTO_UDP, 1000)])
    (after,) = listed(in_ns, Family.IPV4)
    assert "dst=192.0.2.1 " in after
    assert re.sub(r" \d+ src", " src", before, count=1) == re.sub(
        r" \d+ src", " src", after, count=1
    )
