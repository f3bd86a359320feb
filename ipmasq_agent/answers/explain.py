"""Would a packet to this destination be masqueraded, and who says so?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ipmasq_agent.dialects.interpretation import Interpretation
from ipmasq_agent.policy.addresses import Family, prefixes_of_range
from ipmasq_agent.policy.decisions import Origin, Verdict
from ipmasq_agent.policy.model import FamilyPolicy


@dataclass(frozen=True, slots=True)
class Route:
    """Where the node would send the packet.

    Attributes:
        device: through which it leaves; None where there is no route.
        address: what MASQUERADE would take from that device, as text; None without one.
        local: the destination is the node itself, which no rule of ours speaks of.
    """

    device: str | None = None
    address: str | None = None
    local: bool = False


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer; see ``as_data`` for its shape as JSON."""

    destination: str
    asked_source: str | None
    verdict: Verdict
    rule: Origin
    entry: Origin | None
    expected: Verdict | None
    route: Route
    exceptions: tuple[str, ...] = ()

    @property
    def source(self) -> str | None:
        """The source address that the receiver sees; None for "the pod's own"."""
        if self.verdict is Verdict.MASQUERADE:
            return self.route.address
        return self.asked_source

    @property
    def rule_text(self) -> str:
        """The rule that decides: its number, its chain, its text."""
        return rule_text(self.rule)

    @property
    def reason(self) -> str:
        """Why: the user's own entry with its line, or what stands in for it."""
        if self.route.local:
            return "the destination is an address of this node, whose packets are left alone"
        if self.entry is None:
            return f"decided by {self.rule_text}; no document to compare with"
        if self.expected is not self.verdict:
            return (
                f"the kernel is not in step: the document says {self.expected} "
                f"because of {self.entry}; run `ipmasq-agent diff`"
            )
        return str(self.entry)

    def as_data(self) -> dict[str, Any]:
        """Return the contract of ``explain -o json``, with keys of our own after it."""
        return {
            "destination": self.destination,
            "source": self.source,
            "verdict": self.verdict,
            "reason": self.reason,
            "rule": self.rule_text,
            "from": self.asked_source,
            "device": self.route.device,
            "document": self.entry.document if self.entry else None,
            "line": self.entry.line if self.entry else None,
            "exceptions": list(self.exceptions),
        }

    def as_text(self) -> str:
        """Return the answer for people."""
        seen = self.source or "the pod's own address"
        if self.verdict is Verdict.MASQUERADE and self.route.address is None:
            seen = "unknown: the node has no route to it"
        through = f" (through {self.route.device})" if self.route.device else ""
        lines = [
            f"{self.destination}: {self.verdict}",
            f"  arrives from  {seen}{through}",
            f"  decided by    {self.rule_text}",
            f"  because of    {self.reason}",
        ]
        lines += (f"  except where  {exception}" for exception in self.exceptions)
        return "\n".join(lines)


def rule_text(rule: Origin) -> str:
    """Return what an interpretation names as deciding: number, chain and text of a rule."""
    if rule.line is None:
        return rule.text
    return f"rule {rule.line} of {rule.document}: {rule.text}"


def explain(
    family: Family,
    destination: int,
    asked_source: str | None,
    kernel: Interpretation,
    wanted: FamilyPolicy | None,
    route: Route,
) -> Explanation:
    """Return the answer for one destination.

    Args:
        family: of the destination.
        destination: its address.
        asked_source: the source that the question is about, as text, or None for any.
        kernel: what the kernel decides for that source.
        wanted: the policy of the document, or None where there is none to compare with.
        route: where the node would send the packet.
    """
    decided = kernel.policy.decisions.decide(destination)
    entry = wanted.decisions.decide(destination) if wanted else None
    verdict, rule = decided.verdict, decided.origin
    if route.local and not kernel.policy.guards.local_destinations:
        verdict = Verdict.NON_MASQUERADE
        rule = Origin("the jump to our chain, which passes over addresses of the node")
    return Explanation(
        destination=family.show(destination),
        asked_source=asked_source,
        verdict=verdict,
        rule=rule,
        entry=entry.origin if entry else None,
        expected=entry.verdict if entry else None,
        route=route,
        exceptions=tuple(str(e) for e in kernel.exceptions if e.concerns(destination)),
    )


def cidrs_in_force(kernels: Sequence[Interpretation]) -> list[str]:
    """Return the non-masquerade CIDRs that a kernel holds, in the order of its rules.

    A rule is listed with its own prefix if it decides for at least one address; where a
    rule has no prefix of its own (a negated one), the ranges that it decides are.
    """
    cidrs: dict[str, None] = {}
    for kernel in kernels:
        decisions = kernel.policy.decisions
        deciding = [e for e in decisions.ranges if e.verdict is Verdict.NON_MASQUERADE]
        deciding.sort(key=lambda entry: (entry.origin.line or 0, entry.first))
        for entry in deciding:
            if entry.origin.line is None:
                continue  # no rule translates it: that is not an entry of anyone's
            words = entry.origin.text.split()
            if "-d" in words and "!" not in words:
                cidrs[words[words.index("-d") + 1]] = None
            else:
                for prefix in prefixes_of_range(decisions.family, entry.first, entry.last):
                    cidrs[str(prefix)] = None
    return list(cidrs)
