"""Playing the story: the real agent in the nodes, real packets, and what arrived."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ipmasq_agent.errors import AgentError, LabError
from ipmasq_agent.host.commands import run
from ipmasq_agent.lab import tools
from ipmasq_agent.lab.by_hand import emptying, looking
from ipmasq_agent.lab.capture import Capture
from ipmasq_agent.lab.cluster import Condition, Lab
from ipmasq_agent.lab.mirror import mirrored
from ipmasq_agent.lab.probes import Check, Prober
from ipmasq_agent.lab.scene import Expectation, Scene, in_ipv6, shown
from ipmasq_agent.lab.scenes import ALONE, FIRST, told
from ipmasq_agent.lab.topology import (
    ENDPOINTS,
    FIRST_CLUSTER,
    HOSTS,
    NODES,
    POD_CIDRS,
    PODS,
    RETURN_ROUTES,
    SECOND_CLUSTER,
    route_commands,
)

# Of those for private use (RFC 6996).
_NODES_AS, _ROUTER_AS = 64512, 64513


@dataclass(frozen=True, slots=True)
class PlayedScene:
    """A scene as it was played.

    Attributes:
        scene: what was asked, in the story's family.
        config: the document in place during it.
        checks: what was seen.
        error: what the agent says about the document, where it refused it.
        explained: what the agent says of destinations, where it was asked, and which routes
            the router has learnt.
        failures: what else went otherwise than the story says.
        rules: node → the rules in force, as commands show them, where packets were captured.
    """

    scene: Scene
    config: str
    checks: tuple[Check, ...]
    error: str | None
    explained: tuple[str, ...]
    failures: tuple[str, ...]
    rules: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether all of it is as the story says."""
        return not self.failures and all(check.ok for check in self.checks)

    def as_data(self) -> dict[str, Any]:
        """Return it as the JSON contract has it."""
        return {
            "title": self.scene.title,
            "config": self.config,
            "checks": [check.as_data() for check in self.checks],
            "ok": self.ok,
            "why": self.scene.why,
            "secondConfig": shown(self.scene.second) if self.scene.second else None,
            "error": self.error,
            "explained": list(self.explained),
            "failures": list(self.failures),
        }


class Story:
    """The story of one lab, in one address family."""

    def __init__(
        self,
        lab: Lab,
        agent: Sequence[str],
        backend: str,
        *,
        ipv6: bool,
        routing: str = "static",
        capture: Capture | None = None,
    ) -> None:
        """Take the parts.

        Args:
            lab: claimed, not built yet.
            agent: the agent's command line up to the verb.
            backend: handed to the agent as it is.
            ipv6: tell it in IPv6.
            routing: how the router learns its way back to the pods, one of ``ROUTINGS``.
            capture: captures the packets of the checks, where that is wanted.
        """
        self.lab = lab
        self.backend = backend
        self._asked_backend = backend
        self._agent = agent
        self._ipv6 = ipv6
        scenes = told(routing)
        self._scenes = tuple(scene.mirrored() for scene in scenes) if ipv6 else scenes
        self._stay = False
        self._announcing: list[str] = []
        self._capture = capture
        self._prober = Prober(lab.talks, self._in_family, capture)

    def _in_family(self, text: str) -> str:
        return mirrored(text) if self._ipv6 else text

    def prepare(self, progress: Callable[[str], None], *, stay: bool = False) -> None:
        """Build the lab, give the nodes the first documents, and start the agents."""
        self._stay = stay
        progress("building three nodes of two clusters, their pods and a router")
        self.lab.build()
        if self._capture:
            inhabited = [host.name for host in HOSTS if host.inhabited]
            self._capture.listen({host: self.lab.namespaces[host] for host in inhabited})
        if self._asked_backend == "bpf":
            self.lab.mount_pins()
        self.lab.inhabit(stay=stay)
        control = FIRST_CLUSTER[0].name
        address = self._in_family(ENDPOINTS[control][1])
        self.lab.start_api(control, address, stay=stay)
        for node in FIRST_CLUSTER:
            self.lab.join(node)
        progress("starting the agent in the nodes")
        first, alone = (in_ipv6(FIRST), in_ipv6(ALONE)) if self._ipv6 else (FIRST, ALONE)
        for nodes, documents in ((FIRST_CLUSTER, first), (SECOND_CLUSTER, alone)):
            for node in nodes:
                self.lab.write(node.name, documents)
                self.lab.start_agent(
                    node.name, self._command(node.name, "run", "--state-dir="), stay=stay
                )
        for node in NODES:
            status = self.lab.wait_for(node.name, "the agent is ready", lambda s: s["ready"])
            self.backend = str(status["mode"])

    def _command(self, node: str, *words: str) -> list[str]:
        """Return the command line of the agent in a node."""
        return [
            *self._agent,
            *words,
            f"--config={self.lab.documents(node)}",
            f"--backend={self._asked_backend}",
            f"--enable-ipv6={'true' if self._ipv6 else 'false'}",
        ]

    def play(self, progress: Callable[[str], None]) -> Iterator[PlayedScene]:
        """Play scene after scene."""
        config = ""
        for number, scene in enumerate(self._scenes, start=1):
            progress(f"step {number} of {len(self._scenes)}: {scene.title}")
            config = shown(scene.document) if scene.document else config
            yield self._scene(scene, config)

    def _scene(self, scene: Scene, config: str) -> PlayedScene:
        failures: list[str] = []
        error = self._deliver(scene, failures)
        if scene.return_routes:
            self.lab.ip("router", [line for _, line in route_commands("router", RETURN_ROUTES)])
        learnt: list[str] = []
        if scene.bgp:
            try:
                learnt = self.start_bgp(scene.bgp)
            except AgentError as failure:
                failures.append(str(failure))
        if scene.joins is not None:
            self._join(scene.joins, failures)
        if scene.flush:
            self._empty_and_heal(failures)
        with self._looking(scene) as rules:
            checks = self._prober.check(scene.expect)
        if scene.open_connections:
            replies = self._prober.open(Expectation("curl-pod", "loop1", "curl-pod"))
            if not all(replies):
                failures.append("a connection to loop1 that was to be kept was not answered")
        explained = learnt + [self._explain(*each, failures) for each in scene.explains.items()]
        return PlayedScene(scene, config, checks, error, tuple(explained), tuple(failures), rules)

    def start_bgp(self, hosts: Sequence[str]) -> list[str]:
        """Run FRR in hosts, the router first, and return what the router has learnt, in words.

        Raises:
            AgentError: it does not learn the way to the pods of these nodes and those before.
        """
        for host in hosts:
            # The router's is written for the nodes that come with it, and names none of them.
            nodes = [node for node in hosts if node != "router"]
            self.lab.start_bgp(host, self._bgp_config(host, nodes), stay=self._stay)
        self._announcing += (host for host in hosts if host != "router")
        prefixes = [self._in_family(POD_CIDRS[node]) for node in self._announcing]
        learnt = self.lab.learnt_routes("router", prefixes)
        return [f"the router has learnt {prefix} via {via}" for prefix, via in learnt.items()]

    def _bgp_config(self, host: str, nodes: Sequence[str]) -> str:
        """Return what the agent writes for a host: of the API's nodes, or of those it is given."""
        peer = f"--peer={self._in_family(ENDPOINTS['router'][1])}={_ROUTER_AS}"
        words = ["routes", "--bgp", "--format=frr", f"--asn={_NODES_AS}", peer]
        if host == "router":
            words += ["--router", *map(self._as_flag, nodes)]
        else:
            words += [f"--node-name={host}"]
        if host in {node.name for node in SECOND_CLUSTER}:
            words += [self._as_flag(host)]  # whose API the lab does not have
        node = FIRST_CLUSTER[0].name if host == "router" else host
        return self.lab.run(node, self._command(node, *words))

    def _as_flag(self, node: str) -> str:
        address, pods = self._in_family(ENDPOINTS[node][1]), self._in_family(POD_CIDRS[node])
        return f"--node={node}={address},{pods}"

    def _deliver(self, scene: Scene, failures: list[str]) -> str | None:
        """Give the nodes their documents, and return what an agent says against them."""
        documents = dict.fromkeys(scene.nodes, scene.document)
        documents |= dict.fromkeys((node.name for node in SECOND_CLUSTER), scene.second)
        given = {node: keys for node, keys in documents.items() if keys is not None}
        error: str | None = None
        try:
            answers = self.lab.deliver(given)
        except LabError as late:
            failures.append(str(late))
            return None
        for node, status in answers.items():
            error = error or status["config"]["error"]
            if status["config"]["accepted"] is scene.refused:
                said = "accepted" if scene.refused else f"refused: {status['config']['error']}"
                failures.append(f"{node}: the document was {said}")
        return error

    def _empty_and_heal(self, failures: list[str]) -> None:
        """Empty the rules by hand as root would; the agents must put them back."""
        for argv in emptying(self.backend, ipv6=self._ipv6):

            def empty(argv: list[str] = argv) -> None:
                for node in FIRST_CLUSTER:
                    self.lab.run(node.name, argv)

            self._until_changed(f"what `{' '.join(argv)}` empties is healed", empty, failures)

    def _join(self, name: str, failures: list[str]) -> None:
        """Let a node join the first cluster; the agents must heed it."""
        node = next(node for node in NODES if node.name == name)
        self._until_changed(f"{name} is heeded", lambda: self.lab.join(node), failures)

    def _until_changed(self, what: str, act: Callable[[], None], failures: list[str]) -> None:
        """Do something that makes each agent of the first cluster change its kernel."""
        nodes = [node.name for node in FIRST_CLUSTER]
        before = {node: self.lab.status(node) or {"changes": 0} for node in nodes}
        try:
            act()
            for node, status in before.items():
                self.lab.wait_for(node, what, _more_than(status["changes"]))
        except AgentError as error:
            failures.append(str(error))

    @contextlib.contextmanager
    def _looking(self, scene: Scene) -> Iterator[dict[str, str]]:
        """Look at the rules of the nodes that decide, while the block does something else."""
        rules: dict[str, str] = {}
        if self._capture is None:
            yield rules
            return
        ends = {ENDPOINTS[end][0] for each in scene.expect for end in (each.sender, each.to)}
        nodes = [
            node.name
            for node in NODES
            if ends & {node.name, *(pod.name for pod in PODS[node.name])}
        ]
        with ThreadPoolExecutor() as pool:
            found = pool.map(self._rules, nodes)
            yield rules
            rules.update(zip(nodes, found, strict=True))

    def _rules(self, node: str) -> str:
        commands = {shlex.join(argv): argv for argv in looking(self.backend, ipv6=self._ipv6)}
        if not commands:
            words = ["list", f"--backend={self.backend}"]
            commands = {shlex.join(["ipmasq-agent", *words]): [*self._agent, *words]}
        said = []
        for name, argv in commands.items():
            try:
                done = run(self.lab.argv(node, argv), check=False)
                said.append(f"$ {name}\n{done.stdout}{done.stderr if done.status else ''}")
            except AgentError as error:
                said.append(f"$ {name}\n{error}\n")
        return "".join(said)

    def _explain(self, endpoint: str, key: str, failures: list[str]) -> str:
        """Ask the agent of the first node about an endpoint: it must name the document."""
        node, address = FIRST_CLUSTER[0].name, self._in_family(ENDPOINTS[endpoint][1])
        try:
            told = self.lab.run(node, self._command(node, "explain", address, "--output=json"))
            answer = json.loads(told)
            document, reason = answer["document"], answer["reason"]
        except (AgentError, ValueError, KeyError) as error:
            failures.append(f"explain {address}: {error}")
            return f"explain {address}: no answer"
        if document is None or not document.endswith(f"/{key}"):
            failures.append(f"explain {address}: names {document}, not {key}")
        return f"explain {address}: {reason.replace(f'{self.lab.documents(node)}/', '')}"


@contextlib.contextmanager
def built(
    name: str,
    agent: Sequence[str],
    backend: str,
    needed: Mapping[str, str],
    progress: Callable[[str], None],
    *,
    ipv6: bool,
    stay: bool,
    routing: str = "static",
    captured: bool = False,
) -> Iterator[Story]:
    """Build a lab, and take it down at the end unless it is to stay.

    Args:
        name: of the lab.
        agent: the agent's command line up to the verb.
        backend: handed to the agent as it is.
        needed: the programs that this takes, each with its Debian package.
        progress: is told what is being done.
        ipv6: tell the story in IPv6.
        stay: leave it standing.
        routing: how the router learns its way back to the pods, one of ``ROUTINGS``.
        captured: capture the packets of the checks at each device that they pass.
    """
    tools.check("the lab", needed)
    lab = Lab(name)
    with lab.claimed(stay=stay), Capture() as capture:
        listener = capture if captured else None
        story = Story(lab, agent, backend, ipv6=ipv6, routing=routing, capture=listener)
        story.prepare(progress, stay=stay)
        yield story


def _more_than(changes: int) -> Condition:
    """Return whether an agent has changed the kernel since it had done so often."""
    return lambda status: bool(status["changes"] > changes)
