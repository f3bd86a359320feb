"""``kubectl ipmasq apply --canary`` and ``canary``: a few nodes first, and back from anywhere."""

from __future__ import annotations

import functools
import signal
from pathlib import Path
from typing import Any

import pytest

from ipmasq_agent.cli import fleet_rolling, fleet_trial
from ipmasq_agent.fleet.published import digest_of
from ipmasq_agent.sources.canary import tries
from tests.fleet.agents import NAME, Agent
from tests.fleet.cluster import FleetCluster
from tests.fleet.conftest import DOCUMENT, Made, Plugin, few
from tests.fleet.plugin import started
from tests.kube.cluster import write_kubeconfig

NEW = "nonMasqueradeCIDRs: [10.0.0.0/8, 172.16.0.0/12]\n"
OLD_HASH, NEW_HASH = digest_of(DOCUMENT.encode()), digest_of(NEW.encode())
WATCHING = f"ConfigMap {NAME}, ConfigMap {NAME}-canary"
CANARY = "ip-masq-agent-canary"
WORDS = ("apply", "--yes", "-o", "json", "--grace", "0.2", "--for", "100ms", "-f", "-")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (fleet_rolling, fleet_trial):
        monkeypatch.setattr(module, "PAUSE", 0.02)


def watching(count: int = 5) -> list[Agent]:
    """Return agents that try what they are to."""
    return few(count, source=WATCHING)


def held(cluster: FleetCluster, plugin: Plugin) -> dict[str, str]:
    """Return node → hash, as `status` says."""
    rows = plugin(cluster, "status", "-o", "json").data["nodes"]
    return {row["node"]: row["hash"] for row in rows}


@pytest.mark.parametrize(
    ("meant", "nodes", "annotation"),
    [
        ("node=n2,n4", {"n2", "n4"}, "n2, n4"),
        ("label=pool=edge", {"n1", "n3"}, "n1, n3"),
        ("50%", {"n3", "n4", "n5"}, "50%"),
    ],
)
def test_a_few_nodes_hold_it_first_and_then_all(
    clusters: Made, plugin: Plugin, meant: str, nodes: set[str], annotation: str
) -> None:
    cluster = clusters(watching())
    cluster.labels = {"n1": {"pool": "edge"}, "n3": {"pool": "edge"}, "n2": {"pool": "x"}}
    cluster.labels["without-agent"] = {"pool": "edge"}
    held(cluster, plugin)
    seen: list[tuple[str, Any]] = []

    def see(what: str) -> None:
        canary = cluster.configmaps.get(CANARY)
        seen.append((what, canary and dict(canary.annotations)))

    cluster.after = see
    done = plugin(cluster, *WORDS, "--canary", meant, stdin=NEW)
    assert done.code == 0, done.err
    assert done.data["outcome"] == "rolled out"
    assert cluster.document() == NEW
    assert CANARY not in cluster.configmaps
    assert set(held(cluster, plugin).values()) == {NEW_HASH}
    wrote = [what for what, _ in seen]
    assert wrote == [
        "PATCH ip-masq-agent",  # only asked whether we might
        f"PATCH {CANARY}",
        f"PATCH {CANARY}",  # until when it is watched
        "PATCH ip-masq-agent-previous",
        "PATCH ip-masq-agent",
        f"DELETE {CANARY}",
    ]
    about = seen[2][1]
    assert about["ipmasq-agent/nodes"] == annotation
    assert about["ipmasq-agent/hash-before"] == OLD_HASH
    assert about["ipmasq-agent/until"] >= about["ipmasq-agent/begun"]
    assert "@" in about["ipmasq-agent/by"]


def test_without_promotion_it_stays_with_them_until_somebody_says(
    clusters: Made, plugin: Plugin
) -> None:
    cluster = clusters(watching())
    held(cluster, plugin)
    words = (*WORDS, "--no-promote", "--canary", "node=n2,n4")
    done = plugin(cluster, *words, stdin=NEW)
    assert done.code == 0, done.err
    assert done.data["outcome"] == "tried"
    assert cluster.document() == DOCUMENT
    assert [node for node, held in held(cluster, plugin).items() if held == NEW_HASH] == [
        "n2",
        "n4",
    ]

    status = plugin(cluster, "status")
    assert status.code == 0
    assert f"canary: {NEW_HASH} on 2 nodes (n2, n4), since 20" in status.out
    assert status.out.count("tries the canary") == 2
    only = plugin(cluster, "canary", "status")
    assert only.code == 0
    assert "n1" not in only.out

    done = plugin(cluster, "apply", "--yes", "-f", "-", stdin="nonMasqueradeCIDRs: []\n")
    assert done.code == 2
    assert "some nodes try another document" in done.err
    assert "canary promote" in done.err

    done = plugin(cluster, "canary", "promote", "--yes")
    assert done.code == 0, done.err
    assert (cluster.document(), CANARY in cluster.configmaps) == (NEW, False)
    assert plugin(cluster, "status").code == 0
    assert plugin(cluster, "rollback", "--yes").code == 0
    assert cluster.document() == DOCUMENT


WORSE: list[tuple[dict[str, Any], str]] = [
    ({"failedPasses": 2}, "n2: 2 more passes failed, at most 0 on most other nodes"),
    ({"counters": {"ipv4": {"out_dropped_ports": 7}}}, "n2: 7 more packets dropped"),
    ({"overrides": [{}]}, "n2: 1 more ranges decided by rules of others"),
    ({"ports": [{"used": 30, "of": 100}]}, "n2: 30% more of the source ports in use"),
    ({"tracked": {"used": 50, "of": 100}}, "n2: 40% more of the table of connections in use"),
]


@pytest.mark.parametrize(("tells", "reason"), WORSE)
def test_it_is_withdrawn_where_a_number_gets_worse(
    clusters: Made, plugin: Plugin, tells: dict[str, Any], reason: str
) -> None:
    agents = watching()
    agents[1].tells = tells
    cluster = clusters(agents)
    held(cluster, plugin)
    done = plugin(cluster, *WORDS, "--canary", "node=n2,n4", stdin=NEW)
    assert done.code == 1, done.err
    assert done.data["outcome"] == "withdrawn"
    assert reason in done.data["reason"]
    assert (cluster.document(), CANARY in cluster.configmaps) == (DOCUMENT, False)
    assert set(held(cluster, plugin).values()) == {OLD_HASH}


def test_it_is_withdrawn_where_a_node_will_not_hold_it_or_the_doctor_finds_something(
    clusters: Made, plugin: Plugin
) -> None:
    agents = watching()
    agents[1].fails = "the kernel refuses the rules"
    cluster = clusters(agents)
    held(cluster, plugin)
    words = (*WORDS, "--canary", "node=n2,n4")
    done = plugin(cluster, *words, stdin=NEW)
    assert done.code == 1
    assert done.data["reason"] == "n2: ipv4: the kernel refuses the rules"
    agents[1].fails = None
    finding = {"id": "leak", "severity": "error", "title": "pods leak", "why": "", "remedy": ""}
    ill = [{**finding, "evidence": []}]
    agents[2].verbs["doctor"] = agents[0].verbs["doctor"] = (1, ill)  # as before, and no canary

    def fall_ill(what: str) -> None:
        if what == f"PATCH {CANARY}":
            agents[3].verbs["doctor"] = (1, ill)

    cluster.after = fall_ill
    done = plugin(cluster, *WORDS, "--canary", "node=n3,n4", stdin=NEW)
    assert done.code == 1
    assert done.data["reason"] == "doctor finds: pods leak, on n4"
    assert (cluster.document(), CANARY in cluster.configmaps) == (DOCUMENT, False)


@pytest.mark.parametrize(
    ("meant", "said"),
    [
        ("node=n2,n9", "no agent runs on n9"),
        ("0%", "none of 5 nodes"),
        ("label=a=b", "none of 5 nodes"),
        ("five", "'five' says no nodes"),
        ("101%", "'101%' says no nodes"),
        ("node=n1", f"n1 read no canary: ConfigMap {NAME}"),
    ],
)
def test_who_does_not_try_it_is_told_before_anything_is_written(
    clusters: Made, plugin: Plugin, meant: str, said: str
) -> None:
    cluster = clusters([*few(1), *watching()[1:]])
    done = plugin(cluster, *WORDS, "--canary", meant, stdin=NEW)
    assert done.code == 2
    assert said in done.err
    assert CANARY not in cluster.configmaps
    assert cluster.document() == DOCUMENT


def test_kubectl_alone_ends_it_and_the_plugin_sees_that(clusters: Made, plugin: Plugin) -> None:
    cluster = clusters(watching())
    held(cluster, plugin)

    def delete(what: str) -> None:
        if what == f"PATCH {CANARY}":
            cluster.configmaps.pop(CANARY, None)

    cluster.after = delete
    done = plugin(cluster, *WORDS, "--canary", "node=n2", stdin=NEW)
    assert done.code == 2
    assert "was changed by somebody else meanwhile" in done.err
    assert cluster.document() == DOCUMENT
    assert set(held(cluster, plugin).values()) == {OLD_HASH}


@pytest.mark.parametrize("writes", range(1, 7))
def test_a_plugin_that_is_killed_leaves_old_canary_or_new_and_a_way_on_and_back(
    clusters: Made, plugin: Plugin, tmp_path: Path, writes: int
) -> None:
    cluster = clusters(watching(3))
    held(cluster, plugin)
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", cluster.port)
    new = tmp_path / "new.yaml"
    new.write_text(NEW)
    words = ("apply", "--yes", "--for", "0s", "--canary", "node=n2", "-f", str(new))
    seen: list[str] = []
    with started(kubeconfig, *words) as child:

        def kill(what: str) -> None:
            seen.append(what)
            if len(seen) == writes:
                child.kill()

        cluster.after = kill
        child.communicate(timeout=120)
    assert child.returncode == -signal.SIGKILL
    cluster.after = lambda what: None
    assert cluster.document() == (NEW if writes >= 5 else DOCUMENT)
    canary = cluster.configmaps.get(CANARY)
    assert (canary is not None) == (2 <= writes <= 5)
    if canary is not None:
        assert canary.data == {"config": NEW}
        assert canary.annotations["ipmasq-agent/nodes"] == "n2"
        assert plugin(cluster, "canary", "status").code in (0, 1)
    if writes % 2:  # another machine goes on, or goes back
        done = plugin(cluster, *words[:-1], "-", stdin=NEW)
        assert done.code == 0, done.err
        assert cluster.document() == NEW
    elif canary is not None:
        done = plugin(cluster, "canary", "withdraw", "--yes")
        assert done.code == 0, done.err
        assert cluster.document() == DOCUMENT
    assert CANARY not in cluster.configmaps
    assert plugin(cluster, "status").code == 0


@pytest.mark.parametrize("writes", [5, 6, 7])
def test_a_plugin_that_is_killed_while_it_takes_all_back_leaves_a_way_back(
    clusters: Made, plugin: Plugin, tmp_path: Path, writes: int
) -> None:
    agents = watching(3)
    agents[2].fails = "no"  # which is no canary
    cluster = clusters(agents)
    held(cluster, plugin)
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", cluster.port)
    (tmp_path / "new.yaml").write_text(NEW)
    words = ("apply", "--yes", "--for", "0s", "--grace", "0", "--canary", "node=n2")
    seen: list[str] = []
    with started(kubeconfig, *words, "-f", str(tmp_path / "new.yaml")) as child:

        def kill(what: str) -> None:
            seen.append(what)
            if len(seen) == writes:
                child.kill()

        cluster.after = kill
        child.communicate(timeout=120)
    assert child.returncode == -signal.SIGKILL
    wrote = ["PATCH ip-masq-agent", "PATCH ip-masq-agent", f"DELETE {CANARY}"]
    assert seen[4:] == wrote[: writes - 4]
    cluster.after = lambda what: None
    assert cluster.document() == (NEW if writes == 5 else DOCUMENT)
    assert (CANARY in cluster.configmaps) == (writes < 7)
    if writes < 7:
        assert plugin(cluster, "canary", "withdraw", "--yes", "--grace", "0").code in (0, 1)
    assert plugin(cluster, "rollback", "--yes").code == 0
    assert plugin(cluster, "status").code == 0


def test_whoever_ends_it_is_asked_nothing_and_told_how_to_go_on(
    clusters: Made, plugin: Plugin, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cluster = clusters(watching(3))
    held(cluster, plugin)
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", cluster.port)
    (tmp_path / "new.yaml").write_text(NEW)
    words = ("apply", "--yes", "--canary", "node=n2", "-f", str(tmp_path / "new.yaml"))
    # Where it is ignored, as beside a shell that goes on, programs that are started ignore it too.
    request.addfinalizer(
        functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with started(kubeconfig, *words) as child:

        def interrupt(what: str) -> None:
            if "ipmasq-agent/until" in cluster.configmaps[CANARY].annotations:
                child.send_signal(signal.SIGINT)

        cluster.after = lambda what: interrupt(what) if CANARY in cluster.configmaps else None
        _, err = child.communicate(timeout=120)
    assert child.returncode == 130
    assert f"{NEW_HASH} stays with those nodes: `kubectl ipmasq canary status`" in err
    assert cluster.document() == DOCUMENT
    assert held(cluster, plugin)["n2"] == NEW_HASH


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.long)])
def test_of_many_nodes_those_that_fare_worse_are_named(
    clusters: Made, plugin: Plugin, count: int
) -> None:
    agents = watching(count)
    few = [agent for agent in agents if tries("20%", agent.node)]
    rest = [agent for agent in agents if agent not in few]
    for agent in rest[:10]:  # of no concern: they go by another document
        agent.fails = "no"
    rest[10].dead = True
    few[2].tells = {"overrides": [{}]}
    few[5].tells = {"failedPasses": 1}
    cluster = clusters(agents)
    held(cluster, plugin)
    done = plugin(cluster, *WORDS, "--canary", "20%", stdin=NEW)
    assert done.code == 1, done.err
    assert set(done.data["canary"]) == {agent.node for agent in few}
    reasons = done.data["reason"].split("; ")
    assert {reason.partition(":")[0] for reason in reasons} == {few[2].node, few[5].node}
    assert cluster.document() == DOCUMENT
    assert CANARY not in cluster.configmaps


def test_another_machine_goes_on_with_the_nodes_that_try_it(clusters: Made, plugin: Plugin) -> None:
    cluster = clusters(watching(4))
    held(cluster, plugin)
    words = (*WORDS, "--no-promote", "--canary")
    assert plugin(cluster, *words, "node=n2", stdin=NEW).code == 0
    for until in ("soon", "2020-01-01T00:00:00Z"):  # as somebody has written it
        cluster.configmaps[CANARY].annotations["ipmasq-agent/until"] = until
        done = plugin(cluster, *words, "node=n3,n4", stdin=NEW)
        assert done.code == 0, done.err
        assert done.data["canary"] == ["n2"]
        about = cluster.configmaps[CANARY].annotations
        assert about["ipmasq-agent/until"] >= about["ipmasq-agent/begun"]


def test_there_is_nothing_to_promote_where_no_canary_is(clusters: Made, plugin: Plugin) -> None:
    cluster = clusters(watching(2))
    assert plugin(cluster, "canary", "status").code == 0
    for verb in ("promote", "withdraw"):
        done = plugin(cluster, "canary", verb, "--yes")
        assert done.code == 2
        assert "no node tries another document" in done.err
