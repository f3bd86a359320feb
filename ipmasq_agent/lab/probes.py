"""Probes of the story, as many at once as can be told apart, and what became of them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ipmasq_agent.lab.capture import Capture
from ipmasq_agent.lab.scene import PROTOCOLS, Expectation
from ipmasq_agent.lab.talk import Talk
from ipmasq_agent.lab.topology import ENDPOINTS
from ipmasq_agent.lab.trace import Trace, follow


@dataclass(frozen=True, slots=True)
class Check:
    """One probe and what became of it; ``seen`` comes from the receiving end.

    Attributes:
        trace: its packets on their way, where they were captured.
    """

    sender: str
    to: str
    protocol: str
    source: str
    destination: str
    seen: str | None
    expected: str
    reply: bool
    expected_reply: bool
    kept: bool
    trace: Trace | None = None

    @property
    def verdict(self) -> str:
        """What happened to the source on the way."""
        if self.seen is None:
            return "lost"
        return "non-masquerade" if self.seen == self.source else "masquerade"

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
            "source": self.source,
            "destination": self.destination,
            "reply": self.reply,
            "expectedReply": self.expected_reply,
            "connection": "kept" if self.kept else "new",
        }


@dataclass(frozen=True, slots=True)
class _Probe:
    """An expectation in one protocol: the order for those who live in the hosts."""

    expectation: Expectation
    order: dict[str, Any]

    @property
    def sender(self) -> str:
        return ENDPOINTS[self.expectation.sender][0]

    @property
    def receiver(self) -> str:
        return ENDPOINTS[self.expectation.to][0]


class Prober:
    """Sends the story's packets, and asks the receivers what they saw.

    Args:
        talks: host → who lives there.
        in_family: the address of the story's family that stands for an IPv4 one.
        capture: follows the packets on their way, where that is wanted.
    """

    def __init__(
        self,
        talks: Mapping[str, Talk],
        in_family: Callable[[str], str],
        capture: Capture | None = None,
    ) -> None:
        self._talks = talks
        self._in_family = in_family
        self._capture = capture
        self._patient = True

    def check(self, expectations: Sequence[Expectation]) -> tuple[Check, ...]:
        """Send a packet for each expectation in each protocol, and return what was seen."""
        pending = [
            self._probe(expectation, protocol)
            for expectation in expectations
            for protocol in PROTOCOLS
            if not (expectation.kept and protocol == "icmp")
        ]
        order = [(probe.expectation, probe.order["protocol"]) for probe in pending]
        found: dict[tuple[Expectation, str], Check] = {}
        while pending:
            # What opens a TCP connection is known by where it goes alone, so only one goes
            # to each destination at a time.
            wave: dict[tuple[str, str], _Probe] = {}
            for probe in pending:
                wave.setdefault((probe.expectation.to, probe.order["protocol"]), probe)
            probes = list(wave.values())
            pending = [probe for probe in pending if probe not in probes]
            for probe, check in zip(probes, self._send(probes), strict=True):
                found[probe.expectation, probe.order["protocol"]] = check
        return tuple(found[key] for key in order)

    def open(self, expectation: Expectation) -> list[bool]:
        """Open the connections that are to be kept; for each, whether it was answered."""
        probes = [self._probe(expectation, protocol) for protocol in ("tcp", "udp")]
        orders = [probe.order for probe in probes]
        replies: list[bool] = self._talks[probes[0].sender].ask(do="keep", probes=orders)["replies"]
        return replies

    def _probe(self, expectation: Expectation, protocol: str) -> _Probe:
        source, address = (
            self._in_family(ENDPOINTS[name][1]) for name in (expectation.sender, expectation.to)
        )
        return _Probe(
            expectation,
            {
                "protocol": protocol,
                "source": source,
                "address": address,
                "token": secrets.token_hex(8),
                # The story is wrong once a reply was lost: no need to wait as long again.
                "patient": self._patient and expectation.reply,
                "kept": expectation.kept,
            },
        )

    def _send(self, probes: Sequence[_Probe]) -> list[Check]:
        """Send all these probes at once."""
        if self._capture:
            self._capture.fetch()  # what was before
        marks = {p.receiver: self._talks[p.receiver].ask(do="mark")["mark"] for p in probes}
        replies = self._asked(probes, [p.sender for p in probes], "replies", {"do": "send"})
        seen = self._asked(
            probes, [p.receiver for p in probes], "sources", {"do": "seen"}, after=marks
        )
        traces = self._followed(probes)
        checks = [
            Check(
                sender=probe.expectation.sender,
                to=probe.expectation.to,
                protocol=probe.order["protocol"],
                source=probe.order["source"],
                destination=probe.order["address"],
                seen=source,
                expected=self._in_family(ENDPOINTS[probe.expectation.seen_as][1]),
                reply=reply,
                expected_reply=probe.expectation.reply,
                kept=probe.expectation.kept,
                trace=trace,
            )
            for probe, reply, source, trace in zip(probes, replies, seen, traces, strict=True)
        ]
        if any(check.expected_reply and not check.reply for check in checks):
            self._patient = False
        return checks

    def _followed(self, probes: Sequence[_Probe]) -> list[Trace | None]:
        """Return the ways of the packets of these probes, which have arrived or are lost."""
        if self._capture is None:
            return [None for _ in probes]
        captured, lost = self._capture.fetch()
        return [
            follow(
                captured,
                protocol=probe.order["protocol"],
                destination=probe.order["address"],
                token=probe.order["token"].encode(),
                by_opening=probe.order["protocol"] == "tcp" and not probe.order["kept"],
                lost=lost,
            )
            for probe in probes
        ]

    def _asked(
        self,
        probes: Sequence[_Probe],
        hosts: Sequence[str],
        answer: str,
        order: dict[str, Any],
        *,
        after: Mapping[str, int] | None = None,
    ) -> list[Any]:
        """Give every host its part of the probes, and return the answers in their order."""
        parts: dict[str, list[int]] = {}
        for number, host in enumerate(hosts):
            parts.setdefault(host, []).append(number)
        for host, numbers in parts.items():
            mark = {"after": after[host]} if after is not None else {}
            orders = [probes[number].order for number in numbers]
            self._talks[host].tell(**order, **mark, probes=orders)
        answers: dict[int, Any] = {}
        for host, numbers in parts.items():
            answers.update(zip(numbers, self._talks[host].answer()[answer], strict=True))
        return [answers[number] for number in range(len(probes))]
