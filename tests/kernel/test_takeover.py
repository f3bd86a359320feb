"""From GKE's addon to this agent, on the addon's own chain and with its own arguments."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests import oracle
from tests.kernel.crossing import Crossing, crossing
from tests.kernel.flows import KEPT, both, count_in, flowing, verify
from tests.kernel.running import Running, write
from tests.waiting import wait_until

# As a public manifest of ip-masq-agent v2.12.6-gke has them, in a cluster of both families.
ARGUMENTS = (
    "--v=2",
    "--logtostderr=false",
    "--log_file=/dev/stdout",
    "--log_file_max_size=0",
    "--masq-chain=IP-MASQ",
    "--random-fully=false",
    "--enable-ipv6",
)
_STAYS = "ip-masq-agent: local traffic is not subject to MASQUERADE"
_LAST = "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)"
_JUMP = (
    "ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our "
    "custom IP-MASQ chain"
)
LINK_LOCAL = {"ipv4": "169.254.0.0/16", "ipv6": "fe80::/10"}
PROGRAMS = {"ipv4": "iptables", "ipv6": "ip6tables"}


class Addon:
    """The agent that was here before, as far as its rules go: written by hand, not by us."""

    def __init__(self, node: Crossing, variant: oracle.Variant, prefixes: list[str]) -> None:
        self.node, self.variant, self.prefixes = node, variant, prefixes

    def sync(self) -> None:
        """What it does each minute: its chain anew in one transaction, and a jump to it."""
        for number, family in enumerate(oracle.FAMILIES):
            stay = [LINK_LOCAL[family], *(both(prefix)[number] for prefix in self.prefixes)]
            lines = [
                "*nat",
                ":IP-MASQ - [0:0]",
                *(f'-A IP-MASQ -d {one} -m comment --comment "{_STAYS}" -j RETURN' for one in stay),
                f'-A IP-MASQ -m comment --comment "{_LAST}" -j MASQUERADE',
                "COMMIT\n",
            ]
            program = f"{PROGRAMS[family]}-{self.variant}"
            jump = ["-m", "comment", "--comment", _JUMP, "-m", "addrtype", "!"]
            jump += ["--dst-type", "LOCAL", "-j", "IP-MASQ"]
            wait = ["-w"] if self.variant == "legacy" else []
            run = self.node.node.run
            run([f"{program}-restore", *wait, "--noflush"], stdin="\n".join(lines))
            if run(
                [program, *wait, "-t", "nat", "-C", "POSTROUTING", *jump], check=False
            ).returncode:
                run([program, *wait, "-t", "nat", "-A", "POSTROUTING", *jump])


@pytest.fixture(params=oracle.VARIANTS)
def variant(request: pytest.FixtureRequest) -> oracle.Variant:
    found: oracle.Variant = request.param
    return found


@pytest.fixture
def node(variant: oracle.Variant) -> Iterator[Crossing]:
    with crossing() as made:
        made.node.run(["sysctl", "-q", "-w", "net.netfilter.nf_conntrack_udp_timeout=1"])
        # Kubelet says which iptables the node uses.
        made.node.run([f"iptables-{variant}", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT"])
        count_in(made.world)
        yield made


def chains(variant: oracle.Variant) -> list[list[str | None]]:
    return [
        [rule.destination for rule in oracle.read_chain(variant, family, "IP-MASQ") or ()]
        for family in oracle.FAMILIES
    ]


def passed(agent: Running, passes: int) -> bool:
    return bool(agent.status()["passes"] >= passes)


@pytest.mark.parametrize(
    "prefixes",
    [[KEPT], ["10.10.1.128/25", "10.10.1.0/25"]],
    ids=["the same rules", "rules of another form"],
)
def test_the_addons_chain_is_taken_over_without_a_packet_from_the_wrong_address(
    node: Crossing, variant: oracle.Variant, prefixes: list[str], tmp_path: Path
) -> None:
    addon = Addon(node, variant, prefixes)
    addon.sync()
    same = prefixes == [KEPT]
    document = tmp_path / "config"

    def say(*kept: str) -> None:
        entries = [prefix for one in kept for prefix in both(one)]
        write(document, json.dumps({"nonMasqueradeCIDRs": entries, "resyncInterval": "1s"}))

    say(KEPT)
    ours = [[LINK_LOCAL[f], both(KEPT)[n], None] for n, f in enumerate(oracle.FAMILIES)]
    with node.node.entered():
        agent = Running(tmp_path / "log", *ARGUMENTS, f"--config={document}", "--log-format=json")
        try:
            # Not at full speed, which takes a processor: what is wrong here is so for long.
            with flowing(node, pause=0.0005) as counts:
                # Both run for a while, and the addon does what it does.
                for _ in range(2 if same else 5):
                    agent.wait_ready()
                    addon.sync()
                    later = agent.status()["passes"] + 2
                    wait_until(partial(passed, agent, later), "two passes")
                status = agent.status()
                if same:
                    assert (status["changes"], status["contested"]) == (0, None)
                else:
                    # It has given way, and what is in force decides as its document does.
                    assert status["contested"].startswith("ip-masq-agent")
                    for gaps in agent.gaps().values():
                        assert all(gap >= 29.0 for gap in gaps[3:]), gaps
                    assert status["ready"]
                # The addon has gone; its rules are what is left of it.
                agent.process.send_signal(signal.SIGHUP)
                wait_until(lambda: chains(variant) == ours, "the rules of ours")
                say(KEPT, "192.0.2.128/25")
                wait_until(lambda: len(chains(variant)[0]) == 4, "the next document")
            assert agent.status()["mode"] == f"iptables-{variant}"
        finally:
            agent.stop()
    assert "these flags of klog" not in agent.log.read_text()
    for family in oracle.FAMILIES:
        hook = oracle.read_chain(variant, family, "POSTROUTING", node.node.name) or ()
        assert [rule.target for rule in hook].count("IP-MASQ") == 1
    verify(counts, at_least=1000)
