"""Word of commits to nf_tables, and what the agent makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from ipmasq_agent.agent import loop
from ipmasq_agent.netlink.nft_events import Commits
from tests.netns import Namespace
from tests.unit.agent.support import Bench

LONG = 60.0


@pytest.fixture
def commits(in_ns: Namespace) -> Iterator[Commits]:
    with closing(Commits()) as listening:
        yield listening


def test_word_comes_of_a_commit_and_of_nothing_else(commits: Commits, in_ns: Namespace) -> None:
    assert not commits.wait(0.01)
    in_ns.run(["nft", "list ruleset"])
    assert not commits.wait(0.01)
    for words in ("add table ip theirs", "delete table ip theirs"):
        in_ns.run(["nft", words])
        assert commits.wait(LONG), words
        assert not commits.wait(0.01), words
    in_ns.run(["ip6tables-nft", "-t", "nat", "-N", "THEIRS"])
    assert commits.wait(LONG)


def test_a_commit_of_many_rules_is_one_word(commits: Commits, in_ns: Namespace) -> None:
    rules = "".join(f"-A THEIRS -p tcp --dport {1 + n} -j RETURN\n" for n in range(20_000))
    text = f"*nat\n:THEIRS - [0:0]\n{rules}COMMIT\n"
    in_ns.run(["iptables-nft-restore", "--noflush"], stdin=text)
    words = 0
    while commits.wait(0.05):
        words += 1
    # What makes the table, and what fills it.
    assert 1 <= words <= 3


def test_more_words_than_there_is_room_for_are_one(commits: Commits, in_ns: Namespace) -> None:
    script = "".join(f"add table ip t{n}\n" for n in range(400)).splitlines()
    for first in range(0, len(script), 100):
        in_ns.run(["sh", "-c", "\n".join(f"nft '{line}'" for line in script[first : first + 100])])
    assert commits.wait(LONG)
    assert not commits.wait(0.01)


def test_a_commit_wakes_the_agent_that_looks_at_nothing_by_itself(
    in_ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "GLANCE", 3600.0)
    bench = Bench()
    bench.backend.in_nf_tables = True
    bench.document("resyncInterval: 1h\nnonMasqueradeCIDRs: [10.0.0.0/8]\n")
    try:
        # The first word is that it listens from now on.
        looks = bench.backend.looks
        bench.turn_until(lambda: bench.backend.looks > looks)
        bench.flush()
        bench.backend.gone = True
        in_ns.run(["nft", "add table ip theirs"])
        bench.turn_until(lambda: bench.chain() != [])
    finally:
        for each in bench.agent._beside:
            each.stop(0.0)
        in_ns.run(["nft", "flush ruleset"])  # which wakes it up to end
