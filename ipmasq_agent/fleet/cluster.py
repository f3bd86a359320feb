"""The door to a cluster: its agents are listed, and asked one beside the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from ipmasq_agent.errors import MALFORMED, AccessDenied, AgentError, SourceError, SourceUnavailable
from ipmasq_agent.fleet.agents import KEPT, AgentPod, agent_of, one_a_node
from ipmasq_agent.fleet.nodes import NodeState, plain, state_of
from ipmasq_agent.sources import kube_exec
from ipmasq_agent.sources.kube_access import Permission, explained
from ipmasq_agent.sources.kube_api import ApiRefusal, KubeApi
from ipmasq_agent.sources.kube_exec import Exec, Finished
from ipmasq_agent.sources.kube_list import LIST_TIMEOUT, Objects, an_api, list_all

PROGRAM = "ipmasq-agent"
PROXY, EXEC = "proxy", "exec"
_REFUSED = (401, 403)
# What an exec has begun goes on when the connection is gone; only standard input ends then.
_UNTIL_CLOSED = (
    'exec 3<&0; "$@" & p=$!; { cat <&3; kill $p; } >/dev/null 2>&1 & '
    "wait $p; s=$?; kill $!; exit $s"
)

T = TypeVar("T")


class Fleet:
    """The agents of a cluster.

    Args:
        api: its API server.
        namespace: where the agents' pods are.
        selector: their labels.
        via: PROXY or EXEC, how agents are asked; None for the proxy where it leads to them.
        seconds: how long one is waited for.
        at_once: how many are asked at once.
        only: nodes that are meant; empty for all.
    """

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        selector: str,
        *,
        via: str | None = None,
        seconds: float = 5.0,
        at_once: int = 64,
        only: Sequence[str] = (),
    ) -> None:
        self.api = api
        self.seconds = seconds
        self._namespace = namespace
        self._selector = selector
        self._via = via
        self._at_once = at_once
        self._only = frozenset(only)

    def agents(self) -> list[AgentPod]:
        """Return the agents that there are, by the names of their nodes.

        Raises:
            SourceError: they cannot be listed, or there are none.
        """
        wanted = Objects(
            *("pods", f"/api/v1/namespaces/{self._namespace}/pods", "the agents' pods"),
            Permission("pods", self._namespace, verbs=("list",)),
            agent_of,
            {"labelSelector": self._selector},
            page=500,
            keys=KEPT,
        )
        found = one_a_node(self._listed(wanted))
        found = [each for each in found if not self._only or each.node in self._only]
        if not found:
            raise SourceError(
                f"no pod with the label {self._selector} is in namespace {self._namespace}"
                + (f" on {', '.join(sorted(self._only))}" if self._only else ""),
                remedy="name the agents' namespace and label with --namespace and --selector",
            )
        return found

    def whereabouts(self, namespace: str, name: str) -> tuple[str, list[str]]:
        """Return the node of a pod, and its own addresses; none for one of the host's network.

        Raises:
            SourceError: it cannot be found, or is on no node.
        """
        path, what = f"/api/v1/namespaces/{namespace}/pods/{name}", f"pod {namespace}/{name}"
        try:
            with an_api(self.api):
                pod = json.loads(self.api.read(path, {}, read_timeout=LIST_TIMEOUT))
                spec, status = pod["spec"], pod.get("status") or {}
                own = [] if spec.get("hostNetwork") else status.get("podIPs") or ()
                node, addresses = spec.get("nodeName"), [str(each["ip"]) for each in own]
        except ApiRefusal as refusal:
            permission = Permission("pods", namespace, verbs=("get",))
            raise explained(refusal, self.api, what, permission) from refusal
        if not node or not (addresses or spec.get("hostNetwork")):
            raise SourceError(f"{what} has no node or no address yet")
        return str(node), addresses

    def labelled(self, selector: str) -> frozenset[str]:
        """Return the names of the nodes with a label.

        Raises:
            SourceError: they cannot be listed.
        """
        wanted = Objects(
            *("nodes", "/api/v1/nodes", f"the nodes with the label {selector}"),
            Permission("nodes", verbs=("list",)),
            lambda node: str(node["metadata"]["name"]),
            {"labelSelector": selector},
            page=500,
            keys=frozenset({"metadata", "name"}),
        )
        return frozenset(self._listed(wanted))

    def _listed(self, wanted: Objects[T]) -> list[T]:
        try:
            return list(list_all(self.api, wanted).value.values())
        except ApiRefusal as refusal:
            raise explained(refusal, self.api, wanted.what, wanted.permission) from refusal

    def each(
        self,
        agents: Sequence[AgentPod],
        ask: Callable[[AgentPod], T],
        done: Callable[[int], None] = lambda count: None,
    ) -> dict[str, T | AgentError]:
        """Ask agents, several at once, and return what came of it by node.

        Args:
            agents: who is asked.
            ask: how.
            done: is told how many have answered, as they do.

        Raises:
            AccessDenied: we may not ask, which is the same for all.
        """
        answers: dict[str, T | AgentError] = {}
        pool = ThreadPoolExecutor(self._at_once, "ask")
        try:
            asked = {pool.submit(ask, agent): agent.node for agent in agents}
            for count, future in enumerate(as_completed(asked), start=1):
                try:
                    answers[asked[future]] = future.result()
                except AccessDenied:
                    raise
                except AgentError as error:
                    answers[asked[future]] = error
                done(count)
        finally:
            pool.shutdown(cancel_futures=True)
        return {agent.node: answers[agent.node] for agent in agents}

    def states(
        self, agents: Sequence[AgentPod], done: Callable[[int], None] = lambda count: None
    ) -> list[NodeState]:
        """Return what agents say of themselves.

        Raises:
            AccessDenied: we may not ask.
        """
        answers = self.each(agents, self.state, done)
        return [
            NodeState(node, silent=answer.message) if isinstance(answer, AgentError) else answer
            for node, answer in answers.items()
        ]

    def state(self, agent: AgentPod) -> NodeState:
        """Return what an agent says of itself.

        Raises:
            SourceError: it does not.
        """
        told = self._status(agent)
        try:
            return state_of(agent.node, json.loads(told))
        except MALFORMED as cause:
            raise SourceUnavailable("it does not answer as an agent does") from cause

    def _status(self, agent: AgentPod) -> bytes:
        if self._via == EXEC or (self._via is None and agent.port is None):
            ran = self.run(agent, ["status", "-o", "json"])
            if not ran.out:
                raise SourceUnavailable(said(ran))
            return ran.out
        if agent.port is None:
            raise SourceUnavailable(
                "it listens on loopback alone, or asks for a token", remedy="ask with --via exec"
            )
        self._check(agent)
        where = agent.container
        pod = f"{where.pod}:{agent.port}"
        path = f"/api/v1/namespaces/{where.namespace}/pods/{pod}/proxy/status"
        try:
            return self.api.read(path, {}, read_timeout=self.seconds)
        except ApiRefusal as refusal:
            raise self._denied(refusal, "pods/proxy", "get") from refusal
        except SourceUnavailable as error:
            raise SourceUnavailable(error.message.rpartition("reached: ")[2]) from error

    def run(
        self,
        agent: AgentPod,
        words: Sequence[str],
        *,
        document: bytes | None = None,
        seconds: float | None = None,
    ) -> Finished:
        """Run a verb beside an agent.

        Args:
            agent: where.
            words: the verb and its arguments.
            document: what the verb reads on its standard input.
            seconds: how long it may take.

        Raises:
            SourceError: it was not run to its end.
        """
        self._check(agent)
        argv = [PROGRAM, *words]
        if document is not None:
            # The end of a stream is nothing that the protocol can tell.
            argv = ["sh", "-c", 'head -c "$0" | "$@"', str(len(document)), *argv]
        try:
            return kube_exec.run(
                self.api, agent.container, argv, seconds=seconds or self.seconds, stdin=document
            )
        except ApiRefusal as refusal:
            raise self._denied(refusal, "pods/exec", "create") from refusal

    def follow(self, agent: AgentPod, words: Sequence[str]) -> Exec:
        """Begin a verb beside an agent that goes on until the connection ends.

        Raises:
            SourceError: it cannot be run.
        """
        self._check(agent)
        try:
            argv = ["sh", "-c", _UNTIL_CLOSED, PROGRAM, PROGRAM, *words]
            return Exec(self.api, agent.container, argv, stdin=True)
        except ApiRefusal as refusal:
            raise self._denied(refusal, "pods/exec", "create") from refusal

    def _check(self, agent: AgentPod) -> None:
        if agent.phase != "Running":
            raise SourceUnavailable(f"its pod is {agent.phase}")

    def _denied(self, refusal: ApiRefusal, resource: str, verb: str) -> SourceError:
        """Return what to tell of a refusal: of us, or of one node that cannot be reached."""
        if refusal.status not in _REFUSED:
            return SourceUnavailable(f"{refusal.message} ({refusal.status})")
        permission = Permission(resource, self._namespace, verbs=(verb, "get"))
        return explained(refusal, self.api, "what agents say", permission)


def said(ran: Finished) -> str:
    """Return in one line what a program that failed said last of its error."""
    lines = ran.err.decode(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")] or lines[-1:]
    words = "; ".join(line.removeprefix("error: ") for line in errors)
    return plain(words) or f"the verb exited with {ran.status}"
