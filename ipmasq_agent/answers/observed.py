"""Connections as people and programs are shown them: which are meant, and why they are so."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ipmasq_agent.answers.explain import Ruling
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import Verdict
from ipmasq_agent.policy.facts import WayOut
from ipmasq_agent.policy.flows import End, Flow

MASQUERADE, KEEP = "masquerade", "keep"
_NAMED = 3  # rules in one reason
_L4 = {1: "ICMPv4", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}


class Sight(NamedTuple):
    """A connection, and what is known about it.

    Attributes:
        moment: of time(2), when it was made; None where nobody knows any more.
        source, destination: NAMESPACE/NAME of the pods; None for what is no pod's address.
        reason: what decides about it.
    """

    moment: float | None
    flow: Flow
    source: str | None = None
    destination: str | None = None
    reason: str = ""

    @property
    def verdict(self) -> str:
        """What became of its source."""
        return MASQUERADE if self.flow.translated else KEEP

    def as_data(self) -> dict[str, Any]:
        """Return the contract of ``observe -o json``; names are those of Hubble's flows."""
        flow = self.flow
        show, protocol = flow.family.show, _L4.get(flow.protocol, flow.protocol_name)
        ip = {
            "source": show(flow.source.address),
            "destination": show(flow.destination.address),
            "ipVersion": "IPv4" if flow.family is Family.IPV4 else "IPv6",
        }
        if flow.translated:
            ip["source_xlated"] = show(flow.left_as.address)
        l4 = {"id": flow.source.port}
        if flow.has_ports:
            l4 = {"source_port": flow.source.port, "destination_port": flow.destination.port}
        return {
            "time": None if self.moment is None else utc(self.moment, "microseconds"),
            "verdict": self.verdict,
            "IP": ip,
            "l4": {protocol: l4},
            "source": _pod(self.source),
            "destination": _pod(self.destination),
            "left_as": {"address": show(flow.left_as.address), "port": flow.left_as.port},
            "reached": {"address": show(flow.reached.address), "port": flow.reached.port},
            "reason": self.reason,
        }

    def cells(self) -> tuple[str, str, str, str, str, str]:
        """Return protocol, source, destination, as what it left, verdict and reason for people."""
        flow = self.flow
        asked = _named(self.destination, flow.destination, flow.family)
        if flow.reached != flow.destination:
            asked += f" ({flow.reached.shown(flow.family)})"
        return (
            flow.protocol_name,
            _named(self.source, flow.source, flow.family),
            asked,
            flow.left_as.shown(flow.family) if flow.translated else "itself",
            self.verdict,
            self.reason,
        )


def utc(moment: float, precision: str) -> str:
    """Return a moment of time(2) as RFC 3339 has it; the precision as ``isoformat`` names it."""
    text = datetime.fromtimestamp(moment, UTC).isoformat(timespec=precision)
    return text.replace("+00:00", "Z")


def _pod(name: str | None) -> dict[str, str]:
    if name is None:
        return {}
    namespace, _, pod = name.rpartition("/")
    return {"namespace": namespace, "pod_name": pod}


def _named(pod: str | None, end: End, family: Family) -> str:
    if pod is None:
        return end.shown(family)
    return f"{pod}:{end.port}" if end.port else pod


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which connections are meant; None for any.

    Attributes:
        pod: NAMESPACE/NAME or NAME of the pod at either end, or an address there.
        to: where the destination lies, the one that was asked or the one that was reached.
        verdict: ``masquerade`` or ``keep``.
        protocol: its name.
        port: of the destination, likewise.
    """

    pod: str | None = None
    to: Prefix | None = None
    verdict: str | None = None
    protocol: str | None = None
    port: int | None = None

    def by_flow(self, flow: Flow) -> bool:
        """Whether it may be meant, as far as the connection alone tells."""
        asked = flow.destination, flow.reached
        return (
            (self.verdict is None or (self.verdict == MASQUERADE) == flow.translated)
            and (self.protocol is None or self.protocol == flow.protocol_name)
            and (self.port is None or self.port in [end.port for end in asked])
            and (
                self.to is None
                or (
                    self.to.family is flow.family
                    and any(self.to.first <= end.address <= self.to.last for end in asked)
                )
            )
        )

    def by_pod(self, seen: Sight) -> bool:
        """Whether it is meant, by the names of its ends."""
        if self.pod is None:
            return True
        flow = seen.flow
        names = [name for name in (seen.source, seen.destination) if name]
        names += [name.rpartition("/")[2] for name in names]
        ends = flow.source, flow.destination, flow.reached
        return self.pod in (*names, *(flow.family.show(end.address) for end in ends))


def reason(
    ruling: Ruling, source: int, reached: int, route: WayOut, *, translated: bool, own: bool
) -> str:
    """Return what decides about a connection, by what is in force now.

    Args:
        ruling: what is in force.
        source: the address of who began it.
        reached: that of the other end.
        route: where the node sends what goes there.
        translated: whether it left with another source.
        own: whether the node itself began it.
    """
    verdict, rule, _, elsewhere = ruling.fate(source, reached, route)
    became = Verdict.MASQUERADE if translated else Verdict.NON_MASQUERADE
    if verdict in (Verdict.UNKNOWN, became):
        return str(rule)
    if own and not translated:
        return "the node's own, which has its address already"
    does = "keeps it" if translated else "masquerades it"
    doubts = ruling.doubts(source, reached, route)
    named = [each.rule for each in doubts if each.verdict in (Verdict.UNKNOWN, became)]
    named += ruling.by_mark if translated else ()
    if named:
        shown = " or ".join(map(str, list(dict.fromkeys(named))[:_NAMED]))
        whose = "another" if elsewhere else "ours"
        return f"a rule that looks at more than addresses decided: {shown}; {whose} {does}: {rule}"
    return f"not what is in force now, which {does}: {rule}"
