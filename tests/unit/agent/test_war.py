"""Two writers of one chain: when it is a war, who is the other, and what it costs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from ipmasq_agent import logs
from ipmasq_agent.agent.events import Signal
from ipmasq_agent.agent.war import War
from ipmasq_agent.config.model import Flags
from ipmasq_agent.planes.iptables.text import parse_rule
from ipmasq_agent.planes.rules.table import Chain, Table
from ipmasq_agent.policy.addresses import Family
from tests.unit.agent.support import Bench

ONE = "nonMasqueradeCIDRs: [172.20.0.0/16]\n"
OURS = "-j MASQUERADE --random-fully"
UPSTREAM = (
    '-d 169.254.0.0/16 -m comment --comment "ip-masq-agent: local traffic is not subject to '
    'MASQUERADE" -j RETURN',
    '-d {0} -m comment --comment "ip-masq-agent: local traffic is not subject to MASQUERADE" '
    "-j RETURN",
    '-m comment --comment "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be '
    'last in chain)" -j MASQUERADE --random-fully',
)
ANOTHER = (
    "-d 169.254.0.0/16 -j RETURN",
    "-d {0} -j RETURN",
    '-m comment --comment "ipmasq-agent: everything else is masqueraded" -j MASQUERADE '
    "--random-fully",
)
BY_HAND = ("-d {0} -j ACCEPT",)


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logs.logger.propagate = True
    caplog.set_level(logging.INFO, "ipmasq_agent")
    yield caplog
    logs.logger.propagate = False


def write(bench: Bench, rules: tuple[str, ...], destination: str) -> None:
    """Somebody puts other rules in the place of ours."""
    table = bench.backend.tables[Family.IPV4]
    chain = Chain(
        "IP-MASQ", None, tuple(parse_rule(r.format(destination), Family.IPV4) for r in rules)
    )
    bench.backend.tables[Family.IPV4] = Table(Family.IPV4, {**table.chains, "IP-MASQ": chain})


def fought(rules: tuple[str, ...], destination: str = "10.0.0.0/8", passes: int = 40) -> Bench:
    """Let somebody undo each write of an agent."""
    bench = Bench()
    bench.document(ONE)
    for _ in range(passes):
        write(bench, rules, destination)
        bench.resync()
    return bench


@pytest.mark.parametrize(
    ("rules", "who"),
    [(UPSTREAM, "ip-masq-agent, whose"), (ANOTHER, "another agent"), (BY_HAND, "another program")],
)
def test_who_undoes_our_rules_again_and_again_is_named_and_makes_us_write_less(
    rules: tuple[str, ...], who: str, heard: pytest.LogCaptureFixture
) -> None:
    bench = fought(rules)
    # The first writes; then one for each time that it may have been chance, and no more
    # for now.
    assert bench.backend.transactions == 4
    status = bench.agent.status
    assert status.look.contested is not None
    assert status.look.contested.startswith(who)
    assert not status.ready
    assert "the document is not in force" in status.why_not_ready()
    assert who in status.why_not_ready()
    assert status.as_data()["contested"] == status.look.contested
    assert any(who in line for line in status.look.advice)
    told = [line for line in heard.messages if line == "our rules are undone again and again"]
    assert len(told) == 1


def test_rules_of_another_form_that_decide_the_same_are_left_and_it_is_ready() -> None:
    halves = (UPSTREAM[0], UPSTREAM[1].format("172.20.128.0/17"), *UPSTREAM[1:])
    bench = fought(halves, "172.20.0.0/17")
    assert bench.backend.transactions == 4
    assert bench.agent.status.ready
    assert bench.agent.status.look.contested is not None
    write(bench, UPSTREAM, "10.0.0.0/8")
    bench.resync()
    assert not bench.agent.status.ready
    assert bench.backend.transactions == 4


def test_upstreams_rules_that_are_ours_but_for_their_comments_are_no_war_at_all() -> None:
    bench = fought(UPSTREAM, "172.20.0.0/16")
    assert bench.backend.transactions == 1
    assert bench.agent.status.look.contested is None


def flush(bench: Bench) -> None:
    bench.flush()


def insert_before_our_jump(bench: Bench) -> None:
    table = bench.backend.tables[Family.IPV4]
    ours = [rule for rule in table.rules("POSTROUTING") if "IP-MASQ" in rule.text]
    hook = Chain(
        "POSTROUTING", "ACCEPT", (parse_rule("-d 192.0.2.1/32 -j ACCEPT", Family.IPV4), *ours)
    )
    bench.backend.tables[Family.IPV4] = Table(Family.IPV4, {**table.chains, "POSTROUTING": hook})


@pytest.mark.parametrize("disturb", [flush, insert_before_our_jump])
def test_what_is_only_taken_away_is_put_back_each_time(disturb: Callable[[Bench], None]) -> None:
    bench = Bench()
    bench.document(ONE)
    for _ in range(20):
        disturb(bench)
        bench.resync()
        assert bench.chain() == ["169.254.0.0/16", "172.20.0.0/16"]
    assert bench.agent.status.look.contested is None
    assert bench.agent.status.ready


def test_meanwhile_the_other_family_and_what_is_only_missing_are_healed() -> None:
    bench = Bench(flags=Flags(enable_ipv6=True))
    bench.document(ONE)
    for _ in range(10):
        write(bench, UPSTREAM, "10.0.0.0/8")
        bench.resync()
    assert not bench.agent.status.ready
    bench.flush(Family.IPV6)
    bench.resync()
    assert bench.chain(Family.IPV6) == ["fe80::/10"]
    assert bench.chain()[1] == "10.0.0.0/8"
    bench.flush()
    bench.resync()
    assert bench.chain()[1] == "172.20.0.0/16"
    assert bench.agent.status.ready


def test_documents_and_a_request_from_outside_are_written_at_once() -> None:
    bench = fought(UPSTREAM)
    bench.document("nonMasqueradeCIDRs: [192.0.2.0/24]\n", "2")
    assert bench.chain() == ["169.254.0.0/16", "192.0.2.0/24"]
    write(bench, UPSTREAM, "10.0.0.0/8")
    bench.resync()
    bench.agent.send(Signal.RELOAD)
    bench.agent.turn()
    assert bench.chain() == ["169.254.0.0/16", "192.0.2.0/24"]


class Replaced:
    """A change in which another's rule went, and ours came."""

    counts = (1, 1)
    added = ("-j MASQUERADE",)
    removed = ("-j ACCEPT",)
    result = None

    def __bool__(self) -> bool:
        return True


def test_writes_come_ever_later_and_at_once_again_when_the_other_one_has_gone() -> None:
    war, now, what = War(Family.IPV4), 0.0, object()
    gaps, written = [], 0.0
    for _ in range(40_000):
        now += 1.0
        if not war.holds(what, now):
            war.watch(what, Replaced(), now, another=False)
            gaps.append(now - written)
            written = now
    assert gaps[:4] == [1.0] * 4
    assert gaps[4:9] == [30.0, 60.0, 120.0, 240.0, 300.0]
    assert max(gaps) == 300.0
    assert war.rival is not None
    # The last write stands from here on: each pass finds nothing to do.
    while war.rival is not None:
        now += 60.0
        war.watch(what, None, now, another=False)
        assert now - written < 1000
    war.watch(what, Replaced(), now, another=False)
    assert war.rival is None
    assert not war.holds(what, now)
