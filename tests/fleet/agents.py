"""Agents that are simulated: each says what a real one would, in the real one's own JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from ipmasq_agent.agent.status import ConfigStatus, Look, Sighting, Status
from ipmasq_agent.answers.ports import PortLook
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.config.model import Flags
from ipmasq_agent.errors import ConfigError
from ipmasq_agent.fleet.published import digest_of
from ipmasq_agent.policy.addresses import Family

STARTED = 1_790_000_000.0
NAME = "kube-system/ip-masq-agent"
UNCHANGED = {"changed": False, "families": {}}


@dataclass
class Agent:
    """One node's.

    Attributes:
        node: its name.
        lag: how many times it is asked before it has seen a new document.
        dead: nobody listens there.
        silent: somebody does, and never answers.
        cuts: connections to programs there are closed before these have ended.
        fails: the error with which passes for another document than the first one end.
        port: where it listens on the node's address; None for loopback alone.
        source: what it calls the place of its document.
        lines: what `observe` prints there.
        tells: keys of its status while another document than the first one is in force.
        verbs: what its verbs print beside ``status``: verb → exit status and JSON.
    """

    node: str
    lag: int = 0
    dead: bool = False
    silent: bool = False
    cuts: bool = False
    fails: str | None = None
    port: int | None = 9797
    tells: dict[str, Any] = field(default_factory=dict)
    verbs: dict[str, tuple[int, Any]] = field(
        default_factory=lambda: {"diff": (0, UNCHANGED), "doctor": (0, [])}
    )
    lines: tuple[bytes, ...] = ()
    phase: str = "Running"
    source: str = f"ConfigMap {NAME}"

    real = False
    """Whether it is a process, which has to be waited for."""

    def __post_init__(self) -> None:
        self.pod = f"ipmasq-agent-{self.node}"
        self._status = Status(
            ConfigStatus(self.source),
            look=Look("iptables-nft", "as kubelet", ("eth0",), (Family.IPV4,)),
            in_sync=True,
            ports=PortLook(tracked=(10, 100)),
        )
        self._version = self._first = ""
        self._behind = 0
        self._told: bytes | None = None

    def manifest(self) -> dict[str, Any]:
        """Return its pod, as large as real ones are."""
        address = f"0.0.0.0:{self.port}" if self.port else "127.0.0.1:9797"
        return {
            "metadata": {
                "name": self.pod,
                "namespace": "kube-system",
                "labels": {"app.kubernetes.io/name": "ipmasq-agent"},
                "managedFields": [
                    {"manager": "kube-controller-manager", "fieldsV1": {"f": "x" * 3000}}
                ],
            },
            "spec": {
                "nodeName": self.node,
                "hostNetwork": True,
                "containers": [
                    {
                        "name": "agent",
                        "args": ["run"],
                        "env": [{"name": "IPMASQ_HTTP_ADDRESS", "value": address}],
                    }
                ],
            },
            "status": {"phase": self.phase, "conditions": [{"type": "Ready", "status": "True"}]},
        }

    def status(self, version: str, document: bytes | None) -> bytes:
        """Return what it says, with the cluster's document in mind."""
        if version != self._version:
            if self._behind < self.lag:
                self._behind += 1
            else:
                self._version, self._behind = version, 0
                self._take_in(version, document)
                self._told = None
        if self._told is None:
            held = self._status.config.in_force
            another = held is not None and held.digest != self._first
            told = self._status.as_data() | (self.tells if another else {})
            self._told = json.dumps(told).encode()
        return self._told

    def deliver(self, document: bytes | None) -> None:
        """Bring the document to the node; simulated agents look at it when they are asked."""

    def run(self, verb: str, document: bytes) -> tuple[int, bytes, bytes]:
        """Return the exit status of a verb, and what it prints, on standard error too."""
        if verb == "diff":
            try:
                parse_document(document, "standard input", Flags())
            except ConfigError as error:
                return 2, b"", f"note: as the agent is set\nerror: {error}\n".encode()
        code, answer = self.verbs[verb]
        return code, json.dumps(answer).encode(), b""

    def _take_in(self, version: str, document: bytes | None) -> None:
        newest = Sighting(version, digest_of(document), STARTED + len(version))
        config = replace(self._status.config, newest=newest)
        try:
            parse_document(document, "document", Flags())
        except ConfigError as error:
            self._status = replace(
                self._status, config=replace(config, accepted=False, error=str(error))
            )
            return
        config = replace(config, accepted=True, error=None)
        held = self._status.config.in_force
        self._first = self._first or newest.digest
        if self.fails and held is not None and held.digest != newest.digest:
            look = replace(self._status.look, errors={Family.IPV4: self.fails})
            self._status = replace(self._status, config=config, in_sync=False, look=look)
            return
        look = replace(self._status.look, errors={})
        self._status = replace(
            self._status, config=replace(config, in_force=newest), in_sync=True, look=look
        )
