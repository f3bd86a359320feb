"""What was decided for a flow stays decided: replies, moves of the policy, ends, new beginnings."""

from __future__ import annotations

import pytest

from tests.bpf import layout
from tests.bpf.datapath import Datapath, Key, now
from tests.bpf.packets import Addresses, echo, flow, frame, tcp, udp

PROTOCOLS = ("tcp", "udp", "echo")
TCP, UDP = 6, 17
OPENING, ESTABLISHED, CLOSING, RESET_LIFE = 60, 5 * 24 * 3600, 120, 10
GRACE = 2


def of_pod(family: Addresses, protocol: int = TCP) -> Key:
    """The pod's flow to port 80 outside."""
    return Key(family.pod, 1500, family.outside, 80, protocol)


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
    assert CLOSING - 5 <= left(masq, family, of_pod(family)) <= CLOSING
    masq.policy(family.number, {family.everything: layout.NON_MASQUERADE}, generation=1)
    packet = frame(tcp(family.pod, 1500, family.outside, 80, "S"))
    assert masq.out(packet) == packet
    held = masq.alive(family.number)[of_pod(family)]
    assert not held.translated
    late = frame(tcp(family.outside, 80, family.node, 1500, "A"))
    assert masq.back(late) == late  # of the older one, to nobody


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
    port = masq.port(family, family.pod)
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
    masq.let_expire(family.number, since=GRACE)
    # The other pod takes the port over while nothing has swept the first one's flow away.
    out = masq.out(udp(family.other_pod, 1500, family.outside, 80))
    assert out == frame(udp(family.node, 1500, family.outside, 80))
    assert masq.out(udp(family.pod, 1500, family.outside, 80)) is not None
    back = masq.back(udp(family.outside, 80, family.node, 1500))
    assert back == frame(udp(family.outside, 80, family.other_pod, 1500))
    out = masq.out(udp(family.other_pod, 1500, family.outside, 80))
    assert out == frame(udp(family.node, 1500, family.outside, 80))


@pytest.mark.parametrize("side", ["pod", "outside"])
def test_a_reset_shortens_a_flow_and_its_sender_restores_it_by_going_on(
    masq: Datapath, family: Addresses, side: str
) -> None:
    establish(masq, family)
    key = of_pod(family)
    assert left(masq, family, key) > ESTABLISHED - 5

    def send(flags: str, by: str) -> None:
        if by == "pod":
            masq.out(tcp(family.pod, 1500, family.outside, 80, flags))
        else:
            masq.back(tcp(family.outside, 80, family.node, 1500, flags))

    send("R", side)
    assert 0 < left(masq, family, key) <= RESET_LIFE
    send("A", "outside" if side == "pod" else "pod")  # on its way while the reset came
    assert 0 < left(masq, family, key) <= RESET_LIFE
    send("A", side)  # so the reset was forged
    assert left(masq, family, key) > ESTABLISHED - 5


def test_a_reset_from_outside_begins_no_flow(masq: Datapath, family: Addresses) -> None:
    masq.back(tcp(family.outside, 80, family.pod, 1500, "R"))
    assert masq.flows(family.number) == {}


def test_the_life_of_udp_grows_with_its_first_reply(masq: Datapath, family: Addresses) -> None:
    key = of_pod(family, UDP)
    masq.out(udp(family.pod, 1500, family.outside, 80))
    assert 25 <= left(masq, family, key) <= 30
    masq.back(udp(family.outside, 80, family.node, 1500))
    assert 115 <= left(masq, family, key) <= 120


@pytest.mark.parametrize("opener", ["pod", "outside"])
def test_a_connection_lives_long_once_its_opener_has_answered_the_answer(
    masq: Datapath, family: Addresses, opener: str
) -> None:
    key = of_pod(family)
    outward, inward = ("S", "SA") if opener == "pod" else ("SA", "S")
    node = family.node if opener == "pod" else family.pod
    for side in ("pod", "outside") if opener == "pod" else ("outside", "pod"):
        if side == "pod":
            masq.out(tcp(family.pod, 1500, family.outside, 80, outward))
        else:
            masq.back(tcp(family.outside, 80, node, 1500, inward))
        assert OPENING - 5 <= left(masq, family, key) <= OPENING  # anybody may forge a SYN
    if opener == "pod":
        masq.out(tcp(family.pod, 1500, family.outside, 80, "A"))
    else:
        masq.back(tcp(family.outside, 80, node, 1500, "A"))
    assert left(masq, family, key) > ESTABLISHED - 5


def test_a_forged_connection_from_outside_lives_no_longer_than_a_half_open_one(
    masq: Datapath, family: Addresses
) -> None:
    key = of_pod(family)
    masq.back(tcp(family.outside, 80, family.pod, 1500, "S"))
    masq.out(tcp(family.pod, 1500, family.outside, 80, "SA"))
    for guess in (0, 2, 1 << 31):  # whoever sends these has not got the answer
        masq.back(tcp(family.outside, 80, family.pod, 1500, "A", ack=guess))
        assert OPENING - 5 <= left(masq, family, key) <= OPENING
    masq.back(tcp(family.outside, 80, family.pod, 1500, "A", ack=1))
    assert left(masq, family, key) > ESTABLISHED - 5


def test_a_forged_syn_changes_nothing_of_a_connection_from_outside(
    masq: Datapath, family: Addresses
) -> None:
    masq.back(tcp(family.outside, 80, family.pod, 1500, "S"))
    masq.out(tcp(family.pod, 1500, family.outside, 80, "SA"))
    masq.back(tcp(family.outside, 80, family.pod, 1500, "A"))
    masq.back(tcp(family.outside, 80, family.pod, 1500, "S"))
    assert left(masq, family, of_pod(family)) > ESTABLISHED - 5


def test_what_a_pod_accepts_came_from_outside_also_where_that_was_not_seen(
    masq: Datapath, family: Addresses
) -> None:
    reply = frame(tcp(family.pod, 8080, family.outside, 4000, "SA"))
    assert masq.out(reply) == reply
    masq.back(tcp(family.outside, 4000, family.pod, 8080, "A"))
    data = frame(tcp(family.pod, 8080, family.outside, 4000, "A"))
    assert masq.out(data) == data


def test_two_ends_that_open_a_connection_at_once_have_one(
    masq: Datapath, family: Addresses
) -> None:
    masq.out(tcp(family.pod, 1500, family.outside, 80, "S"))
    masq.back(tcp(family.outside, 80, family.node, 1500, "S"))
    out = masq.out(tcp(family.pod, 1500, family.outside, 80, "SA"))
    assert out == frame(tcp(family.node, 1500, family.outside, 80, "SA"))


def test_what_comes_in_for_the_node_itself_fills_no_table(
    masq: Datapath, family: Addresses
) -> None:
    masq.own(family.number, family.other_node)
    for node in (family.node, family.other_node):
        masq.back(tcp(family.outside, 4000, node, 22, "S"))
        masq.back(tcp(family.outside, 4000, node, 22, "A"))
    masq.back(udp(family.outside, 4000, family.node, 53))
    masq.back(echo(family.outside, family.node, 7))
    assert masq.flows(family.number) == {}


def test_an_answer_of_the_node_keeps_address_and_port_where_both_would_change(
    masq: Datapath, family: Addresses
) -> None:
    masq.own(family.number, family.other_node)
    masq.policy(family.number, {family.everything: layout.MASQUERADE}, ports=[(40000, 40003)])
    for node in (family.node, family.other_node):
        masq.back(udp(family.outside, 4000, node, 53))
        answer = frame(udp(node, 53, family.outside, 4000))
        assert masq.out(answer) == answer
        for flags in ("SA", "A", "FA", "R"):
            answer = frame(tcp(node, 22, family.outside, 4000, flags))
            assert masq.out(answer) == answer


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_answer_of_the_node_may_leave_through_another_device(
    masq: Datapath, family: Addresses, protocol: str
) -> None:
    masq.own(family.number, family.node, family.other_node)
    masq.several()
    masq.back(flow(protocol, family.outside, 4000, family.node, 53))
    masq.device(family, source="other_node")  # as the other one is
    answer = frame(flow(protocol, family.node, 53, family.outside, 4000, reply=True))
    assert masq.out(answer) == answer


def test_connections_of_the_node_from_before_go_on(masq: Datapath, family: Addresses) -> None:
    masq.policy(family.number, {family.everything: layout.MASQUERADE}, ports=[(40000, 40003)])
    data = frame(tcp(family.node, 1500, family.outside, 80, "A"))
    assert masq.out(data) == data
    answer = frame(tcp(family.outside, 80, family.node, 1500, "A"))
    assert masq.back(answer) == answer
