"""The loop, turn by turn, with a source and backends in the test's hands."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ipmasq_agent import logs
from ipmasq_agent.agent.events import Signal
from ipmasq_agent.agent.exposition import exposed
from ipmasq_agent.config.model import Flags
from ipmasq_agent.errors import SourceUnavailable
from ipmasq_agent.planes.iptables.compile import DesiredChain
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import FamilyPolicy
from ipmasq_agent.sources import Document, Part, SourceFailed
from tests.unit.agent.support import Bench

ONE = "nonMasqueradeCIDRs: [172.20.0.0/16]\n"
TWO = "nonMasqueradeCIDRs: [172.20.0.0/16, 10.10.1.0/24]\n"
BAD = "nonMasqueradeCIDRs: [10.0.0.1/8]\n"
LINK_LOCAL = "169.254.0.0/16"


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logs.logger.propagate = True
    caplog.set_level(logging.DEBUG, "ipmasq_agent")
    yield caplog
    logs.logger.propagate = False


def test_a_document_becomes_a_chain_at_once() -> None:
    bench = Bench()
    bench.document(ONE)
    assert bench.chain() == [LINK_LOCAL, "172.20.0.0/16"]
    assert bench.agent.status.ready
    assert bench.agent.status.look.mode == "memory"
    assert bench.agent.status.look.devices == ("eth0",)


def test_a_missing_document_stands_for_the_defaults() -> None:
    bench = Bench()
    bench.document(None, "absent")
    assert bench.chain() == [LINK_LOCAL, "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]
    assert bench.agent.status.ready


def test_the_log_warns_of_a_document_that_is_not_there(heard: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.document(None, "absent")
    (record,) = (r for r in heard.records if r.message.startswith("no document, using defaults"))
    assert record.levelno == logging.WARNING


def test_a_document_that_is_gone_is_told_in_log_and_status(heard: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.document(ONE)
    assert not bench.agent.status.config.notices
    bench.document(None, "absent")
    assert bench.agent.status.ready
    assert bench.agent.status.config.notices == (
        "the document does not exist: the defaults stand for it",
    )
    (record,) = (r for r in heard.records if r.message.startswith("the document is gone"))
    assert record.levelno == logging.WARNING
    bench.document(ONE)
    assert not bench.agent.status.config.notices


def test_what_there_is_to_know_of_a_source_is_told_beside_a_document_that_is_in_force(
    heard: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    parts = (Part("a", ONE.encode()),)
    for caveat in (None, "it is looked at now and then", "it is looked at now and then", None):
        bench.agent.events.put(Document("a", parts, "1", time.monotonic(), caveat=caveat))
        assert bench.agent.turn()
        status = bench.agent.status
        assert status.ready
        assert status.as_data()["config"]["warnings"] == ([caveat] if caveat else [])
        assert ("Warning:" in status.as_text()) is bool(caveat)
    told = [record.levelname for record in heard.records if "looked at" in record.message]
    assert told == ["WARNING"]


def test_one_of_several_documents_that_is_not_there_is_told() -> None:
    bench = Bench()
    parts = (Part("a", ONE.encode()),)
    bench.agent.events.put(
        Document("a, b", parts, "1", time.monotonic(), lacking=("b does not exist",))
    )
    assert bench.agent.turn()
    assert bench.chain() == [LINK_LOCAL, "172.20.0.0/16"]
    assert bench.agent.status.config.warnings == ("b does not exist: its entries are missed",)


def test_a_document_that_comes_to_be_without_content_is_not_said_to_be_absent() -> None:
    bench = Bench()
    for number, lacking in enumerate(["x does not exist", "x exists and has no data"]):
        bench.agent.events.put(Document("x", (), f"{number}", time.monotonic(), (lacking,)))
        assert bench.agent.turn()
        assert bench.agent.status.config.warnings == (f"{lacking}: the defaults stand for it",)


def test_the_longest_interval_that_there_is_can_be_waited_for() -> None:
    bench = Bench()
    bench.document(f"{ONE}resyncInterval: 2562047h47m16.854775807s\n")
    threading.Timer(0.05, bench.agent.send, [Signal.RELOAD]).start()
    assert bench.agent.turn()  # it waits, with nothing to do before that signal
    assert bench.agent.status.ready


def test_nothing_is_written_before_the_first_document() -> None:
    bench = Bench()
    bench.source_fails("the API is unreachable")
    bench.resync()
    assert bench.backend.transactions == 0
    assert not bench.agent.status.ready
    assert "unreachable" in bench.agent.status.why_not_ready()


def test_a_bad_first_document_leaves_the_kernel_as_it_is() -> None:
    bench = Bench()
    bench.document(BAD)
    bench.resync()
    assert bench.backend.transactions == 0
    assert not bench.agent.status.config.accepted


def test_last_good_policy_keeps_being_healed_after_a_bad_document() -> None:
    bench = Bench()
    bench.document(ONE, "1")
    bench.document(BAD, "2")
    assert bench.chain() == [LINK_LOCAL, "172.20.0.0/16"]
    status = bench.agent.status
    assert (status.config.revision, status.config.accepted) == ("2", False)
    assert "did you mean 10.0.0.0/8?" in (status.config.error or "")
    assert status.in_sync
    assert not status.ready
    bench.flush()
    bench.resync()
    assert bench.chain() == [LINK_LOCAL, "172.20.0.0/16"]


def test_a_good_document_after_a_bad_one_is_taken_even_if_it_is_the_old_one() -> None:
    bench = Bench()
    bench.document(ONE, "1")
    bench.document(BAD, "2")
    bench.document(ONE, "3")
    assert bench.agent.status.ready
    assert bench.agent.status.config.revision == "3"


def test_it_is_not_ready_between_a_new_document_and_its_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    bench.document(ONE, "1")
    seen = []
    dialect = bench.backend.dialect

    def compile_and_look(policy: FamilyPolicy) -> DesiredChain:
        seen.append(bench.agent.status.ready)
        return dialect.compile(policy)

    monkeypatch.setattr(bench.backend, "dialect", replace(dialect, compile=compile_and_look))
    bench.document(TWO, "2")
    assert seen == [False]
    assert bench.agent.status.ready


def test_the_same_document_again_causes_no_pass() -> None:
    bench = Bench()
    bench.document(ONE, "1")
    bench.document(ONE, "2")
    assert bench.agent.status.passes == 1
    assert bench.agent.status.config.revision == "2"


def test_a_bad_document_delivered_again_stays_refused() -> None:
    bench = Bench()
    bench.document(ONE, "1")
    bench.document(BAD, "2")
    bench.document(BAD, "2")
    assert bench.agent.status.config.error is not None
    assert not bench.agent.status.config.accepted


def test_a_burst_of_documents_is_one_pass_over_the_last() -> None:
    bench = Bench()
    for number in range(50):
        content = f"nonMasqueradeCIDRs: [10.{number}.0.0/16]".encode()
        parts = (Part("the document", content),)
        bench.agent.events.put(Document("the document", parts, str(number), 0.0))
    bench.agent.turn()
    assert bench.agent.status.passes == 1
    assert bench.chain() == [LINK_LOCAL, "10.49.0.0/16"]


def test_a_pass_with_nothing_to_change_writes_nothing_and_is_silent_at_info(
    heard: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    bench.document(ONE)
    written = bench.backend.transactions
    heard.clear()
    bench.resync()
    assert bench.backend.transactions == written
    assert [r for r in heard.records if r.levelno >= logging.INFO] == []


def test_what_others_did_and_we_undo_is_told_apart_from_what_was_asked_for(
    heard: pytest.LogCaptureFixture,
) -> None:
    def told() -> list[tuple[str, str, str | None]]:
        found = [
            (record.levelname, record.message, getattr(record, "fields", {}).get("missing"))
            for record in heard.records
            if record.message.startswith("rules")
        ]
        heard.clear()
        return found

    bench = Bench()
    bench.backend.broken = {Family.IPV4}
    bench.document(ONE)
    bench.backend.broken = set()
    bench.resync()  # the first pass that goes well
    assert told() == [("INFO", "rules applied", None)]
    bench.flush()
    bench.resync()
    ((level, message, missing),) = told()
    assert (level, message) == ("WARNING", "rules healed")
    assert missing is not None
    assert "-d 172.20.0.0/16" in missing
    bench.document(ONE.replace("172.20", "172.21"), "2")
    assert told() == [("INFO", "rules applied", None)]
    status = bench.agent.status
    assert (status.changes, status.heals) == (3, 1)
    (healed,) = status.as_data()["healed"]
    assert (healed["family"], healed["backend"], healed["unexpected"]) == ("ipv4", "memory", [])
    assert any("-d 172.20.0.0/16" in line for line in healed["missing"])
    assert "Healed:" in status.as_text()
    text = exposed(bench.agent.metrics.all(status))[1].decode()
    assert 'ipmasq_agent_passes_total{family="ipv4",result="healed"} 1.0' in text
    assert 'ipmasq_agent_passes_total{family="ipv4",result="changed"} 2.0' in text


def test_a_move_to_another_data_plane_is_told_with_its_reason_and_is_no_healing(
    heard: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    bench.document(ONE)
    bench.detected = "other"
    bench.resync()
    moves = [
        (record.message, getattr(record, "fields", None))
        for record in heard.records
        if record.message.startswith("data plane")
    ]
    why = "the test says so"
    assert moves == [("data plane changes", {"from": "memory", "to": "other", "why": why})]
    assert (bench.agent.status.changes, bench.agent.status.heals) == (2, 0)


def test_a_source_that_never_stops_talking_delays_no_healing() -> None:
    bench = Bench()
    bench.document(ONE)
    bench.flush()
    bench.agent._next_pass = 0.0
    bench.document(ONE, "again")
    assert bench.chain() == [LINK_LOCAL, "172.20.0.0/16"]


def test_each_resync_looks_at_a_cheap_source_again() -> None:
    bench = Bench()
    bench.document(ONE)
    bench.resync()
    assert bench.source.refreshed == 1
    bench.source.cheap = False
    bench.resync()
    assert bench.source.refreshed == 1


def test_a_source_that_fails_from_the_start_is_looked_at_again() -> None:
    bench = Bench()
    bench.source_fails("permission denied")
    bench.resync()
    assert bench.source.refreshed == 1
    assert bench.backend.transactions == 0


def test_a_source_that_fails_and_comes_back_is_ready_again_without_a_pass() -> None:
    bench = Bench()
    bench.document(ONE)
    bench.source_fails("the API is unreachable")
    assert not bench.agent.status.ready
    assert bench.agent.status.config.accepted
    bench.document(ONE)
    assert bench.agent.status.ready
    assert bench.agent.status.passes == 1


def test_a_document_that_comes_with_a_failure_is_applied_and_the_failure_shown() -> None:
    bench = Bench()
    raw = Document("the document", (Part("the document", ONE.encode()),), "1", 0.0)
    failed = SourceFailed("the document", SourceUnavailable("changes are not announced"))
    for _ in range(2):
        bench.agent.events.put(raw)
        bench.agent.events.put(failed)
        bench.agent.turn()
        assert bench.chain() == [LINK_LOCAL, "172.20.0.0/16"]
        assert bench.agent.status.config.error == "changes are not announced"
    assert bench.agent.status.passes == 1


def test_rules_are_healed_while_the_source_is_away() -> None:
    bench = Bench()
    bench.document(ONE)
    bench.source_fails("the API is unreachable")
    bench.flush()
    bench.resync()
    assert bench.chain() == [LINK_LOCAL, "172.20.0.0/16"]


def test_a_family_that_fails_does_not_stop_the_other_and_is_tried_again_soon() -> None:
    bench = Bench(flags=Flags(enable_ipv6=True))
    bench.backend.broken = {Family.IPV4}
    bench.document("nonMasqueradeCIDRs: [172.20.0.0/16, 'fd00::/8']\n")
    assert bench.chain(Family.IPV6) == ["fe80::/10", "fd00::/8"]
    status = bench.agent.status
    assert list(status.look.errors) == [Family.IPV4]
    assert not status.in_sync
    assert "ipv4 is broken" in status.why_not_ready()
    bench.backend.broken = set()
    bench.resync()
    assert bench.chain() == [LINK_LOCAL, "172.20.0.0/16"]
    assert bench.agent.status.ready


@pytest.mark.parametrize("unable", Family)
def test_a_host_without_the_programs_of_one_family_serves_the_other(unable: Family) -> None:
    bench = Bench(flags=Flags(enable_ipv6=True))
    bench.backend.unable = {unable}
    bench.document("nonMasqueradeCIDRs: [172.20.0.0/16, 'fd00::/8']\n")
    served = Family.IPV6 if unable is Family.IPV4 else Family.IPV4
    assert len(bench.chain(served)) == 2
    assert list(bench.agent.status.look.errors) == [unable]
    assert "no programs" in bench.agent.status.why_not_ready()


def test_retries_back_off_but_never_beyond_the_resync_interval() -> None:
    import time

    bench = Bench()
    bench.backend.broken = {Family.IPV4}
    waits = []
    bench.document("resyncInterval: 10s\n")
    for _ in range(12):
        waits.append(bench.agent._next_pass - time.monotonic())
        bench.resync()
    assert 0 < waits[0] <= 0.5
    assert max(waits) <= 10.0
    assert waits[-1] > waits[0]


def test_reload_heals_at_once_and_looks_at_the_source() -> None:
    bench = Bench()
    bench.document(ONE)
    bench.flush()
    bench.agent.send(Signal.RELOAD)
    bench.agent.turn()
    assert bench.chain() == [LINK_LOCAL, "172.20.0.0/16"]
    assert bench.source.refreshed == 1


def test_stop_leaves_the_rules_in_place() -> None:
    bench = Bench()
    bench.document(ONE)
    bench.agent.send(Signal.STOP)
    bench.agent.run()
    assert bench.source.stopped
    assert bench.backend.closed
    assert bench.chain() == [LINK_LOCAL, "172.20.0.0/16"]


def test_cleanup_on_exit_removes_them() -> None:
    bench = Bench(cleanup_on_exit=True)
    bench.document(ONE)
    bench.agent.send(Signal.STOP)
    bench.agent.run()
    assert "IP-MASQ" not in bench.backend.tables[Family.IPV4].chains
    assert bench.backend.tables[Family.IPV4].rules("POSTROUTING") == ()


def test_a_move_puts_the_new_backend_in_force_before_it_cleans_the_old_one() -> None:
    bench = Bench()
    bench.document(ONE)
    bench.detected = "other"
    bench.backends["other"].broken = {Family.IPV4}
    bench.resync()
    assert bench.chain() == [LINK_LOCAL, "172.20.0.0/16"]  # not yet: the new one fails
    bench.backends["other"].broken = set()
    bench.resync()
    assert bench.chain(backend="other") == [LINK_LOCAL, "172.20.0.0/16"]
    assert bench.chain(backend="memory") == []
    assert bench.backends["memory"].closed
    assert bench.agent.status.look.mode == "other"


def test_a_backend_that_cannot_be_cleaned_after_a_move_is_told_until_it_is() -> None:
    bench = Bench()
    bench.document(ONE)
    bench.detected = "other"
    bench.backends["memory"].broken = {Family.IPV6}
    for _ in range(2):
        bench.resync()
        assert bench.chain(backend="other") == [LINK_LOCAL, "172.20.0.0/16"]
        assert not bench.agent.status.ready
        told = bench.agent.status.why_not_ready()
        assert "memory cannot be left: ipv6 is broken" in told
    bench.backends["memory"].broken = set()
    bench.resync()
    assert bench.agent.status.ready
    assert bench.backends["memory"].closed


def test_rules_left_in_another_backend_by_a_killed_agent_are_cleaned_at_the_start() -> None:
    before = Bench()
    before.document(ONE)
    bench = Bench()
    bench.backends["other"].tables = before.backend.tables
    bench.held = ["memory", "other"]
    bench.document(TWO)
    assert bench.chain() == [LINK_LOCAL, "172.20.0.0/16", "10.10.1.0/24"]
    assert bench.chain(backend="other") == []


def test_what_an_agent_that_ends_late_wrote_elsewhere_is_cleaned_at_a_resync() -> None:
    bench = Bench()
    bench.document(ONE)
    before = Bench()
    before.document(ONE)
    bench.backends["other"].tables = before.backend.tables
    bench.leavings = ["other"]
    bench.document(TWO)
    assert bench.chain(backend="other") != []  # a change of the document alone asks nobody
    bench.resync()
    assert bench.chain(backend="other") == []


def test_what_cannot_be_cleaned_elsewhere_is_an_error_until_it_is() -> None:
    bench = Bench()
    bench.held = ["memory", "other"]
    bench.backends["other"].broken = set(Family)
    bench.document(ONE)
    assert bench.chain() != []
    assert bench.agent.status.in_sync
    assert not bench.agent.status.ready
    assert "other cannot be left: ipv4 is broken" in bench.agent.status.why_not_ready()
    assert "other cannot be left" in bench.agent.status.as_text()
    assert bench.agent.status.as_data()["leftBehind"] != []
    assert bench.agent._next_pass - time.monotonic() < 2  # tried again soon
    bench.backends["other"].broken = set()
    bench.resync()
    assert bench.agent.status.ready
    assert bench.agent.status.look.left_behind == ()


def test_a_look_at_other_planes_that_fails_stops_no_pass_and_is_made_again() -> None:
    bench = Bench()
    bench.held = ["memory", "other"]
    before = Bench()
    before.document(ONE)
    bench.backends["other"].tables = before.backend.tables
    bench.blind = "no netlink"
    bench.document(ONE)
    assert bench.chain() != []
    assert "cannot be looked into: no netlink" in bench.agent.status.why_not_ready()
    assert bench.chain(backend="other") != []
    bench.blind = None
    bench.resync()
    assert bench.chain(backend="other") == []
    assert bench.agent.status.ready


def test_the_resync_interval_of_the_document_is_obeyed() -> None:
    import time

    bench = Bench()
    bench.document("resyncInterval: 5s\n")
    assert 0 < bench.agent._next_pass - time.monotonic() <= 5.0
    bench.document("resyncInterval: 1h\n", "2")
    assert bench.agent._next_pass - time.monotonic() > 3000


def test_warnings_of_a_document_are_logged_and_shown(heard: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.document("nonMasqueradeCIDR: []\nmasqLinkLocal: true\n")
    assert "did you mean nonMasqueradeCIDRs?" in bench.agent.status.config.warnings[0]
    assert any("did you mean" in r.getMessage() for r in heard.records)
