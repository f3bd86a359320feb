"""What was decided for a flow stays decided: replies, moves of the policy, ends, new beginnings."""

from __future__ import annotations

import pytest

from tests.bpf import layout
from tests.bpf.datapath import Datapath, Flow, Key, now
from tests.bpf.packets import Addresses, flow, frame, tcp, udp

PROTOCOLS = ("tcp", "udp", "echo")
TCP = 6
ESTABLISHED, CLOSING, RESET_LIFE = 5 * 24 * 3600, 120, 10


def pair(family: Addresses, port: int = 1500) -> tuple[Key, Key]:
    """The two keys of the pod's TCP flow to port 80 outside, translated to ``port``."""
    return (
        Key(family.pod, 1500, family.outside, 80, TCP, layout.OUTWARD),
        Key(family.outside, 80, family.node, port, TCP, layout.INWARD),
    )


def establish(masq: Datapath, family: Addresses) -> None:
    masq.out(tcp(family.pod, 1500, family.outside, 80, "S"))
    masq.back(tcp(family.outside, 80, family.node, 1500, "SA"))
    masq.out(tcp(family.pod, 1500, family.outside, 80, "A"))


def left(masq: Datapath, family: Addresses, key: Key) -> int:
    """Seconds that a flow has to live."""
    held = masq.flow(family.number, key)
    assert held is not None
    return held.expires - now()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_reply_to_a_connection_from_outside_is_kept(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    request = frame(flow(protocol, family.outside, 4000, family.pod, 8080))
    reply = frame(flow(protocol, family.pod, 8080, family.outside, 4000, reply=True))
    assert masq.back(request) == request
    assert masq.out(reply) == reply
    assert masq.counted(family.number) == {
        "IN_PASSED": 1,
        "FLOWS_FROM_OUTSIDE": 1,
        "OUT_KEPT_REPLY": 1,
    }


def test_a_pods_new_connection_is_no_reply_of_an_older_inbound_one(
    masq: Datapath, family: Addresses
) -> None:
    masq.back(tcp(family.outside, 80, family.pod, 1500, "S"))
    masq.out(tcp(family.pod, 1500, family.outside, 80, "SA"))
    masq.back(tcp(family.outside, 80, family.pod, 1500, "A"))
    out = masq.out(tcp(family.pod, 1500, family.outside, 80, "S"))
    assert out == frame(tcp(family.node, 1500, family.outside, 80, "S"))
    back = masq.back(tcp(family.outside, 80, family.node, 1500, "SA"))
    assert back == frame(tcp(family.outside, 80, family.pod, 1500, "SA"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_flow_keeps_its_verdict_when_the_policy_changes(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    masq.out(flow(protocol, family.pod, 1500, family.outside, 80))
    masq.out(flow(protocol, family.pod, 1501, family.kept, 80))
    other = {family.everything: layout.NON_MASQUERADE, family.kept_prefix: layout.MASQUERADE}
    masq.policy(family.number, other, generation=1)
    out = masq.out(flow(protocol, family.pod, 1500, family.outside, 80, "A"))
    assert out == frame(flow(protocol, family.node, 1500, family.outside, 80, "A"))
    kept = frame(flow(protocol, family.pod, 1501, family.kept, 80, "A"))
    assert masq.out(kept) == kept
    # New ones are of the new policy.
    out = masq.out(flow(protocol, family.pod, 1502, family.kept, 80))
    assert out == frame(flow(protocol, family.node, 1502, family.kept, 80))
    kept = frame(flow(protocol, family.pod, 1503, family.outside, 80))
    assert masq.out(kept) == kept


@pytest.mark.parametrize("closer", ["pod", "outside"])
def test_a_new_connection_after_the_end_of_one_is_decided_anew(
    masq: Datapath, family: Addresses, closer: str
) -> None:
    establish(masq, family)
    if closer == "pod":
        masq.out(tcp(family.pod, 1500, family.outside, 80, "FA"))
    else:
        masq.back(tcp(family.outside, 80, family.node, 1500, "FA"))
    outward, inward = pair(family)
    assert CLOSING - 5 <= left(masq, family, outward) <= CLOSING
    assert left(masq, family, inward) == left(masq, family, outward)
    masq.policy(family.number, {family.everything: layout.NON_MASQUERADE}, generation=1)
    packet = frame(tcp(family.pod, 1500, family.outside, 80, "S"))
    assert masq.out(packet) == packet
    assert list(masq.flows(family.number)) == [outward]


def test_a_connection_from_outside_may_follow_one_that_was_translated(
    masq: Datapath, family: Addresses
) -> None:
    establish(masq, family)
    masq.back(tcp(family.outside, 80, family.pod, 1500, "S"))  # while that one is open: nothing
    out = masq.out(tcp(family.pod, 1500, family.outside, 80, "A"))
    assert out == frame(tcp(family.node, 1500, family.outside, 80, "A"))
    masq.out(tcp(family.pod, 1500, family.outside, 80, "FA"))
    masq.back(tcp(family.outside, 80, family.pod, 1500, "S"))
    reply = frame(tcp(family.pod, 1500, family.outside, 80, "SA"))
    assert masq.out(reply) == reply
    assert masq.counted(family.number)["OUT_KEPT_REPLY"] == 1


def test_a_lost_answer_to_a_new_connection_moves_nothing(masq: Datapath, family: Addresses) -> None:
    masq.policy(
        family.number,
        {family.everything: layout.MASQUERADE},
        flags=layout.MANAGED | layout.RANDOM_FULLY,
    )
    first = masq.out(tcp(family.pod, 1500, family.outside, 80, "S"))
    (port,) = {key.dport for key in masq.flows(family.number) if key.side == layout.INWARD}
    masq.back(tcp(family.outside, 80, family.node, port, "SA"))  # and lost on its way to the pod
    assert masq.out(tcp(family.pod, 1500, family.outside, 80, "S")) == first


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_has_expired_is_decided_anew(masq: Datapath, family: Addresses, protocol: str) -> None:
    masq.out(flow(protocol, family.pod, 1500, family.outside, 80))
    masq.let_expire(family.number)
    late = frame(flow(protocol, family.outside, 80, family.node, 1500, reply=True))
    assert masq.back(late) == late  # to nobody any more
    masq.let_expire(family.number)
    masq.policy(family.number, {family.everything: layout.NON_MASQUERADE}, generation=1)
    packet = frame(flow(protocol, family.pod, 1500, family.outside, 80))
    assert masq.out(packet) == packet


def test_a_flow_that_has_expired_gets_a_port_of_the_policy_in_force(
    masq: Datapath, family: Addresses
) -> None:
    masq.out(tcp(family.pod, 1500, family.outside, 80))
    masq.let_expire(family.number)
    masq.policy(
        family.number,
        {family.everything: layout.MASQUERADE},
        generation=1,
        ports=[(40000, 40000)],
    )
    out = masq.out(tcp(family.pod, 1500, family.outside, 80))
    assert out == frame(tcp(family.node, 40000, family.outside, 80))


def test_a_flow_that_begins_again_leaves_another_ones_way_back_alone(
    masq: Datapath, family: Addresses
) -> None:
    masq.out(udp(family.pod, 1500, family.outside, 80))
    masq.let_expire(family.number)
    # The other pod takes the port over while nothing has swept the first one's flow away.
    out = masq.out(udp(family.other_pod, 1500, family.outside, 80))
    assert out == frame(udp(family.node, 1500, family.outside, 80))
    assert masq.out(udp(family.pod, 1500, family.outside, 80)) is not None
    back = masq.back(udp(family.outside, 80, family.node, 1500))
    assert back == frame(udp(family.outside, 80, family.other_pod, 1500))
    out = masq.out(udp(family.other_pod, 1500, family.outside, 80))
    assert out == frame(udp(family.node, 1500, family.outside, 80))


def test_a_flow_whose_way_back_was_forgotten_gets_it_again(
    masq: Datapath, family: Addresses
) -> None:
    establish(masq, family)
    outward, inward = pair(family)
    masq.maps["flows"].delete(inward.packed(family.number))
    held = masq.flow(family.number, outward)
    assert held is not None
    older = Flow(held.address, held.port, held.state, held.expires - 2)
    masq.put_flow(family.number, outward, older)  # as if its last packet was a while ago
    masq.out(tcp(family.pod, 1500, family.outside, 80, "A"))
    back = masq.back(tcp(family.outside, 80, family.node, 1500, "A"))
    assert back == frame(tcp(family.outside, 80, family.pod, 1500, "A"))


def test_a_flow_of_which_only_the_way_back_is_left_keeps_its_port(
    masq: Datapath, family: Addresses
) -> None:
    masq.out(tcp(family.other_pod, 1500, family.outside, 80))
    masq.out(tcp(family.pod, 1500, family.outside, 80))
    outward, _ = pair(family)
    held = masq.flow(family.number, outward)
    assert held is not None
    masq.maps["flows"].delete(outward.packed(family.number))
    back = masq.back(tcp(family.outside, 80, family.node, held.port, "SA"))
    assert back == frame(tcp(family.outside, 80, family.pod, 1500, "SA"))
    out = masq.out(tcp(family.pod, 1500, family.outside, 80, "A"))
    assert out == frame(tcp(family.node, held.port, family.outside, 80, "A"))


@pytest.mark.parametrize("side", ["pod", "outside"])
def test_a_reset_shortens_a_flow_and_data_after_it_restores_it(
    masq: Datapath, family: Addresses, side: str
) -> None:
    establish(masq, family)
    outward, inward = pair(family)
    assert left(masq, family, outward) > ESTABLISHED - 5
    if side == "pod":
        masq.out(tcp(family.pod, 1500, family.outside, 80, "R"))
    else:
        masq.back(tcp(family.outside, 80, family.node, 1500, "R"))
    assert 0 < left(masq, family, outward) <= RESET_LIFE
    assert 0 < left(masq, family, inward) <= RESET_LIFE
    masq.back(tcp(family.outside, 80, family.node, 1500, "A"))  # so it was forged
    assert left(masq, family, outward) > ESTABLISHED - 5
    assert left(masq, family, inward) > ESTABLISHED - 5


def test_a_reset_from_outside_begins_no_flow(masq: Datapath, family: Addresses) -> None:
    masq.back(tcp(family.outside, 80, family.pod, 1500, "R"))
    assert masq.flows(family.number) == {}


def test_the_life_of_udp_grows_with_its_first_reply(masq: Datapath, family: Addresses) -> None:
    keys = [Key(k.source, k.sport, k.destination, k.dport, 17, k.side) for k in pair(family)]
    masq.out(udp(family.pod, 1500, family.outside, 80))
    assert all(25 <= left(masq, family, key) <= 30 for key in keys)
    masq.back(udp(family.outside, 80, family.node, 1500))
    assert all(115 <= left(masq, family, key) <= 120 for key in keys)
