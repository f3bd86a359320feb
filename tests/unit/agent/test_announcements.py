"""Which moments of the agent become Events, and how many."""

from __future__ import annotations

from dataclasses import replace

import kubernetes_validate
import pytest

from ipmasq_agent.agent.announcements import (
    MOST,
    UPDATES,
    WINDOW,
    Announcement,
    Ledger,
    announcements,
)
from ipmasq_agent.agent.status import ConfigStatus, Healed, Look, Sighting, Status
from ipmasq_agent.answers.ports import PortLook, PortRow
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.flows import End
from ipmasq_agent.policy.model import PortRange
from ipmasq_agent.policy.ports import PortPool, PortUse
from ipmasq_agent.sources import ConfigMapName
from tests.deploy.manifests import KUBERNETES

AT = 1_800_000_000.5
CONFIGMAP = ConfigMapName("kube-system", "ip-masq-agent", "4f1c-uid")
ERROR = "ConfigMap kube-system/ip-masq-agent key config: line 2, column 5: not a CIDR"
GOOD = Status(ConfigStatus("c", Sighting("1", "good", 0, (CONFIGMAP,)), accepted=True))
BAD = Status(ConfigStatus("c", Sighting("2", "bad", 0, (CONFIGMAP,)), error=ERROR, refused=ERROR))
HEALED = Healed("2026-01-01T00:00:00Z", "iptables-nft", Family.IPV4, (), ("-A IP-MASQ -j X",))


def between(
    before: Status, now: Status, were: PortLook | None = None, are: PortLook | None = None
) -> list[Announcement]:
    old, new = (before, were or PortLook()), (now, are or PortLook())
    return [*announcements("node-1", old, new, AT)]


def one_between(before: Status, now: Status) -> Announcement:
    (one,) = between(before, now)
    return one


def row(used: int) -> PortRow:
    reached = End(0x0A000001, 443)
    return PortRow(
        PortUse(Family.IPV4, 6, 0xC0000201, reached, PortPool((PortRange(1, 100),))), used
    )


def test_a_refused_document_says_why_and_where_on_its_configmap() -> None:
    one = one_between(GOOD, BAD)
    assert (one.reason, one.about, one.warning) == ("DocumentRefused", CONFIGMAP, True)
    assert ERROR in one.note
    event = one.as_event()
    assert event["metadata"]["namespace"] == "kube-system"
    assert event["regarding"] == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "namespace": "kube-system",
        "name": "ip-masq-agent",
        "uid": "4f1c-uid",
    }


def test_a_document_that_is_refused_from_the_start_is_told_too() -> None:
    assert one_between(Status(ConfigStatus("c")), BAD).reason == "DocumentRefused"


def test_what_goes_on_is_not_told_again() -> None:
    assert between(BAD, replace(BAD, passes=1)) == []
    assert between(GOOD, replace(GOOD, passes=1)) == []
    away = replace(BAD.config, error="the API is away")
    assert between(BAD, replace(BAD, config=away)) == []


def test_the_same_fault_in_another_document_is_told_as_the_same() -> None:
    later = replace(BAD.config, newest=Sighting("3", "worse", 9, (CONFIGMAP,)))
    one, again = one_between(GOOD, BAD), one_between(BAD, replace(BAD, config=later))
    assert (again.reason, again.same) == (one.reason, one.same)


def test_of_several_configmaps_the_one_with_the_fault_is_meant() -> None:
    other = ConfigMapName("kube-system", "ip-masq-agent-b")
    config = replace(BAD.config, newest=Sighting("2", "bad", 0, (other, CONFIGMAP)))
    assert one_between(GOOD, replace(BAD, config=config)).about == CONFIGMAP
    vague = replace(config, refused="two documents contradict each other")
    told = between(GOOD, replace(BAD, config=vague))
    assert [one.about for one in told] == [other, CONFIGMAP]


def test_accepted_is_told_only_after_a_refusal() -> None:
    one = one_between(BAD, GOOD)
    assert (one.reason, one.about, one.warning) == ("DocumentAccepted", CONFIGMAP, False)
    assert between(Status(ConfigStatus("c")), GOOD) == []


def test_a_configmap_that_is_deleted_after_a_refusal_is_still_the_one_that_is_meant() -> None:
    gone = replace(GOOD.config, newest=Sighting("absent", "absent", 0))
    assert one_between(BAD, replace(GOOD, config=gone)).about == CONFIGMAP


def test_each_drift_that_is_healed_is_told_on_the_node_once_for_its_cause() -> None:
    once = replace(GOOD, heals=1, healed=(HEALED,))
    other = replace(HEALED, missing=("-A IP-MASQ -j Y",))
    twice = replace(once, heals=2, healed=(other,))
    one, again = one_between(GOOD, once), one_between(once, twice)
    assert (one.reason, one.about, one.namespace) == ("RulesHealed", None, "default")
    assert "-A IP-MASQ -j X" in one.note
    assert (one.name, one.same) == (again.name, again.same)
    removed = replace(HEALED, missing=(), unexpected=("-A IP-MASQ -j X",))
    assert one_between(once, replace(twice, healed=(removed,))).same != one.same


def test_a_war_is_told_when_it_begins_and_when_it_is_over() -> None:
    war = replace(GOOD, look=Look(contested="another program"))
    begun, over = one_between(GOOD, war), one_between(war, GOOD)
    assert (begun.reason, begun.warning) == ("RulesContested", True)
    assert "another program" in begun.note
    assert (over.reason, over.warning) == ("RulesUncontested", False)


def test_ports_are_told_when_they_begin_to_run_out() -> None:
    few, many, more = (PortLook((row(used),)) for used in (10, 85, 90))
    (one,) = between(GOOD, GOOD, few, many)
    assert one.reason == "SourcePortsRunOut"
    assert "10.0.0.1:443" in one.note
    assert between(GOOD, GOOD, many, more) == []


@pytest.mark.parametrize("version", KUBERNETES)
def test_events_are_as_kubernetes_has_them(version: str) -> None:
    healed = replace(GOOD, heals=1, healed=(HEALED,))
    for one in (one_between(GOOD, BAD), one_between(BAD, GOOD), one_between(GOOD, healed)):
        kubernetes_validate.validate(one.as_event(), version, strict=True)


def test_what_is_too_long_for_kubernetes_is_cut() -> None:
    config = replace(BAD.config, refused=ERROR + "ä" * 1000)
    (one,) = announcements(
        "n" * 253, (GOOD, PortLook()), (replace(BAD, config=config), PortLook()), AT
    )
    event = one.as_event()
    assert len(event["note"].encode()) <= 1024
    assert event["note"].endswith("…")
    assert len(event["reportingInstance"]) == 128
    on_node = one._replace(about=None).as_event()
    assert len(on_node["metadata"]["name"]) <= 253


def test_all_nodes_name_one_event_for_one_reason() -> None:
    now = (BAD, PortLook())
    names = {
        one.name
        for number in range(1000)
        for one in announcements(f"node-{number}", (GOOD, PortLook()), now, AT + number / 1000)
    }
    assert len(names) == 1


# -- how many -----------------------------------------------------------------------------


def something(same: str, at: float = AT) -> Announcement:
    return Announcement("node-1", None, "RulesHealed", "Reconcile", same, same, at)


def test_the_same_again_is_counted_and_written_once_a_minute() -> None:
    ledger = Ledger()
    posting = ledger.enter(something("drift"), 0.0)
    assert posting is not None
    assert ledger.until_update(0.0) is not None  # until it is written, it is to be
    posting.written = 1
    assert ledger.until_update(0.0) is None
    for second in range(1, 31):
        assert ledger.enter(something("drift", AT + second), float(second)) is None
        assert ledger.update(float(second)) is None
    assert ledger.until_update(31.0) == UPDATES - 31.0
    assert ledger.update(UPDATES) is posting
    assert posting.as_change()["series"]["count"] == 31
    assert ledger.update(UPDATES + 1) is None


def test_a_loop_of_drift_makes_one_event_an_hour_and_an_update_a_minute() -> None:
    ledger = Ledger()
    made = updated = 0
    for second in range(int(WINDOW)):
        for cause in ("removed", "added"):
            if posting := ledger.enter(something(cause, AT + second), float(second)):
                posting.written, made = 1, made + 1
        if posting := ledger.update(float(second)):
            posting.written, updated = posting.count, updated + 1
    assert made == 2
    assert updated <= WINDOW / UPDATES
    assert ledger.enter(something("removed"), WINDOW) is not None


def test_ever_new_things_make_a_bounded_number_of_events_an_hour() -> None:
    ledger = Ledger()
    found = [ledger.enter(something(str(n)), float(n)) for n in range(int(WINDOW))]
    assert sum(posting is not None for posting in found) == MOST


def test_what_others_made_is_not_counted_in() -> None:
    ledger = Ledger()
    posting = ledger.enter(something("drift"), 0.0)
    assert posting is not None
    posting.ours = False
    assert ledger.enter(something("drift"), 1.0) is None
    assert ledger.until_update(2.0) is None


def test_an_event_that_could_not_be_made_is_made_later_with_its_count() -> None:
    ledger = Ledger()
    posting = ledger.enter(something("drift"), 0.0)
    assert posting is not None
    ledger.enter(something("drift", AT + 5), 5.0)
    assert ledger.update(UPDATES) is posting
    change = posting.as_change()
    assert (change["kind"], change["series"]["count"]) == ("Event", 2)
    kubernetes_validate.validate(change, KUBERNETES[0], strict=True)
