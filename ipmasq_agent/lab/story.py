"""Playing the story: the real agent in the nodes, real packets, and what arrived."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ipmasq_agent.errors import AgentError, LabError
from ipmasq_agent.lab.cluster import Condition, Lab
from ipmasq_agent.lab.emptying import emptying
from ipmasq_agent.lab.mirror import mirrored
from ipmasq_agent.lab.probes import Check, Prober
from ipmasq_agent.lab.scene import Documents, Expectation, Scene, shown
from ipmasq_agent.lab.scenes import ALONE, FIRST, SCENES
from ipmasq_agent.lab.topology import (
    FIRST_CLUSTER,
    NODES,
    PLACES,
    RETURN_ROUTES,
    SECOND_CLUSTER,
    route_commands,
)


@dataclass(frozen=True, slots=True)
class Step:
    """A scene as it was played.

    Attributes:
        scene: what was asked.
        title: what the reader is about to see.
        config: the document in place during the step.
        second: the document that the second cluster was given in it.
        checks: what was seen.
        why: what it means.
        error: what the agent says about the document, where it refused it.
        explained: what the agent says of destinations, where it was asked.
        failures: what else went otherwise than the story says.
    """

    scene: Scene
    title: str
    config: str
    second: str | None
    checks: tuple[Check, ...]
    why: str
    error: str | None = None
    explained: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all of it is as the story says."""
        return not self.failures and all(check.ok for check in self.checks)

    def as_data(self) -> dict[str, Any]:
        """Return the step as the JSON contract has it."""
        return {
            "title": self.title,
            "config": self.config,
            "checks": [check.as_data() for check in self.checks],
            "ok": self.ok,
            "why": self.why,
            "secondConfig": self.second,
            "error": self.error,
            "explained": list(self.explained),
            "failures": list(self.failures),
        }


class Story:
    """The story of one lab, in one address family."""

    def __init__(self, lab: Lab, agent: Sequence[str], backend: str, *, ipv6: bool) -> None:
        """Take the parts.

        Args:
            lab: claimed, not built yet.
            agent: the agent's command line up to the verb.
            backend: handed to the agent as it is.
            ipv6: tell it in IPv6.
        """
        self.lab = lab
        self.backend = backend
        self._asked_backend = backend
        self._agent = agent
        self._ipv6 = ipv6
        self._prober = Prober(lab.talks, self._in_family)

    def _in_family(self, text: str) -> str:
        return mirrored(text) if self._ipv6 else text

    def _written(self, documents: Documents) -> dict[str, str]:
        return {key: self._in_family(text) for key, text in documents.items()}

    def prepare(self, progress: Callable[[str], None], *, stay: bool = False) -> None:
        """Build the lab, give the nodes the first documents, and start the agents."""
        progress("building three nodes of two clusters, their pods and a router")
        self.lab.build()
        if self._asked_backend == "bpf":
            self.lab.mount_pins()
        self.lab.inhabit(stay=stay)
        control = FIRST_CLUSTER[0].name
        address = self._in_family(PLACES[control][1])
        self.lab.start_api(control, address, stay=stay)
        for node in FIRST_CLUSTER:
            self.lab.join(node)
        progress("starting the agent in the nodes")
        for nodes, documents in ((FIRST_CLUSTER, FIRST), (SECOND_CLUSTER, ALONE)):
            for node in nodes:
                self.lab.write(node.name, self._written(documents))
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

    def play(self, progress: Callable[[str], None]) -> Iterator[Step]:
        """Play scene after scene."""
        config = shown(self._written(FIRST))
        for number, scene in enumerate(SCENES, start=1):
            progress(f"step {number} of {len(SCENES)}: {scene.title}")
            if scene.document is not None:
                config = shown(self._written(scene.document))
            yield self._scene(scene, config)

    def _scene(self, scene: Scene, config: str) -> Step:
        failures: list[str] = []
        error = self._deliver(scene, failures)
        if scene.return_routes:
            self.lab.ip("router", [line for _, line in route_commands("router", RETURN_ROUTES)])
        if scene.joins is not None:
            self._join(scene.joins, failures)
        if scene.flush:
            self._empty_and_heal(failures)
        checks = self._prober.check(scene.expect)
        if scene.open_connections:
            replies = self._prober.open(Expectation("curl-pod", "loop1", "curl-pod"))
            if not all(replies):
                failures.append("a connection to loop1 that was to be kept was not answered")
        explained = [self._explain(*each, failures) for each in scene.explains.items()]
        return Step(
            scene,
            self._in_family(scene.title),
            config,
            shown(self._written(scene.second)) if scene.second is not None else None,
            checks,
            self._in_family(scene.why),
            error,
            tuple(explained),
            tuple(failures),
        )

    def _deliver(self, scene: Scene, failures: list[str]) -> str | None:
        """Give the nodes their documents, and return what an agent says against them."""
        documents = dict.fromkeys(scene.nodes, scene.document)
        documents |= dict.fromkeys((node.name for node in SECOND_CLUSTER), scene.second)
        given = {node: self._written(keys) for node, keys in documents.items() if keys is not None}
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

    def _explain(self, place: str, key: str, failures: list[str]) -> str:
        """Ask the agent of the first node about a place: it must name the document."""
        node, address = FIRST_CLUSTER[0].name, self._in_family(PLACES[place][1])
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


def _more_than(changes: int) -> Condition:
    """Return whether an agent has changed the kernel since it had done so often."""
    return lambda status: bool(status["changes"] > changes)
