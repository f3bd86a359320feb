"""The programs start on a node that speaks already: its own connections go on as they are."""

from __future__ import annotations

import contextlib
import socket

import pytest

from ipmasq_agent.policy.addresses import Family
from tests.kernel.attacks.site import EVERYTHING, PLANS, flags, masquerading, site
from tests.kernel.attacks.talk import Outcome, Server, ask, askers, kept_busy
from tests.kernel.attacks.test_crowds import FAMILIES, OTHERS, containers, named

EACH = 10
FORCED = (40_000, 40_099)
"""Ports that no connection from before has."""
OUTWARD = f"{EVERYTHING}\negressInterfaces: [eth0]"
BEFORE = (50_000, 50_999)


@FAMILIES
@pytest.mark.parametrize("tracked", [True, False], ids=["conntrack", "no conntrack"])
def test_connections_of_the_node_from_before_go_on(family: Family, tracked: bool) -> None:
    plan = PLANS[family]
    tcp = socket.SOCK_STREAM
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(site(tracked=tracked))
        where.pick_ports(*BEFORE)
        outside = stack.enter_context(Server(where.world, [plan.server(0)]))
        inside = stack.enter_context(Server(where.node, [plan.node]))
        ways = [
            (where.node, named("out", 2 * EACH, [plan.node], [plan.server(0)])),
            (where.world, named("in", 2 * EACH, [plan.server(0)], [plan.node])),
        ]
        if tracked:  # for what containers send has the node's address by netfilter
            others = stack.enter_context(containers(where, family, BEFORE))
            of_them = [OTHERS[family].containers.format(10)]
            ways.append((others, named("container", 2 * EACH, of_them, [plan.server(0)])))
        groups = [stack.enter_context(askers(of, plan, tcp, ends)) for of, ends in ways]
        idle = [one for group in groups for one in group[::2]]
        busy = [one for group in groups for one in group[1::2]]
        assert ask([*idle, *busy]) == Outcome()
        with kept_busy(busy), masquerading(where, OUTWARD, flags([FORCED])):
            assert ask(idle, 2) == Outcome()
            late = named("late", EACH, [plan.node], [plan.server(0)])
            with askers(where.node, plan, tcp, late) as new:
                assert ask(new) == Outcome()
        for server in (outside, inside):
            many = {name: ends for name, ends in server.seen.items() if len(ends) > 1}
            assert many == {}, "a connection has come from two ends"
        ports = {port for one in new for _, port, _ in outside.seen[one.name]}
        assert ports <= set(range(FORCED[0], FORCED[1] + 1))
