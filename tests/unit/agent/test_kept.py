"""An agent that starts while the API is away goes on with what was in force before."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ipmasq_agent.agent.kept import Kept
from ipmasq_agent.config.model import Flags
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.facts import HOOKS, NODE_ADDRESSES, OWN_POD_CIDRS, Facts
from ipmasq_agent.sources.state_dir import StateDir
from tests.unit.agent.support import Bench

V4, V6 = Family.IPV4, Family.IPV6
TEN = "nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqLinkLocal: true\n"
ELEVEN = "nonMasqueradeCIDRs: [11.0.0.0/8]\nmasqLinkLocal: true\n"
NODES = f"exemptNodeIPs: true\n{TEN}"
NODE_1 = (V4, 0x01010101)

Restart = Callable[..., Bench]


@pytest.fixture
def restart(tmp_path: Path) -> Restart:
    """Return a way to start an agent that knows nothing but what is kept on the node."""

    def start(*, documents: bool = True, flags: Flags | None = None) -> Bench:
        kept = Kept(StateDir(str(tmp_path / "state"), "the document"), documents=documents)
        bench = Bench(kept=kept, flags=flags)
        bench.agent._recall()
        return bench

    return start


def test_the_last_good_document_is_in_force_and_healed_until_the_source_answers(
    restart: Restart,
) -> None:
    restart().document(TEN, "7")
    bench = restart()
    bench.resync()
    assert bench.chain() == ["10.0.0.0/8"]
    status = bench.agent.status
    assert (status.ready, status.in_sync, status.config.kept) == (False, True, True)
    assert status.why_not_ready() == (
        "waiting for the document; "
        "the last good document, revision 7, kept on this node, is in force"
    )
    bench.source_fails("no answer")
    assert bench.agent.status.why_not_ready() == (
        "no answer; the last good document, revision 7, kept on this node, is in force"
    )
    assert "kept on this node, not confirmed" in bench.agent.status.as_text()
    bench.flush()
    bench.resync()
    assert bench.chain() == ["10.0.0.0/8"]
    passes = bench.agent.status.passes
    bench.document(TEN, "7")
    assert bench.agent.status.ready
    assert bench.agent.status.as_data()["config"]["kept"] is False
    assert bench.agent.status.passes == passes, "it was in force already"


def test_what_the_source_says_then_takes_the_place_of_what_was_kept(restart: Restart) -> None:
    restart().document(TEN, "7")
    bench = restart()
    bench.document(ELEVEN, "8")
    assert bench.chain() == ["11.0.0.0/8"]
    assert bench.agent.status.ready
    again = restart()
    again.resync()
    assert again.chain() == ["11.0.0.0/8"]


def test_a_bad_document_is_not_kept_and_the_good_one_is_in_force_after_a_restart(
    restart: Restart,
) -> None:
    first = restart()
    first.document(TEN, "7")
    first.document("nonMasqueradeCIDRs: [nonsense]", "8")
    bench = restart()
    bench.document("nonMasqueradeCIDRs: [nonsense]", "8")
    bench.resync()
    assert bench.chain() == ["10.0.0.0/8"]
    config = bench.agent.status.config
    assert (config.kept, config.accepted, config.revision) == (False, False, "8")
    assert not bench.agent.status.ready


def test_that_there_is_no_document_is_kept_too(restart: Restart) -> None:
    first = restart()
    first.document(TEN, "7")
    first.document(None, "absent")
    bench = restart()
    bench.resync()
    defaults = {"169.254.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"}
    assert set(bench.chain()) == defaults


def test_a_kept_document_that_the_flags_do_not_allow_changes_nothing(restart: Restart) -> None:
    six = "nonMasqueradeCIDRs: [10.0.0.0/8, 'fd00::/8']"
    restart(flags=Flags(enable_ipv6=True)).document(six, "7")
    bench = restart()
    bench.resync()
    assert bench.backend.transactions == 0
    assert bench.agent.status.why_not_ready() == "waiting for the document"
    bench.document(TEN, "8")
    assert bench.agent.status.ready


def test_the_facts_that_a_kept_document_needs_are_kept_with_it(restart: Restart) -> None:
    first = restart()
    first.document(NODES, "7")
    first.learn(NODE_ADDRESSES, frozenset({NODE_1}))
    bench = restart()
    bench.resync()
    assert bench.chain() == ["1.1.1.1/32", "10.0.0.0/8"]
    bench.document(NODES, "7")
    assert not bench.agent.status.ready
    assert "nothing was heard of them since the agent started" in bench.agent.status.why_not_ready()
    bench.learn(NODE_ADDRESSES, frozenset({NODE_1}))
    assert bench.agent.status.ready


def test_a_document_in_a_file_is_read_there_and_its_facts_are_those_that_were_kept(
    restart: Restart,
) -> None:
    first = restart(documents=False)
    first.document(NODES, "7")
    first.learn(NODE_ADDRESSES, frozenset({NODE_1}))
    bench = restart(documents=False)
    bench.resync()
    assert bench.backend.transactions == 0
    bench.document(TEN, "8")
    bench.document(NODES, "9")
    assert bench.agent.status.waiting, "for a later document they may be of long ago"
    again = restart(documents=False)
    again.document(NODES, "9")
    assert again.chain() == ["1.1.1.1/32", "10.0.0.0/8"]


def test_facts_come_back_as_they_were(tmp_path: Path) -> None:
    nodes = frozenset({NODE_1, (V6, 1 << 127)})
    cidrs = (Prefix(V4, 10 << 24, 24), Prefix(V6, 0xFD << 120, 64))
    state = StateDir(str(tmp_path / "state"), "x")
    kept = Kept(state, documents=True)
    kept.keep_facts(Facts({NODE_ADDRESSES: nodes, OWN_POD_CIDRS: cidrs, HOOKS: object()}))
    found = Kept(state, documents=True).facts()
    assert found == {NODE_ADDRESSES: nodes, OWN_POD_CIDRS: cidrs}
    assert isinstance(found[OWN_POD_CIDRS][0], Prefix)


def test_what_cannot_be_kept_is_said_once_and_disturbs_nothing(
    restart: Restart, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    bench = restart()
    for number, document in enumerate((TEN, ELEVEN, TEN)):
        bench.document(document, str(number))
        assert bench.agent.status.ready
    said = [each for each in caplog.records if "is not kept on this node" in each.getMessage()]
    assert len(said) == 1
    assert not os.listdir(tmp_path / "state")


def test_what_could_not_be_kept_is_kept_as_soon_as_it_can_be(
    restart: Restart, tmp_path: Path
) -> None:
    first = restart()
    first.document(TEN, "1")
    (tmp_path / "state").chmod(0o777)  # as a disk that is full for a while
    first.document(f"masqLinkLocalIPv6: true\n{NODES}", "2")
    first.learn(NODE_ADDRESSES, frozenset({NODE_1}))
    first.document("nonsense: [", "3")
    (tmp_path / "state").chmod(0o700)
    first.resync()
    bench = restart()
    bench.resync()
    assert bench.agent.status.config.revision == "2"
    assert bench.chain() == ["1.1.1.1/32", "10.0.0.0/8"]


@pytest.mark.parametrize("value", [1, {}, [], {"parts": 1}, {"parts": [["a", "?"]], "name": 1}])
def test_a_kept_document_in_another_form_is_not_taken(
    restart: Restart, tmp_path: Path, value: object
) -> None:
    StateDir(str(tmp_path / "state"), "the document").write("document", value)
    StateDir(str(tmp_path / "state"), "the document").write("facts", value)
    bench = restart()
    bench.resync()
    assert bench.backend.transactions == 0
    bench.document(TEN)
    assert bench.agent.status.ready
