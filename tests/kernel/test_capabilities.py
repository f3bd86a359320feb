"""What each data plane declares to need: it is enough, and without any of it the agent says no.

The agent runs as the container does: root, no new privileges, a bounding set that holds
only what it is given, and no file system to write to but the xtables lock's. tests/deploy
compares the same rows of the registry with the manifests.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ipmasq_agent.planes import registry
from tests import oracle
from tests.kernel.container import confined
from tests.kernel.running import Running
from tests.kernel.work import DOCUMENT, Node
from tests.netns import Namespace
from tests.waiting import wait_until

IPTABLES = registry.capabilities("auto")
# linux/capability.h
NUMBERS = {"NET_ADMIN": 12, "NET_RAW": 13, "PERFMON": 38, "BPF": 39}
# Neighbours' rules, as kube-proxy in IPVS mode writes them: iptables asks the kernel for the
# name of the set through a raw socket before it can print such a rule.
FOREIGN_SET = """\
*nat
:OTHERS - [0:0]
-A OTHERS -m set --match-set others dst -j RETURN
-A POSTROUTING -j OTHERS
COMMIT
"""


def limited(capabilities: frozenset[str]) -> list[str]:
    """Return what runs an argv with these capabilities, on file systems that are read-only.

    Read-only for it alone: the mounts are those of a mount namespace that ends with it.
    """
    read_only = """\
set -eu
touch /run/xtables.lock
for path in /run/xtables.lock /tmp /var/tmp; do mount --bind $path $path; done
for path in /tmp /var/tmp /; do mount -o remount,bind,ro $path; done
exec "$@"
"""
    inner = confined(capabilities, ["env", "PATH=/usr/sbin"])
    return ["unshare", "--mount", "sh", "-c", read_only, "sh", *inner]


def apply(
    ns: Namespace, capabilities: frozenset[str], *words: str
) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "ipmasq_agent", "apply"]
    return ns.run([*limited(capabilities), *program, *words], check=False)


@pytest.fixture
def node(in_ns: Namespace, mounted_pins: Path, request: pytest.FixtureRequest) -> Node:
    return Node(in_ns, request.param)


@pytest.fixture
def words(node: Node, tmp_path: Path) -> tuple[str, ...]:
    """The flags that tell an agent of its plane and its document."""
    document = tmp_path / "ip-masq-agent"
    document.write_text(DOCUMENT)
    return (f"--config={document}", f"--backend={node.plane.backend}", "--enable-ipv6")


@pytest.mark.parametrize("node", registry.PLANES, ids=lambda row: row.name, indirect=True)
def test_with_what_it_declares_the_agent_reconciles_and_heals(
    node: Node, words: tuple[str, ...], run: Callable[..., Running]
) -> None:
    agent = run("run", *words, "--state-dir=", "--socket=", under=limited(node.plane.capabilities))
    agent.wait_ready()
    right = node.held()
    assert right, agent.log.read_text()
    node.wipe()
    wait_until(lambda: node.held() == right, "healed")
    agent.wait_ready()
    assert not re.search("(?i)capabilit|permi(ssion|tted)", agent.log.read_text())


TAKEN_AWAY = [(row, each) for row in registry.PLANES for each in sorted(row.capabilities)]


@pytest.mark.parametrize(
    ("node", "missing"),
    TAKEN_AWAY,
    ids=[f"{row.name} without {each}" for row, each in TAKEN_AWAY],
    indirect=["node"],
)
def test_without_one_of_them_it_says_which_and_nothing_is_in_force(
    node: Node, words: tuple[str, ...], in_ns: Namespace, missing: str
) -> None:
    done = apply(in_ns, node.plane.capabilities - {missing}, *words)
    assert done.returncode == 2, done.stdout
    assert "error: " in done.stderr
    assert re.search(rf"\bcapabilit(y|ies)\b.*\b{missing}\b", done.stderr), done.stderr
    assert node.in_force() == []


def test_the_nft_backend_writes_beside_a_neighbours_ipset_rule_without_net_raw(
    ns: Namespace, tmp_path: Path
) -> None:
    ns.run(["ipset", "create", "others", "hash:net"])
    ns.run(["iptables-nft-restore", "--noflush"], stdin=FOREIGN_SET)
    before = oracle.read_chain("nft", "ipv4", "OTHERS", ns.name)
    document = tmp_path / "document"
    document.write_text(DOCUMENT)
    words = (f"--config={document}", "--backend=iptables-nft", "--enable-ipv6")
    done = apply(ns, registry.capabilities("iptables-nft"), *words)
    assert done.returncode == 0, done.stderr
    for family in oracle.FAMILIES:
        assert oracle.read_chain("nft", family, "IP-MASQ", ns.name)
    assert oracle.read_chain("nft", "ipv4", "OTHERS", ns.name) == before


def test_without_net_raw_iptables_nft_cannot_print_a_neighbours_ipset_rule(ns: Namespace) -> None:
    ns.run(["ipset", "create", "others", "hash:net"])
    ns.run(["iptables-nft-restore", "--noflush"], stdin=FOREIGN_SET)
    listing = ["iptables-nft", "-t", "nat", "-S", "OTHERS"]
    assert "--match-set others dst" in ns.run(confined(IPTABLES, listing)).stdout
    refused = ns.run(confined(IPTABLES - {"NET_RAW"}, listing), check=False)
    assert refused.returncode != 0
    assert "Can't open socket to ipset" in refused.stderr


def test_auto_takes_a_set_for_a_large_policy_and_so_declares_net_raw(
    ns: Namespace, tmp_path: Path
) -> None:
    document = tmp_path / "large"
    entries = "".join(f"- 10.{n // 256}.{n % 256}.0/24\n" for n in range(1000))
    document.write_text(f"nonMasqueradeCIDRs:\n{entries}")
    refused = apply(ns, IPTABLES - {"NET_RAW"}, f"--config={document}")
    assert refused.returncode == 2
    assert "capability NET_RAW" in refused.stderr
    assert apply(ns, IPTABLES, f"--config={document}").returncode == 0


def sets_of(process: int) -> dict[str, set[str]]:
    """Return the capability sets of all threads of a process, and whether they may gain any."""
    sets: dict[str, set[str]] = {}
    for task in Path(f"/proc/{process}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            name, _, value = line.partition(":\t")
            if name.startswith("Cap") or name == "NoNewPrivs":
                sets.setdefault(name, set()).add(value)
    return sets


@pytest.mark.parametrize("backend", ["iptables-legacy", "bpf"])
def test_it_gives_up_what_it_does_not_need_before_it_starts_threads(
    in_ns: Namespace, tmp_path: Path, run: Callable[..., Running], backend: str, mounted_pins: Path
) -> None:
    in_ns.lead_out()
    document = tmp_path / "document"
    document.write_text(DOCUMENT)
    words = (f"--config={document}", f"--backend={backend}", "--enable-ipv6")
    agent = run("run", *words, "--drop-capabilities")
    agent.wait_ready()
    kept = registry.capabilities(backend) | registry.to_leave()
    bits = f"{sum(1 << NUMBERS[name] for name in kept):016x}"
    none = f"{0:016x}"
    assert sets_of(agent.process.pid) == {
        **{name: {bits} for name in ("CapPrm", "CapEff", "CapBnd")},
        **{name: {none} for name in ("CapInh", "CapAmb")},
        "NoNewPrivs": {"1"},
    }
    assert "capabilities" not in agent.log.read_text()


def test_it_says_what_it_holds_and_does_not_need_and_what_it_lacks(
    in_ns: Namespace, tmp_path: Path, run: Callable[..., Running]
) -> None:
    document = tmp_path / "document"
    document.write_text(DOCUMENT)
    words = ("run", f"--config={document}", "--enable-ipv6")
    agent = run(*words, under=confined({"NET_ADMIN", "NET_BIND_SERVICE", "SYS_TIME"}, []))
    agent.wait_ready()
    said = agent.log.read_text()
    assert re.search(r"does not need.* idle=2$", said, re.MULTILINE)
    assert re.search(r"lacks.* missing=NET_RAW backend=auto$", said, re.MULTILINE)
