"""From each overlay to each other one beside live traffic: what was left decides nothing.

The agents are those of the rendered DaemonSets: their arguments, environment, capabilities,
mounts of the host, read-only root and filter of system calls. What differs: the API is one
that the test serves, so the kubeconfig names it; the file of the overlay that mounts one
lies where the test writes it; and both families are managed.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ipmasq_agent.policy.addresses import Family
from tests.deploy.manifests import API, BPF, FILE, NODES, container, pod
from tests.kernel.container import contained
from tests.kernel.crossing import PLANS, Crossing, crossing
from tests.kernel.flows import KEPT, MASQUERADED, both, count_in, counted, flowing
from tests.kernel.running import Running, write
from tests.kube.cluster import Cluster, write_kubeconfig
from tests.waiting import wait_until

BEFORE, AFTER = (
    f"nonMasqueradeCIDRs: [{', '.join(repr(one) for one in both(kept))}]\nresyncInterval: 1s\n"
    for kept in (KEPT, MASQUERADED)
)
PAUSE = 0.002
FLOWS = 300
ECHO = 7007
ANSWERING = {Family.IPV4: "10.10.3.7", Family.IPV6: "fd10:a0a:300::7"}


@dataclass
class Node:
    """A node whose DaemonSet is replaced by another one's, and what is served to it."""

    place: Crossing
    cluster: Cluster
    work: Path
    agents: list[Running] = field(default_factory=list)

    @property
    def bpffs(self) -> Path:
        """What the host has at /sys/fs/bpf."""
        return self.work / "bpf"

    def write(self, text: str) -> None:
        """Have both sources say this."""
        write(self.work / "document", text)
        self.cluster.put({"config": text})

    def roll_out(self, overlay: str, **changes: str) -> Running:
        """End the agent that is there, as the kubelet does, and start the overlay's."""
        for agent in self.agents:
            if agent.process.poll() is None:
                assert agent.stop(signal.SIGTERM) == 0, agent.log.read_text()
        number = len(self.agents)
        spec = container(overlay)
        environment = {one["name"]: one.get("value", "node") for one in spec["env"]}
        environment |= {
            "IPMASQ_ENABLE_IPV6": "true",
            "IPMASQ_KUBECONFIG": str(self.work / "kubeconfig"),
        }
        if overlay == FILE:
            environment["IPMASQ_CONFIG"] = str(self.work / "document")
        stage = self.work / f"stage{number}"
        stage.mkdir()
        capabilities = spec["securityContext"]["capabilities"]["add"]
        under = contained(capabilities, [], self.mounts(overlay), stage, environment | changes)
        agent = Running(self.work / f"log{number}", *spec["args"], under=under)
        self.agents.append(agent)
        agent.wait_ready()
        return agent

    def mounts(self, overlay: str) -> dict[Path, Path]:
        """Return the host's paths, of which this node has its own, and where they go."""
        hosts = {
            "/run/xtables.lock": Path("/run/xtables.lock"),
            "/run/ipmasq-agent": self.work / "state",
            "/sys/fs/bpf": self.bpffs,
        }
        sources = {
            volume["name"]: hosts[volume["hostPath"]["path"]]
            for volume in pod(overlay)["volumes"]
            if "hostPath" in volume
        }
        return {
            sources[mount["name"]]: Path(mount["mountPath"])
            for mount in container(overlay)["volumeMounts"]
            if mount["name"] in sources
        }


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with crossing() as place, place.node.entered(), contextlib.ExitStack() as stack:
        cluster = Cluster()  # listens where it was made
        stack.callback(cluster.close)
        made = Node(place, cluster, tmp_path)
        for directory in ("bpf", "state"):
            (tmp_path / directory).mkdir()
        Path("/run/xtables.lock").touch()
        subprocess.run(["mount", "-t", "bpf", "bpf", made.bpffs], check=True)
        stack.callback(lambda: subprocess.run(["umount", made.bpffs], check=True))
        write_kubeconfig(tmp_path / "kubeconfig", cluster.port)
        count_in(place.world)
        answer_the_node(place)
        # As kube-proxy's rules do, wherever our own stand.
        chain = "chain c { type filter hook forward priority 0; ct state new; }"
        place.node.run(["nft", "-f", "-"], stdin=f"table inet on {{ {chain} ; }}\n")
        made.write(BEFORE)
        try:
            yield made
        finally:
            for agent in made.agents:
                agent.stop(signal.SIGKILL)


def answer_the_node(place: Crossing) -> None:
    """Let the world, which takes every address for its own, send replies to the node."""
    for dash, plan in zip(("-4", "-6"), PLANS.values(), strict=True):
        rules = f"add pref 10 lookup local|add pref 5 to {plan.eth[0]} lookup main|del pref 0"
        for rule in rules.split("|"):
            place.world.run(["ip", dash, "rule", *rule.split()])


@pytest.fixture
def connection(node: Node) -> Iterator[Callable[[Family], Connection]]:
    """Make connections to an address that is masqueraded, before and after."""
    with contextlib.ExitStack() as stack:

        def connect(family: Family) -> Connection:
            return stack.enter_context(contextlib.closing(Connection(node.place, family)))

        yield connect


class Connection:
    """A TCP connection from a pod to the world, by its two ends."""

    def __init__(self, place: Crossing, family: Family) -> None:
        kind, address = PLANS[family].kind, (ANSWERING[family], ECHO)
        with place.world.entered(), socket.socket(kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", ECHO))
            listener.listen()
            with place.pods[0].entered():
                self._pod = socket.create_connection(address, timeout=5)
            self._world, peer = listener.accept()
        self._world.settimeout(5)
        self.source = str(peer[0])

    def exchange(self) -> None:
        for one, other in ((self._pod, self._world), (self._world, self._pod)):
            one.sendall(b"x")
            assert other.recv(1) == b"x"

    def close(self) -> None:
        self._pod.close()
        self._world.close()


# From those of iptables to that of eBPF and back; among themselves, each replaces one and is
# replaced by one.
@pytest.mark.parametrize(
    ("old", "new"),
    [
        *itertools.product((API, FILE, NODES), (BPF,)),
        *itertools.product((BPF,), (API, FILE, NODES)),
        *((API, FILE), (FILE, NODES), (NODES, API)),
    ],
)
def test_an_overlay_that_replaces_another_decides_alone(
    node: Node, old: str, new: str, connection: Callable[[Family], Connection]
) -> None:
    node.roll_out(old)
    before = [connection(family) for family in Family]
    assert [one.source for one in before] == [PLANS[family].eth[0] for family in Family]
    with flowing(node.place, pause=PAUSE) as counts:
        replaced(node, new)
        arrived(node, "kept", "masqueraded")
    assert wrong(counts) == {"kept": 0, "masqueraded": 0}
    decides_alone(node)
    for one in before:
        one.exchange()


@pytest.mark.parametrize("backend", ["iptables-legacy", "ipset", "nftables"])
@pytest.mark.parametrize("towards", [BPF, API])
def test_other_planes_are_left_too(node: Node, backend: str, towards: str) -> None:
    plain = API if towards == BPF else BPF
    first, second = (
        ((plain, backend), (towards, None))
        if towards == BPF
        else (
            (plain, None),
            (towards, backend),
        )
    )
    for overlay, asked in (first, second):
        changes = {} if asked is None else {"IPMASQ_BACKEND": asked}
        node.roll_out(overlay, **changes)
    decides_alone(node)


def replaced(node: Node, overlay: str) -> Running:
    agent = node.roll_out(overlay)
    wanted = "bpf" if overlay == BPF else "iptables-nft"
    wait_until(lambda: agent.status().get("mode") == wanted, "its plane is in force")
    return agent


def decides_alone(node: Node) -> None:
    """Take off the list what was kept, and the other way round: each new flow is by that."""
    agent = node.agents[-1]
    changes = agent.status()["changes"]
    node.write(AFTER)
    wait_until(lambda: agent.status()["changes"] > changes and agent.ready(), "in force")
    with flowing(node.place, pause=PAUSE) as counts:
        arrived(node, "kept_wrong", "masqueraded_wrong")
    by_what_was_left = {n: c for n, c in counts.items() if not n.endswith("_wrong")}
    assert set(by_what_was_left.values()) == {0}, by_what_was_left


def arrived(node: Node, *names: str) -> None:
    """Wait for flows of each kind, in both families."""
    start = counted(node.place.world)
    keys = [f"{family.value}_{name}" for family in Family for name in names]

    def enough() -> bool:
        now = counted(node.place.world)
        return all(now[key] >= start[key] + FLOWS for key in keys)

    wait_until(enough, f"flows of each of {keys}")


def wrong(counts: dict[str, int]) -> dict[str, int]:
    return {
        kind: sum(counts[f"{family.value}_{kind}_wrong"] for family in Family)
        for kind in ("kept", "masqueraded")
    }
