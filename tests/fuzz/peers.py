"""What others send: agents, whoever asks over HTTP, API servers."""

from __future__ import annotations

import json
import re
import socket
from typing import Any

from ipmasq_agent.agent import http as door
from ipmasq_agent.cli import asking
from ipmasq_agent.cli.fleet_observe import in_words
from ipmasq_agent.errors import MALFORMED, AgentError, SourceError
from ipmasq_agent.fleet.agents import AgentPod, agent_of
from ipmasq_agent.fleet.cluster import Fleet
from ipmasq_agent.fleet.findings import Findings, located
from ipmasq_agent.fleet.nodes import table
from ipmasq_agent.fleet.preview import Preview
from ipmasq_agent.sources import kube_exec
from ipmasq_agent.sources.configmap import content_of
from ipmasq_agent.sources.kube_access import Permission
from ipmasq_agent.sources.kube_api import ApiRefusal
from ipmasq_agent.sources.kube_exec import AgentContainer
from ipmasq_agent.sources.kube_list import Found, Objects, list_all, one_object
from ipmasq_agent.sources.kube_watch import Watch, _Disconnected
from ipmasq_agent.sources.nodes import addresses_of, pod_cidrs_of
from ipmasq_agent.sources.pods import wanted_of
from tests.fuzz import doors
from tests.fuzz.documents import document

SOCKET = "/nonexistent/agent.sock"


def agent(data: bytes) -> None:
    """Ask an agent that tells an input of itself, in an answer of the right form."""
    length = str(len(data)).encode()
    agent_answer(b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\n" + data)


def agent_answer(data: bytes) -> None:
    """Ask somebody who answers with an input."""
    with doors.agent(data):
        found = asking.ask(SOCKET)
    if found is None:
        return
    str(sorted(map(str, found.facts.values())))
    found.status.as_text()
    found.status.as_data()
    for part in found.document.parts if found.document else ():
        document(part.content)


_ANSWERS: door.Answers = {
    "/": lambda _: door.text(200, "here"),
    "/status": lambda _: door.data({"a": 1}),
}


def _admits(path: str, token: bytes | None) -> bool:
    return path == "/" or token == b"token"


_ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) [\w ]+\r\n(?:[\w-]+: [^\r\n]*\r\n)+\r\n(.*)", re.DOTALL)


def http(data: bytes) -> None:
    """Send a request in two pieces; whatever it is, what comes back is one answer, or nothing."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = door._Connection(theirs, door.Door(theirs, _ANSWERS, _admits))
        half = len(data) // 2
        came = b""
        for piece in (data[:half], data[half:]):
            ours.sendall(piece[:100_000])
            came += _turns(connection, ours)
        ours.shutdown(socket.SHUT_WR)
        came += _turns(connection, ours)
        answer = _ANSWER.fullmatch(came)
        assert not came or answer
        if answer:
            length = re.search(rb"\r\nContent-Length: (\d+)\r\n", came)
            assert length
            assert int(length[1]) >= len(answer[2])
            assert answer[1] in (b"200", b"400", b"401", b"404", b"405", b"431")


def _turns(connection: door._Connection, ours: socket.socket) -> bytes:
    came = b""
    try:
        while connection.advance():
            came += _received(ours)
    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
        pass
    return came + _received(ours)


def _received(ours: socket.socket) -> bytes:
    try:
        return ours.recv(1 << 16, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


_NODES = Permission("nodes")
_FOLLOWED: tuple[Objects[Any], ...] = (
    one_object("a", "/", "the node a", _NODES),
    Objects("nodes", "/", "the nodes", _NODES, addresses_of, page=100, keys=frozenset({"status"})),
)
_LISTED: tuple[Objects[Any], ...] = (
    *_FOLLOWED,
    wanted_of("a"),
    Objects("pods", "/", "the agents", Permission("pods"), agent_of, page=500),
)


def _told(found: Found[Any]) -> None:
    """Do with an object what those do who follow it."""
    for each in found.value.values():
        for reader in (content_of, pod_cidrs_of):
            try:
                reader(each)
            except (SourceError, ValueError, KeyError, TypeError, AttributeError):
                continue  # as ConfigMapSource says of what it cannot read


def fleet(data: bytes) -> None:
    """Ask agents of other nodes, which say an input each in their turn; show what they say."""
    told = data[1:]
    agent = AgentPod("n", AgentContainer("kube-system", "agent", "agent"), port=1)
    preview, findings = Preview(), Findings()
    try:
        match data[0] % 5 if data else 0:
            case 0:
                state = Fleet(doors.Api(told), "kube-system", "a=b").state(agent)
                assert all(line.isprintable() for line in table([state], "new"))
                json.dumps(state.as_data("new"))
            case 1:
                preview.add("n", told)
                assert all(line.isprintable() for line in preview.as_lines(rules=True))
            case 2:
                findings.add("n", told)
                for one, nodes in findings.folded():
                    assert located(one, nodes).title.replace("\n", "").isprintable()
            case 3:
                in_words(json.loads(told))
            case _:
                kube_exec.ended_with(told)
    except MALFORMED:
        return  # as the verbs say of what they cannot read


def watch(data: bytes) -> None:
    """Watch an API server that sends an input: a list, and after it the events."""
    wanted, data = _FOLLOWED[data[:1] == b"\1"], data[1:]
    listed, _, events = data.partition(doors.BETWEEN)
    failures: list[AgentError] = []
    watching = Watch(doors.Api(events), wanted, _told, failures.append)
    try:
        watching._tell(list_all(doors.Api(listed), wanted))
        watching._watch("1")
    except (ApiRefusal, _Disconnected):
        return


def listing(data: bytes) -> None:
    """List what an API server answers with."""
    wanted, data = _LISTED[data[0] % len(_LISTED) if data else 0], data[1:]
    try:
        _told(list_all(doors.Api(data), wanted))
    except ApiRefusal:
        return
    json.dumps(wanted.name)
