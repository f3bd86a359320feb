"""Two writers of one node's rules: refused where it can be, and told where it cannot."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import oracle
from tests.deploy.manifests import BPF, FILE, container
from tests.kernel.agent import status_of
from tests.kernel.pins import PINS
from tests.kernel.running import Running
from tests.netns import Namespace
from tests.waiting import wait_until

VARIANTS: list[oracle.Variant] = ["nft", "legacy"]
THEIRS = "nonMasqueradeCIDRs: [192.0.2.0/24]\n"


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.write_text("nonMasqueradeCIDRs: [172.20.0.0/16]\nresyncInterval: 1s\n")
    return path


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    path = tmp_path / "theirs"
    path.write_text(THEIRS)
    return path


def destinations(variant: oracle.Variant, chain: str = "IP-MASQ") -> list[str | None]:
    return [rule.destination for rule in oracle.read_chain(variant, "ipv4", chain) or ()]


@pytest.mark.parametrize("plane", ["iptables-nft", "iptables-legacy", "ipset", "nftables", "bpf"])
def test_apply_and_cleanup_refuse_what_a_running_agent_keeps(
    run: Callable[..., Running],
    document: Path,
    theirs: Path,
    plane: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    agent = run("run", f"--backend={plane}", f"--config={document}")
    agent.wait_ready()
    before = oracle.snapshot()
    for words in (("apply", f"--config={theirs}"), ("cleanup",)):
        assert status_of(*words, f"--backend={plane}") == 2
        assert "an agent is running here, which keeps IP-MASQ" in capsys.readouterr().err
        assert oracle.snapshot() == before
    # What has another chain's name is not the agent's.
    assert status_of("cleanup", "--masq-chain=IP-MASQ-AGENT") == 0
    assert oracle.snapshot() == before
    assert status_of("diff", f"--backend={plane}", f"--config={document}") == 0
    assert agent.status()["changes"] == 1

    agent.stop(signal.SIGKILL)
    assert status_of("apply", f"--config={theirs}", f"--backend={plane}") == 0
    assert status_of("diff", f"--config={theirs}", f"--backend={plane}") == 0
    assert status_of("cleanup") == 0


@pytest.mark.parametrize("variant", [FILE, BPF])
def test_verbs_without_a_flag_agree_with_the_agent_in_whose_container_they_run(
    run: Callable[..., Running],
    in_ns: Namespace,
    document: Path,
    variant: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    in_ns.lead_out()
    for setting in container(variant)["env"]:
        # The pins are where the test has its own file system of eBPF.
        if "value" in setting and setting["name"] not in ("IPMASQ_CONFIGMAP", PINS):
            monkeypatch.setenv(setting["name"], setting["value"])
    monkeypatch.setenv("IPMASQ_CONFIG", str(document))
    monkeypatch.setenv("IPMASQ_ENABLE_IPV6", "true")
    monkeypatch.setenv("IPMASQ_MASQ_CHAIN", "OURS")
    agent = run(*container(variant)["args"])
    agent.wait_ready()
    capsys.readouterr()
    assert (status_of("status"), status_of("diff")) == (0, 0)
    assert "IPv6: Enabled" in capsys.readouterr().out
    assert status_of("list") == 0
    assert "172.20.0.0/16" in capsys.readouterr().out
    assert status_of("explain", "172.20.0.1", "-o", "json") == 0
    assert '"verdict": "non-masquerade"' in capsys.readouterr().out
    before = oracle.snapshot()
    assert status_of("apply") == 2
    assert oracle.snapshot() == before


def test_cleanup_of_another_chain_leaves_a_running_agents_programs(
    run: Callable[..., Running],
    document: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # What the agent before left, in whatever this one's container has for its backend.
    old = ("--masq-chain=IP-MASQ-AGENT", f"--config={document}", "--backend=iptables-legacy")
    assert status_of("apply", *old) == 0
    monkeypatch.setenv("IPMASQ_BACKEND", "bpf")
    agent = run("run", f"--config={document}")
    agent.wait_ready()
    assert status_of("cleanup", "--masq-chain=IP-MASQ-AGENT") == 0
    assert "bpf: left alone" in capsys.readouterr().out
    assert oracle.read_chain("legacy", "ipv4", "IP-MASQ-AGENT") is None
    assert status_of("diff", "--backend=bpf", f"--config={document}") == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_agents_with_two_documents_are_told_and_one_of_them_gives_way(
    run: Callable[..., Running], document: Path, theirs: Path, variant: oracle.Variant
) -> None:
    flags = (f"--backend=iptables-{variant}", f"--config={document}", "--log-format=json")
    agent = run("run", *flags)
    agent.wait_ready()
    write = [sys.executable, "-P", "-m", "ipmasq_agent", "apply", "--beside-agent"]
    write += [f"--backend=iptables-{variant}", f"--config={theirs}"]

    def undo() -> None:
        """As the other one does, which looks once in a while."""
        if "172.20.0.0/16" in destinations(variant):
            done = subprocess.run(write, check=False, capture_output=True, text=True)
            # It looks again at what it wrote, which may be undone by then.
            assert done.returncode == 0 or "after the rules were written" in done.stderr, (
                done.stderr
            )

    def ours() -> bool:
        return "172.20.0.0/16" in destinations(variant)

    for _ in range(3):
        assert agent.status()["contested"] is None
        undo()
        wait_until(ours, "the last good policy is healed")
    wait_until(lambda: agent.status()["contested"] is not None, "the war is recognised")
    assert agent.status()["contested"].startswith("another agent of this kind")
    wait_until(lambda: "ipmasq_agent_contested 1.0" in agent.get("/metrics")[1], "the gauge")
    assert "ipmasq_agent_undone_total 3.0" in agent.get("/metrics")[1]

    def told() -> bool:
        undo()
        code, why = agent.get("/readyz")
        return code == 503 and "the document is not in force" in why

    wait_until(told, "that it is not ready")
    later = agent.status()["passes"] + 3
    wait_until(lambda: agent.status()["passes"] >= later, "more passes")
    # However long that took here: three writes more at once, and then hardly any.
    gaps = agent.gaps()["ipv4"]
    assert len(gaps) >= 3
    assert all(gap >= 29.0 for gap in gaps[3:]), gaps
    # Who is asked to does it at once.
    agent.process.send_signal(signal.SIGHUP)
    wait_until(ours, "the document")
