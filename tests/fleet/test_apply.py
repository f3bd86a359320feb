"""``kubectl ipmasq apply`` and ``rollback``: all nodes, or none, whatever happens on the way."""

from __future__ import annotations

import io
import signal
from pathlib import Path

import pytest

from ipmasq_agent.cli import fleet_rolling
from ipmasq_agent.fleet.published import digest_of
from tests.fleet.agents import Agent
from tests.fleet.cluster import FleetCluster
from tests.fleet.conftest import DOCUMENT, Made, Plugin, few
from tests.fleet.plugin import started
from tests.kube.cluster import write_kubeconfig

NEW = "nonMasqueradeCIDRs: [10.0.0.0/8, 172.16.0.0/12]\n"
OLD_HASH, NEW_HASH = digest_of(DOCUMENT.encode()), digest_of(NEW.encode())
WORDS = ("apply", "--yes", "-o", "json", "--grace", "0.2", "-f", "-")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_rolling, "PAUSE", 0.02)


def kept(cluster: FleetCluster) -> str | None:
    held = cluster.configmaps.get("ip-masq-agent-previous")
    return held.data.get("config") if held else None


def test_all_nodes_take_it_at_their_own_pace(clusters: Made, plugin: Plugin) -> None:
    agents = few(12)
    for number, agent in enumerate(agents):
        agent.lag = number % 4
    agents[5].dead = True
    cluster = clusters(agents)
    for _ in range(5):
        plugin(cluster, "status")
    done = plugin(cluster, *WORDS, stdin=NEW)
    assert done.code == 0, done.err
    assert done.data == {
        "hash": NEW_HASH,
        "before": OLD_HASH,
        "failed": {},
        "outcome": "rolled out",
    }
    assert "n6 not waited for" in done.err
    assert cluster.document() == NEW
    assert kept(cluster) == DOCUMENT
    managers = cluster.configmaps["ip-masq-agent"].managers
    assert managers["data", "config"] == {"kubectl-ipmasq"}


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.long)])
def test_three_nodes_that_fail_are_named_and_the_document_before_is_back(
    clusters: Made, plugin: Plugin, count: int
) -> None:
    agents = few(count)
    for number in (3, 17, 31):
        agents[number].fails = "the kernel refuses the rules"
    cluster = clusters(agents)
    plugin(cluster, "status")
    done = plugin(cluster, *WORDS, stdin=NEW)
    assert done.code == 1
    assert done.data["outcome"] == "rolled back"
    assert set(done.data["failed"]) == {"n4", "n18", "n32"}
    assert "n18, n32, n4 failed: ipv4: the kernel refuses the rules" in done.err
    assert cluster.document() == DOCUMENT
    status = plugin(cluster, "status", "-o", "json")
    assert status.code == 0
    assert {row["hash"] for row in status.data["nodes"]} == {OLD_HASH}


def test_a_node_that_falls_silent_fails_and_one_that_leaves_does_not(
    clusters: Made, plugin: Plugin
) -> None:
    cluster = clusters(few(4))
    plugin(cluster, "status")

    def fall_silent(what: str) -> None:
        if what == "PATCH ip-masq-agent" and cluster.document() == NEW:
            cluster.agents["ipmasq-agent-n2"].dead = True

    cluster.after = fall_silent
    done = plugin(cluster, *WORDS, stdin=NEW)
    assert done.code == 1
    assert list(done.data["failed"]) == ["n2"]
    assert cluster.document() == DOCUMENT

    def leave(what: str) -> None:
        if what == "PATCH ip-masq-agent" and cluster.document() == NEW:
            cluster.agents.pop("ipmasq-agent-n3", None)

    cluster.agents["ipmasq-agent-n2"].dead = False
    cluster.after = leave
    assert plugin(cluster, *WORDS, stdin=NEW).code == 0
    assert cluster.document() == NEW


def test_as_many_as_are_tolerated_may_fail(clusters: Made, plugin: Plugin) -> None:
    agents = few(5)
    agents[1].fails = "no"
    cluster = clusters(agents)
    plugin(cluster, "status")
    done = plugin(cluster, *WORDS, "--tolerate", "1", stdin=NEW)
    assert done.code == 0
    assert list(done.data["failed"]) == ["n2"]
    assert cluster.document() == NEW


def test_what_nodes_would_refuse_is_not_written(clusters: Made, plugin: Plugin) -> None:
    cluster = clusters(few(3))
    document = "nonMasqueradeCIDRs: ['fd00::/8']\n"  # and these agents manage IPv4 alone
    done = plugin(cluster, *WORDS, stdin=document)
    assert done.code == 1
    assert done.data["outcome"] == "refused"
    assert set(done.data["failed"]) == {"n1", "n2", "n3"}
    assert "n1, n2, n3 would refuse it: standard input:1:22: " in done.err
    assert cluster.document() == DOCUMENT
    assert kept(cluster) is None


def test_a_document_is_for_all_nodes(clusters: Made, plugin: Plugin) -> None:
    done = plugin(clusters(few(2)), *WORDS, "--node", "n1", stdin=NEW)
    assert done.code == 2
    assert "leave --node out" in done.err


def test_a_document_that_nobody_can_use_reaches_no_server(clusters: Made, plugin: Plugin) -> None:
    cluster = clusters(few(1))
    done = plugin(cluster, *WORDS, stdin="nonMasqueradeCIDRs: [10.0.0.0/40]\n")
    assert done.code == 2
    assert "-:1:22: " in done.err
    assert cluster.requests == []


class Terminal(io.TextIOWrapper):
    """Standard input at which somebody types."""

    def __init__(self, typed: str) -> None:
        super().__init__(io.BytesIO(typed.encode()))

    def isatty(self) -> bool:
        return True


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """The new document in a file."""
    (tmp_path / "new.yaml").write_text(NEW)
    return tmp_path / "new.yaml"


@pytest.mark.parametrize(("typed", "code"), [("n\n", 1), ("y\n", 0)])
def test_what_would_change_is_folded_and_summed_before_it_is_asked(
    clusters: Made,
    plugin: Plugin,
    new: Path,
    typed: str,
    code: int,
) -> None:
    decisions = [{"cidr": "172.16.0.0/12", "from": "masquerade", "to": "non-masquerade"}]
    rows = [{"destination": "172.16.0.9", "connections": 2}]
    agents = few(6)
    for agent in agents[:5]:
        agent.verbs["diff"] = (
            1,
            {
                "changed": True,
                "families": {
                    "ipv4": {"rules": {"add": ["-A x"], "remove": []}, "decisions": decisions}
                },
                "impact": {"connections": 100, "changed": 2, "established": 1, "rows": rows},
            },
        )
    cluster = clusters(agents)
    done = plugin(cluster, "apply", "-f", str(new), stdin=Terminal(typed))
    assert done.code == code
    lines = done.err.splitlines()
    at = lines.index("would change on 5 nodes (n1, n2, n3 and 2 more):")
    assert lines[at + 1 : at + 4] == [
        "  172.16.0.0/12  masquerade → non-masquerade",
        "nothing would change on 1 node (n6)",
        "10 of 500 live connections would leave otherwise if they began anew (10 to 172.16.0.9); "
        "5 of them are established, and go on unchanged",
    ]
    assert "Write it to ConfigMap kube-system/ip-masq-agent?" in done.err
    assert cluster.document() == (NEW if typed == "y\n" else DOCUMENT)


def test_without_a_terminal_it_is_not_written_unless_yes_is_said(
    clusters: Made, plugin: Plugin, new: Path
) -> None:
    cluster = clusters(few(2))
    done = plugin(cluster, "apply", "-f", str(new))
    assert done.code == 2
    assert "give --yes" in done.err
    assert cluster.document() == DOCUMENT


def test_the_manifest_of_a_configmap_is_taken_for_what_it_holds(
    clusters: Made, plugin: Plugin
) -> None:
    manifest = (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ip-masq-agent}\n"
        "data:\n  config: |\n    nonMasqueradeCIDRs: [10.0.0.0/8, 172.16.0.0/12]\n"
    )
    cluster = clusters(few(2))
    assert plugin(cluster, *WORDS, stdin=manifest).data["hash"] == NEW_HASH
    assert cluster.document() == NEW


def test_a_document_of_somebody_else_is_taken_over_only_by_force(
    clusters: Made, plugin: Plugin
) -> None:
    cluster = clusters(few(2))
    cluster.put("ip-masq-agent", DOCUMENT, manager="argocd-controller")
    done = plugin(cluster, *WORDS, stdin=NEW)
    assert done.code == 2
    assert 'conflict with "argocd-controller"' in done.err
    assert "--force-conflicts" in done.err
    assert (cluster.document(), kept(cluster)) == (DOCUMENT, None)
    assert plugin(cluster, *WORDS, "--force-conflicts", stdin=NEW).code == 0
    assert cluster.document() == NEW


@pytest.mark.parametrize("moment", ["PATCH ip-masq-agent-previous", "PATCH ip-masq-agent"])
def test_what_somebody_else_writes_meanwhile_is_left_alone(
    clusters: Made, plugin: Plugin, moment: str
) -> None:
    theirs = "nonMasqueradeCIDRs: [192.168.0.0/16]\n"
    agents = few(3)
    agents[0].fails = "no"
    cluster = clusters(agents)
    plugin(cluster, "status")

    def write(what: str) -> None:
        if what == moment and cluster.configmaps.get("ip-masq-agent-previous"):
            cluster.put("ip-masq-agent", theirs)

    cluster.after = write
    done = plugin(cluster, *WORDS, "--force-conflicts", stdin=NEW)
    assert done.code == 2
    assert "was changed by somebody else meanwhile" in done.err
    assert cluster.document() == theirs


OURS = "ConfigMap kube-system/ip-masq-agent"


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("/etc/config/ip-masq-agent", 0),
        (f"{OURS} key config", 0),
        (f"{OURS}, {OURS}-canary", 0),
        (f"{OURS}, {OURS}-more", 2),
        (f"{OURS} key other", 2),
        ("ConfigMap kube-system/masq", 2),
    ],
)
def test_agents_that_read_another_document_are_not_waited_for_in_vain(
    clusters: Made, plugin: Plugin, source: str, code: int
) -> None:
    cluster = clusters([*few(2), Agent("other", source=source)])
    done = plugin(cluster, *WORDS, stdin=NEW)
    assert done.code == code, done.err
    if code:
        assert f"other read another document: {source}" in done.err
        assert cluster.document() == DOCUMENT


def test_without_the_permission_to_run_programs_it_is_applied_unseen(
    clusters: Made, plugin: Plugin
) -> None:
    cluster = clusters(few(2))
    cluster.forbidden = ("exec",)
    done = plugin(cluster, *WORDS, stdin=NEW)
    assert done.code == 0
    assert "what would change cannot be told" in done.err
    assert "resources: [pods/exec]" in done.err


def test_rollback_is_for_any_machine_and_may_be_begun_again(clusters: Made, plugin: Plugin) -> None:
    cluster = clusters(few(3))
    assert plugin(cluster, "rollback", "--yes").code == 2
    assert plugin(cluster, *WORDS, stdin=NEW).code == 0
    for said in ("", f"holds {OLD_HASH} already"):
        done = plugin(cluster, "rollback", "--yes")
        assert done.code == 0
        assert said in done.err
        assert f"{OLD_HASH} is in force on 3 of 3 nodes" in done.out
        assert cluster.document() == DOCUMENT


def test_where_there_was_no_document_there_is_none_after_a_rollback(
    clusters: Made, plugin: Plugin
) -> None:
    cluster = clusters(few(2), None)
    assert plugin(cluster, *WORDS, stdin=NEW).code == 0
    assert plugin(cluster, "rollback", "--yes").code == 0
    assert "ip-masq-agent" not in cluster.configmaps
    assert plugin(cluster, "status").code == 0


@pytest.mark.parametrize("writes", range(1, 5))
def test_a_plugin_that_is_killed_leaves_the_old_document_or_the_new_one_and_a_way_on(
    clusters: Made, plugin: Plugin, tmp_path: Path, new: Path, writes: int
) -> None:
    agents = few(3)
    agents[1].fails = "no"
    cluster = clusters(agents)
    plugin(cluster, "status")
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", cluster.port)
    # Asked whether it might write, the old one kept, the new one written, the old one again.
    words = ("apply", "--yes", "--grace", "0", "-f", str(new))
    seen: list[str] = []
    with started(kubeconfig, *words) as child:

        def kill(what: str) -> None:
            seen.append(what)
            if len(seen) == writes:
                child.kill()

        cluster.after = kill
        child.communicate(timeout=120)
    assert child.returncode == -signal.SIGKILL
    assert len(seen) == writes
    assert cluster.document() == (NEW if writes == 3 else DOCUMENT)
    cluster.after = lambda what: None
    status = plugin(cluster, "status")
    assert status.code == (1 if writes == 3 else 0)
    assert (f"goes back to the document before it ({OLD_HASH})" in status.out) == (writes == 3)
    done = plugin(cluster, "rollback", "--yes")
    assert done.code == (2 if writes == 1 else 0)
    assert cluster.document() == DOCUMENT
    assert plugin(cluster, "status").code == 0


def test_apply_goes_on_where_another_one_was_killed(clusters: Made, plugin: Plugin) -> None:
    agents = few(3)
    cluster = clusters(agents)
    plugin(cluster, "status")
    assert plugin(cluster, *WORDS, stdin=NEW).code == 0
    agents[1].fails = "no"
    cluster.put("ip-masq-agent", "nonMasqueradeCIDRs: []\n")
    plugin(cluster, "status")
    agents[1].fails = None
    cluster.put("ip-masq-agent", NEW)
    done = plugin(cluster, *WORDS, stdin=NEW)
    assert done.code == 0
    assert f"holds {NEW_HASH} already" in done.err
