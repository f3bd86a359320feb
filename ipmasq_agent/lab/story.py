"""Playing the story: the real agent in the nodes, real packets, and what arrived."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ipmasq_agent.errors import LabError
from ipmasq_agent.lab.cluster import Condition, Lab
from ipmasq_agent.lab.scenes import FIRST, PROTOCOLS, SCENES, SOURCES, Expectation, Scene
from ipmasq_agent.lab.topology import (
    DESTINATIONS,
    NODES,
    RETURN_ROUTES,
    RETURN_ROUTES_V6,
    Address,
)

_CHAIN = "IP-MASQ"


@dataclass(frozen=True, slots=True)
class Check:
    """One probe and what became of it; ``seen`` comes from the receiving end."""

    sender: str
    to: str
    protocol: str
    destination: str
    seen: str | None
    verdict: str
    expected: str
    reply: bool
    expected_reply: bool
    kept: bool

    @property
    def ok(self) -> bool:
        """Whether the receiver saw what the story says, and the reply came or did not."""
        return self.seen == self.expected and self.reply == self.expected_reply

    def as_data(self) -> dict[str, Any]:
        """Return the check as the JSON contract has it."""
        return {
            "from": self.sender,
            "to": self.to,
            "protocol": self.protocol,
            "seen": self.seen,
            "verdict": self.verdict,
            "expected": self.expected,
            "ok": self.ok,
            "destination": self.destination,
            "reply": self.reply,
            "expectedReply": self.expected_reply,
            "connection": "kept" if self.kept else "new",
        }


@dataclass(frozen=True, slots=True)
class Step:
    """A scene as it was played.

    Attributes:
        scene: what was asked.
        config: the document in place during the step.
        checks: what was seen.
        error: what the agent says about the document, where it refused it.
        failures: what else went otherwise than the story says.
    """

    scene: Scene
    config: str
    checks: tuple[Check, ...]
    error: str | None = None
    failures: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all of it is as the story says."""
        return not self.failures and all(check.ok for check in self.checks)

    def as_data(self) -> dict[str, Any]:
        """Return the step as the JSON contract has it."""
        return {
            "title": self.scene.title,
            "config": self.config,
            "checks": [check.as_data() for check in self.checks],
            "ok": self.ok,
            "why": self.scene.why,
            "error": self.error,
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
        self._agent = agent
        self._family = 1 if ipv6 else 0
        self._patient = True

    def prepare(self, progress: Callable[[str], None], *, stay: bool = False) -> None:
        """Build the lab, give the nodes the first document, and start the agents."""
        progress("building two nodes, three pods and a router")
        self.lab.build()
        self.lab.inhabit(stay=stay)
        progress("starting the agent in the nodes")
        self.lab.write_document(FIRST[self._family])
        for node in NODES:
            flags = [
                "run",
                f"--config={self.lab.document(node.name)}",
                f"--backend={self.backend}",
                f"--enable-ipv6={'true' if self._family else 'false'}",
            ]
            self.lab.start_agent(node.name, [*self._agent, *flags], stay=stay)
        for node in NODES:
            status = self.lab.wait_for(node.name, "the agent is ready", lambda s: s["ready"])
            self.backend = str(status["mode"])

    def play(self, progress: Callable[[str], None]) -> Iterator[Step]:
        """Play scene after scene."""
        config = FIRST[self._family]
        for number, scene in enumerate(SCENES, start=1):
            progress(f"step {number} of {len(SCENES)}: {scene.title}")
            if scene.document is not None:
                config = scene.document[self._family]
            yield self._scene(scene, config)

    def _scene(self, scene: Scene, config: str) -> Step:
        failures: list[str] = []
        error = None
        if scene.document is not None:
            error = self._deliver(scene, config, failures)
        if scene.return_routes:
            routes = RETURN_ROUTES_V6 if self._family else RETURN_ROUTES
            dash = "-6 " if self._family else ""
            self.lab.ip("router", [f"{dash}route add {route}" for route in routes])
        if scene.flush:
            self._flush_and_heal(failures)
        checks = tuple(
            self._check(expectation, protocol)
            for expectation in scene.expect
            for protocol in PROTOCOLS
            if not (expectation.kept and protocol == "icmp")
        )
        if scene.open_connections:
            self._open()
        return Step(scene, config, checks, error, tuple(failures))

    def _deliver(self, scene: Scene, config: str, failures: list[str]) -> str | None:
        """Give the nodes the document, and return what an agent says against it."""
        error: str | None = None
        for node, status in self.lab.deliver(config).items():
            error = status["config"]["error"]
            if status["config"]["accepted"] is scene.refused:
                said = "accepted" if scene.refused else f"refused: {error}"
                failures.append(f"{node}: the document was {said}")
        return error

    def _flush_and_heal(self, failures: list[str]) -> None:
        """Empty the chain by hand as root would, and wait until the agent has put it back."""
        variant = self.backend.removeprefix("iptables-")
        tool = f"{'ip6tables' if self._family else 'iptables'}-{variant}"
        for node in NODES:
            status = self.lab.status(node.name) or {"changes": 0}
            self.lab.run(node.name, [tool, "-t", "nat", "-F", _CHAIN])
            try:
                self.lab.wait_for(node.name, "the chain is healed", _more_than(status["changes"]))
            except LabError as error:
                failures.append(str(error))

    def _check(self, expectation: Expectation, protocol: str) -> Check:
        receiver, address = DESTINATIONS[expectation.to]
        destination = self._pick(address)
        token = secrets.token_hex(8)
        sender, observer = self.lab.talks[expectation.sender], self.lab.talks[receiver]
        probe = {"protocol": protocol, "address": destination, "token": token}
        mark = observer.ask(do="mark")["mark"]
        if expectation.kept:
            reply = sender.ask(do="speak", name=protocol, token=token)["reply"]
        else:
            patient = self._patient and expectation.reply
            reply = sender.ask(do="probe", patient=patient, **probe)["reply"]
            if patient and not reply:
                self._patient = False  # the story is wrong already: no need to wait as long again
        seen = observer.ask(do="seen", after=mark, kept=expectation.kept, **probe)["source"]
        own = SOURCES[expectation.sender][self._family]
        return Check(
            sender=expectation.sender,
            to=expectation.to,
            protocol=protocol,
            destination=destination,
            seen=seen,
            verdict="lost" if seen is None else "non-masquerade" if seen == own else "masquerade",
            expected=SOURCES[expectation.seen_as][self._family],
            reply=reply,
            expected_reply=expectation.reply,
            kept=expectation.kept,
        )

    def _open(self) -> None:
        """Open the connections that a later scene speaks on."""
        destination = self._pick(DESTINATIONS["loop1"][1])
        for protocol in ("tcp", "udp"):
            answer = self.lab.talks["curl-pod"].ask(
                do="keep",
                name=protocol,
                protocol=protocol,
                address=destination,
                token=secrets.token_hex(8),
            )
            if not answer["reply"]:
                raise LabError(f"the {protocol} connection to loop1 could not be opened")

    def _pick(self, address: Address) -> str:
        return address.ipv6 if self._family else address.ipv4


def _more_than(changes: int) -> Condition:
    """Return whether an agent has changed the kernel since it had done so often."""
    return lambda status: bool(status["changes"] > changes)
