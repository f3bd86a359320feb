"""The agent as a process: what it writes, what it says, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import oracle
from tests.kernel.agent import Verb
from tests.kernel.pins import PINS
from tests.kernel.running import Running, write
from tests.kube.cluster import Cluster, write_kubeconfig
from tests.netns import Namespace
from tests.waiting import DEADLINE, wait_until

ONE = "nonMasqueradeCIDRs: [172.20.0.0/16]\n"
TWO = "nonMasqueradeCIDRs: [172.20.0.0/16, 10.10.1.0/24]\n"
BAD = "nonMasqueradeCIDRs: [10.0.0.1/8]\n"
LINK_LOCAL = "169.254.0.0/16"
VARIANTS: list[oracle.Variant] = ["nft", "legacy"]


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.write_text(ONE)
    return path


def chain(variant: oracle.Variant, family: oracle.Family = "ipv4") -> list[str | None] | None:
    """The destinations of the chain's rules in order, None for the last; None without one."""
    rules = oracle.read_chain(variant, family, "IP-MASQ")
    return None if rules is None else [rule.destination for rule in rules]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_change_a_fault_and_a_flush(
    run: Callable[..., Running], document: Path, variant: oracle.Variant
) -> None:
    agent = run("run", f"--backend=iptables-{variant}", f"--config={document}")
    agent.wait_ready()
    assert chain(variant) == [LINK_LOCAL, "172.20.0.0/16", None]

    write(document, TWO)
    wait_until(lambda: "10.10.1.0/24" in (chain(variant) or ()), "the new entry")

    write(document, BAD)
    wait_until(lambda: agent.status()["config"]["accepted"] is False, "the refusal")
    code, why = agent.get("/readyz")
    assert code == 503
    assert "did you mean 10.0.0.0/8?" in why
    assert agent.get("/healthz")[0] == 200
    assert chain(variant) == [LINK_LOCAL, "172.20.0.0/16", "10.10.1.0/24", None]

    subprocess.run([f"iptables-{variant}", "-t", "nat", "-F", "IP-MASQ"], check=True)
    agent.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(chain(variant) or ()) == 4, "the healing")
    assert agent.status()["config"]["error"]

    write(document, ONE)
    wait_until(agent.ready, "ready again")
    assert chain(variant) == [LINK_LOCAL, "172.20.0.0/16", None]
    assert agent.stop() == 0
    assert chain(variant) == [LINK_LOCAL, "172.20.0.0/16", None]


def test_a_restart_while_the_api_is_away_goes_on_with_the_last_good_document(
    run: Callable[..., Running], tmp_path: Path
) -> None:
    cluster = Cluster()
    try:
        kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", cluster.port)
        flags = [
            *("run", "--configmap=kube-system/ip-masq-agent", f"--kubeconfig={kubeconfig}"),
            f"--state-dir={tmp_path / 'state'}",
        ]
        revision = cluster.put({"config": TWO})
        agent = run(*flags)
        agent.wait_ready()
        assert agent.status()["config"]["secondsSinceHeard"] < DEADLINE
        assert agent.stop() == 0
        cluster.down()
        subprocess.run(["iptables-nft", "-t", "nat", "-F", "IP-MASQ"], check=True)
        agent = run(*flags)
        wait_until(lambda: len(chain("nft") or ()) == 4, "the healing")
        wait_until(lambda: "cannot be reached" in agent.get("/readyz")[1], "the reason")
        code, why = agent.get("/readyz")
        assert code == 503
        assert f"the last good document, revision {revision}, kept on this node, is in forc" in why
        assert agent.status()["config"]["kept"] is True
        assert agent.log.read_text().count("document kept on this node") == 1
        cluster.up()
        agent.wait_ready()
        assert agent.status()["config"]["kept"] is False
    finally:
        cluster.close()


def test_flags_without_a_verb_run_the_agent_as_upstream_does(
    run: Callable[..., Running], in_ns: Namespace
) -> None:
    agent = run(
        "-masq-chain=IP-MASQ", "--nomasq-all-reserved-ranges", "--logtostderr=true", "--v=2"
    )
    agent.wait_ready()
    found = chain("nft") or []
    assert found[:2] == [LINK_LOCAL, "10.0.0.0/8"]
    assert "240.0.0.0/4" in found


def test_ipv6_is_one_more_family(run: Callable[..., Running], document: Path) -> None:
    document.write_text("nonMasqueradeCIDRs: [172.20.0.0/16, 'fd00:10::/64']\n")
    agent = run("run", f"--config={document}", "--enable-ipv6")
    agent.wait_ready()
    assert chain("nft", "ipv6") == ["fe80::/10", "fd00:10::/64", None]
    assert agent.status()["ipv6"]["enabled"] is True


def test_the_document_may_come_and_go(run: Callable[..., Running], tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "config"
    agent = run("run", f"--config={path}")
    agent.wait_ready()
    assert chain("nft") == [LINK_LOCAL, "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", None]
    path.parent.mkdir(parents=True)
    write(path, ONE)
    wait_until(lambda: chain("nft") == [LINK_LOCAL, "172.20.0.0/16", None], "the document")
    path.unlink()
    wait_until(lambda: "10.0.0.0/8" in (chain("nft") or ()), "the defaults again")


def test_a_resync_heals_and_an_idle_one_leaves_handles_and_counters(
    run: Callable[..., Running], document: Path
) -> None:
    document.write_text("resyncInterval: 1s\n" + ONE)
    agent = run("run", f"--config={document}")
    agent.wait_ready()
    handles = oracle.rule_handles("ipv4", "IP-MASQ")
    passes = agent.status()["passes"]
    wait_until(lambda: agent.status()["passes"] >= passes + 2, "two resyncs")
    assert oracle.rule_handles("ipv4", "IP-MASQ") == handles
    assert agent.status()["changes"] == 1
    subprocess.run(["iptables-nft", "-t", "nat", "-D", "IP-MASQ", "2"], check=True)
    wait_until(lambda: len(chain("nft") or ()) == 3, "the healing")


def test_programs_that_somebody_removes_without_a_word_come_back(
    run: Callable[..., Running], document: Path, in_ns: Namespace
) -> None:
    in_ns.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "far0"])
    in_ns.run(["ip", "link", "set", "eth0", "up"])
    in_ns.address("eth0", "192.0.2.1/24")
    agent = run("run", "--backend=bpf", f"--config={document}")
    agent.wait_ready()
    pins = Path(os.environ[PINS])
    links = {link.name for link in pins.glob("link-*")}
    assert len(links) == 2
    for _ in range(2):
        for link in pins.glob("link-*"):
            link.unlink()
        wait_until(lambda: {link.name for link in pins.glob("link-*")} == links, "healed")
    agent.stop()


def test_cleanup_on_exit_leaves_nothing(run: Callable[..., Running], document: Path) -> None:
    subprocess.run(["iptables-nft", "-t", "nat", "-N", "OTHERS"], check=True)
    agent = run("run", f"--config={document}", "--cleanup-on-exit", "--enable-ipv6")
    agent.wait_ready()
    assert agent.stop(signal.SIGINT) == 0
    assert chain("nft") is None
    left = str(oracle.snapshot())
    assert "IP-MASQ" not in left
    assert "OTHERS" in left


def test_json_logs_tell_changes_and_stay_silent_about_the_rest(
    run: Callable[..., Running], document: Path
) -> None:
    document.write_text("resyncInterval: 1s\n" + ONE)
    agent = run("run", f"--config={document}", "--log-format=json")
    agent.wait_ready()
    wait_until(lambda: agent.status()["passes"] >= 3, "three passes")
    agent.stop()
    lines = [json.loads(line) for line in agent.log.read_text().splitlines()]
    if "idle" in lines[0]:  # with capabilities that root of a container has not
        del lines[0]
    assert [line["message"] for line in lines] == [
        "starting",
        "document accepted",
        "rules applied",
        "stopped",
    ]
    assert lines[2]["family"] == "ipv4"
    assert lines[2]["added"] == 4


def test_metrics_and_probes(run: Callable[..., Running], document: Path) -> None:
    agent = run("run", f"--config={document}")
    agent.wait_ready()
    # Metrics are shown at the end of a turn, a moment after readiness.
    wait_until(lambda: "ipmasq_agent_ready 1.0" in agent.get("/metrics")[1], "the gauge")
    assert agent.get("/metrics")[0] == 200
    code, index = agent.get("/")
    assert code == 200
    assert re.findall(r"^/\w+", index, re.M) == ["/healthz", "/readyz", "/status", "/metrics"]
    counted = 'ipmasq_agent_passes_total{family="ipv4",result="changed"} 1.0'
    wait_until(lambda: counted in agent.get("/metrics")[1], "the pass is counted")
    assert agent.get("/nothing")[0] == 404


@pytest.mark.parametrize("backend", ["iptables-nft", "nftables"])
def test_http_and_the_verb_say_the_same_of_one_state(
    run: Callable[..., Running], verb: Verb, document: Path, backend: str
) -> None:
    document.write_text(
        ONE + "nativeRoutingCIDRs: [10.1.0.0/16, 'fd00::/8']\nsnatAddress: 198.51.100.9\nodd: 1\n"
    )
    flags = [f"--config={document}", f"--backend={backend}", "--enable-ipv6=true"]
    agent = run("run", *flags)
    agent.wait_ready()

    def rules_of_others_are_known() -> bool:
        return bool(agent.status()["config"]["warnings"]) and agent.status()["passes"] > 0

    wait_until(rules_of_others_are_known, "the end of the pass")
    _, out, _ = verb("status", "-o", "json")
    by_verb, by_http = json.loads(out), agent.status()
    # What goes on: passes and counters; and whom the verb has asked.
    for alone in ("passes", "changes", "counters", "agent", "tracked"):
        del by_verb[alone], by_http[alone]
    assert by_http == by_verb
    assert by_http["nativeRoutingCIDR"] == "10.1.0.0/16, fd00::/8"
    assert "odd" in by_http["config"]["warnings"][0]
    assert "198.51.100.9" in by_http["advice"][-1]


def test_http_can_be_off(run: Callable[..., Running], document: Path) -> None:
    agent = run("run", f"--config={document}", "--http-address=")
    wait_until(lambda: chain("nft") is not None, "the chain")
    assert agent.get("/healthz")[0] == 0


def test_the_daemon_loads_no_library_that_only_others_need(
    document: Path, in_ns: Namespace
) -> None:
    program = (
        "import sys, threading, time\n"
        "from ipmasq_agent.cli import main\n"
        "from ipmasq_agent.agent import loop\n"
        "turn = loop.Agent.turn\n"
        "loop.Agent.turn = lambda self: turn(self) and self.status.passes == 0\n"
        "try:\n    main()\n"
        "except SystemExit:\n    heavy = {'kubernetes', 'rich', 'ssl', 'asyncio'}\n"
        "    print(sorted(heavy & set(sys.modules)))\n"
    )
    argv = [sys.executable, "-c", program, "run", f"--config={document}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert done.stdout.strip() == "[]", done.stderr
    assert chain("nft") is not None


@pytest.fixture
def cluster(in_ns: Namespace) -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    with contextlib.suppress(RuntimeError):
        cluster.close()


@pytest.fixture
def kubeconfig(cluster: Cluster, tmp_path: Path) -> Path:
    return write_kubeconfig(tmp_path / "kubeconfig", cluster.port)


def test_a_configmap_is_followed_and_an_unreachable_api_is_not_a_missing_one(
    run: Callable[..., Running], cluster: Cluster, kubeconfig: Path
) -> None:
    cluster.put({"config": ONE})
    agent = run("run", "--configmap=kube-system/ip-masq-agent", f"--kubeconfig={kubeconfig}")
    agent.wait_ready()
    assert chain("nft") == [LINK_LOCAL, "172.20.0.0/16", None]

    version = cluster.put({"config": TWO})
    wait_until(lambda: "10.10.1.0/24" in (chain("nft") or ()), "the new entry")
    wait_until(lambda: agent.status()["config"]["revision"] == version, "its revision")

    cluster.down()
    wait_until(lambda: not agent.ready(), "the disconnect is known")
    subprocess.run(["iptables-nft", "-t", "nat", "-F", "IP-MASQ"], check=True)
    agent.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(chain("nft") or ()) == 4, "healed without the API")
    cluster.up()
    wait_until(agent.ready, "ready again")

    cluster.delete()
    wait_until(lambda: "10.0.0.0/8" in (chain("nft") or ()), "the defaults")
    assert agent.stop() == 0


def test_two_agents_of_two_chains_cannot_listen_on_one_address(
    run: Callable[..., Running], document: Path
) -> None:
    run("run", f"--config={document}").wait_ready()
    second = run("run", f"--config={document}", "--masq-chain=ANOTHER")
    assert second.process.wait(DEADLINE) == 2
    assert "--http-address" in second.log.read_text()


def test_a_rule_of_others_that_decides_is_told_once_and_ready_stays(
    run: Callable[..., Running], document: Path
) -> None:
    document.write_text(ONE + "resyncInterval: 1s\n")
    agent = run("run", "--backend=iptables-nft", f"--config={document}")
    agent.wait_ready()
    wait_until(lambda: bool(agent.status().get("inForce")), "in force")
    rule = "-d 172.16.0.0/12 -j MASQUERADE"
    insert = ["iptables-nft", "-t", "nat", "-I", "POSTROUTING", *rule.split()]
    subprocess.run(insert, check=True)
    wait_until(lambda: agent.status().get("inForce") is False, "overridden")
    passes = agent.status()["passes"]
    wait_until(lambda: agent.status()["passes"] > passes + 1, "two more passes")
    status = agent.status()
    assert (status["inSync"], status["ready"]) == (True, True)
    assert agent.get("/readyz")[0] == 200
    (override,) = status["overrides"]
    assert (override["wanted"], override["verdict"]) == ("non-masquerade", "masquerade")
    assert override["cidrs"] == ["172.20.0.0/16"]
    assert override["rule"] == f"rule 1 of POSTROUTING: {rule}"
    assert 'ipmasq_agent_overridden_ranges{family="ipv4"} 1.0' in agent.get("/metrics")[1]
    assert agent.log.read_text().count("somebody else decides") == 1
    subprocess.run(["iptables-nft", "-t", "nat", "-D", "POSTROUTING", "1"], check=True)
    wait_until(lambda: agent.status().get("inForce") is True, "in force again")
    assert 'ipmasq_agent_overridden_ranges{family="ipv4"} 0.0' in agent.get("/metrics")[1]
    assert "nobody else decides any more" in agent.log.read_text()
