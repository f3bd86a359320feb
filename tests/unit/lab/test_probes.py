"""Probes go out together where they can be told apart, and each answer finds its probe."""

from __future__ import annotations

import io
import json
import subprocess
from typing import IO, Any, cast

from ipmasq_agent.lab.mirror import mirrored
from ipmasq_agent.lab.probes import Prober
from ipmasq_agent.lab.scene import Expectation
from ipmasq_agent.lab.talk import Talk

EXPECTATIONS = (
    Expectation("curl-pod", "loop1", "k8s-ctr"),
    Expectation("w1-pod", "loop1", "k8s-w1", reply=False),
    Expectation("curl-pod", "w1-pod", "curl-pod"),
    Expectation("curl-pod", "loop1", "curl-pod", kept=True),
)


class Somebody(io.RawIOBase):
    """Takes orders, and answers with what the network did to the probes.

    All are masqueraded by 192.168.10.100, and only what goes to IPv4 is answered.
    """

    def __init__(self) -> None:
        self.orders: list[dict[str, Any]] = []
        self.answers = io.BytesIO()

    def write(self, data: Any) -> int:
        order = json.loads(bytes(data))
        self.orders.append(order)
        probes = order.get("probes", [])
        replies = ["." in probe["address"] for probe in probes]
        answer = {"mark": 7, "replies": replies, "sources": ["192.168.10.100" for _ in probes]}
        at = self.answers.tell()
        self.answers.seek(0, io.SEEK_END)
        self.answers.write(json.dumps(answer).encode() + b"\n")
        self.answers.seek(at)
        return len(data)


class Process:
    """The two ends of a process that a talk needs."""

    def __init__(self, somebody: Somebody) -> None:
        self.stdin: IO[bytes] = cast(IO[bytes], somebody)
        self.stdout: IO[bytes] = somebody.answers


def people() -> tuple[dict[str, Somebody], dict[str, Talk]]:
    somebodies = {host: Somebody() for host in ("curl-pod", "w1-pod", "router")}
    talks = {
        host: Talk(cast("subprocess.Popen[Any]", Process(each)))
        for host, each in somebodies.items()
    }
    return somebodies, talks


def sent(somebody: Somebody) -> list[list[dict[str, Any]]]:
    return [order["probes"] for order in somebody.orders if order["do"] == "send"]


def test_checks_come_in_the_order_of_the_story_whoever_answers() -> None:
    _, talks = people()
    checks = Prober(talks, str).check(EXPECTATIONS)
    pairs = [(c.sender, c.to, c.protocol, c.kept) for c in checks]
    assert pairs[:3] == [("curl-pod", "loop1", p, False) for p in ("icmp", "tcp", "udp")]
    assert pairs[3:6] == [("w1-pod", "loop1", p, False) for p in ("icmp", "tcp", "udp")]
    assert pairs[-2:] == [("curl-pod", "loop1", p, True) for p in ("tcp", "udp")]
    right = [check.ok for check in checks]
    assert right == [True] * 3 + [False] * 8
    assert {(c.seen, c.verdict) for c in checks} == {("192.168.10.100", "masquerade")}


def test_two_connections_to_one_place_are_never_opened_at_once() -> None:
    somebodies, talks = people()
    Prober(talks, str).check(EXPECTATIONS)
    seen = [order for order in somebodies["router"].orders if order["do"] == "seen"]
    for order in seen:
        ways = [(probe["address"], probe["protocol"]) for probe in order["probes"]]
        assert len(ways) == len(set(ways))
        assert order["after"] == 7
    assert len(seen) == 3
    assert len(sent(somebodies["curl-pod"])[0]) == 6


def test_one_lost_reply_is_enough_to_be_patient_for() -> None:
    somebodies, talks = people()
    prober = Prober(talks, mirrored)
    prober.check(EXPECTATIONS[2:3])
    prober.check(EXPECTATIONS[2:3])
    waits = [{probe["patient"] for probe in probes} for probes in sent(somebodies["curl-pod"])]
    assert waits == [{True}, {False}]
    assert sent(somebodies["curl-pod"])[0][0]["address"] == "fd00:172:20:1::10"
