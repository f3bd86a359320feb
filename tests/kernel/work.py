"""A short life of an agent on a node, with all that it does there: for who looks how it does it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ipmasq_agent.planes.registry import PlaneRow
from tests.faults.injector import HELD
from tests.faults.injector import PLANES as BY_HAND
from tests.kernel.running import Running, write
from tests.kube.cluster import NAME, NAMESPACE, write_kubeconfig
from tests.kube.node_cluster import NodeCluster, node_object
from tests.netns import Namespace
from tests.waiting import wait_until

KEPT_BEFORE, KEPT_AFTER = "10.0.0.0/8", "198.18.0.0/15"
DOCUMENT = f"nonMasqueradeCIDRs: [{KEPT_BEFORE}, 'fd00::/8']\nresyncInterval: 1s\n"
ANOTHER = DOCUMENT.replace(KEPT_BEFORE, KEPT_AFTER)
VERBS = (
    "status",
    "explain 192.0.2.9",
    "diff --live",
    "doctor",
    "ports",
    "list",
    "routes",
    "observe --last 3",
    "compare kernel {document}",
)
"""What people run in the agent's container. Each is answered by 0, or by 1 for what was found."""


class Node:
    """A node with a way out, on which the one backend comes to the plane that is meant."""

    def __init__(self, ns: Namespace, plane: PlaneRow) -> None:
        self.plane = plane
        self._by_hand = BY_HAND[plane.backend]
        self._ns = ns
        ns.lead_out()
        if plane.name == "ipset-legacy":
            for program in ("iptables-legacy", "ip6tables-legacy"):
                ns.run([program, "-t", "mangle", "-N", "KUBE-IPTABLES-HINT"])

    def held(self) -> list[str]:
        """Return the prefixes and jumps of ours that the kernel holds."""
        return sorted(HELD.findall(self._sh(self._by_hand.dump)))

    def in_force(self) -> list[str]:
        """Return the same without sets, which nobody may ask."""
        return HELD.findall(self._sh(self._by_hand.dump.removesuffix("; ipset save")))

    def wipe(self) -> None:
        """Take from the kernel what is ours."""
        self._sh(self._by_hand.wipe)

    def _sh(self, line: str) -> str:
        if self.plane.name == "ipset-legacy":
            line = line.replace("iptables-nft", "iptables-legacy")
        return self._ns.run(["sh", "-c", line], check=False).stdout


def live(node: Node, place: Path, under: Sequence[str], verbs: Iterable[str] = VERBS) -> None:
    """Have an agent follow its document, heal, tell of itself and end, beside verbs that ask.

    The document is the API's, and a file's where the plane runs no programs.

    Args:
        node: that the calling thread has entered.
        place: an empty directory.
        under: what each program is run by.
        verbs: those that are asked.
    """
    cluster, document = NodeCluster(), place / "document"
    cluster.join(node_object("worker", cidrs=("10.1.0.0/24",), InternalIP="192.168.10.101"))
    environment = {
        "IPMASQ_BACKEND": node.plane.backend,
        "IPMASQ_ENABLE_IPV6": "true",
        "IPMASQ_KUBECONFIG": str(write_kubeconfig(place / "kubeconfig", cluster.port)),
        "IPMASQ_NODE_NAME": "worker",
        "IPMASQ_STATE_DIR": str(place / "state"),
        "IPMASQ_SOCKET": str(place / "agent.sock"),
    }
    if node.plane.programs:
        environment["IPMASQ_CONFIGMAP"] = f"{NAMESPACE}/{NAME}"
    else:
        environment["IPMASQ_CONFIG"] = str(document)

    def say(text: str) -> None:
        cluster.put({"config": text})
        write(document, text)

    under = ["env", *(f"{name}={value}" for name, value in environment.items()), *under]

    def right() -> bool:
        held = node.held()
        return KEPT_BEFORE not in held and KEPT_AFTER in held and bool(node.in_force())

    say(DOCUMENT)
    agent = Running(place / "log", "run", f"--record={place / 'record'}", under=under)
    try:
        agent.wait_ready()
        say(ANOTHER)
        wait_until(right, "in force")
        node.wipe()
        wait_until(right, "healed")
        agent.process.send_signal(signal.SIGHUP)
        agent.wait_ready()
        for path in ("/", "/metrics", "/status"):
            assert agent.get(path)[0] == 200, path
        for verb in verbs:
            answered(under, verb.format(document=document), 0, 1)
        assert agent.stop() == 0
    finally:
        agent.stop(signal.SIGKILL)
        cluster.close()
    answered(under, "cleanup", 0)
    assert node.in_force() == []


def answered(under: Sequence[str], verb: str, *statuses: int) -> None:
    """Run a verb to its end, and see that it ends with one of these."""
    argv = [*under, sys.executable, "-m", "ipmasq_agent", *verb.split()]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode in statuses, f"{verb}: {done.returncode}\n{done.stdout}{done.stderr}"
