"""What a document would change, as the agents of all nodes say: equal answers are one.

Of each different answer one is kept, whole, as of a large document it may be a megabyte.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ipmasq_agent.fleet.nodes import named, plain

_SHOWN = 50  # decisions, or rules
_DESTINATIONS = 5


class WhatChanges(NamedTuple):
    """What some nodes answer alike.

    Attributes:
        changed: something would be written there.
        families: rules and decisions by family, as ``diff -o json`` has them.
    """

    changed: bool
    families: Mapping[str, Any]


class NodeAnswer(NamedTuple):
    """What one node answers.

    Attributes:
        variant: which of the different answers.
        connections: live ones that were looked at.
        moved: those that would leave otherwise if they began anew.
        established: of which these are.
        destinations: where to those that would lead, and how many do.
    """

    variant: str
    connections: int = 0
    moved: int = 0
    established: int = 0
    destinations: Mapping[str, int] = {}


@dataclass
class Preview:
    """What nodes have answered; it may be added to by several threads.

    Attributes:
        variants: the different answers, by a hash of each.
        answers: what each node answered.
        refused: nodes that cannot use the document, and why.
        silent: nodes of which nothing was heard, and why.
    """

    variants: dict[str, WhatChanges] = field(default_factory=dict)
    answers: dict[str, NodeAnswer] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)

    def add(self, node: str, told: bytes) -> None:
        """Take in what ``diff -o json`` prints on a node.

        Raises:
            one of MALFORMED: it is in another form.
        """
        data = json.loads(told)
        variant = WhatChanges(bool(data["changed"]), data["families"])
        digest = hashlib.sha256(json.dumps(variant, sort_keys=True).encode()).hexdigest()
        impact = data.get("impact") or {}
        destinations: Counter[str] = Counter()
        for row in impact.get("rows") or ():
            destinations[plain(str(row["destination"]))] += int(row["connections"])
        connections, moved, established = (
            int(impact.get(key) or 0) for key in ("connections", "changed", "established")
        )
        self.answers[node] = NodeAnswer(digest, connections, moved, established, destinations)
        self.variants.setdefault(digest, variant)

    @property
    def changed(self) -> bool:
        """Whether anything would change anywhere."""
        return any(variant.changed for variant in self.variants.values())

    def folded(self) -> list[tuple[WhatChanges, list[str]]]:
        """Return the different answers and whose they are, what most nodes say first."""
        nodes: dict[str, list[str]] = {digest: [] for digest in self.variants}
        for node, answer in sorted(self.answers.items()):
            nodes[answer.variant].append(node)
        found = [(self.variants[digest], of) for digest, of in nodes.items()]
        return sorted(found, key=lambda each: (-len(each[1]), each[1]))

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "changed": self.changed,
            "answers": [
                {"nodes": nodes, "changed": variant.changed, "families": variant.families}
                for variant, nodes in self.folded()
            ],
            "impact": {
                "connections": sum(each.connections for each in self.answers.values()),
                "changed": sum(each.moved for each in self.answers.values()),
                "established": sum(each.established for each in self.answers.values()),
            },
            "refused": self.refused,
            "silent": self.silent,
        }

    def as_lines(self, *, rules: bool) -> list[str]:
        """Return it for people, with or without the rules that would be written."""
        lines: list[str] = []
        for variant, nodes in self.folded():
            where = f"{len(nodes)} node{'s' * (len(nodes) > 1)} ({named(nodes)})"
            found = [each for f in variant.families for each in _family(f, variant, rules)]
            if found:
                lines += [f"would change on {where}:", *(f"  {line}" for line in found)]
            elif variant.changed:
                lines.append(f"rules would change on {where}, and no decision")
            else:
                lines.append(f"nothing would change on {where}")
        lines += self._impact()
        for kind, which in (("would refuse it", self.refused), ("did not answer", self.silent)):
            lines += grouped(kind, which)
        return lines

    def _impact(self) -> list[str]:
        answers = self.answers.values()
        connections = sum(each.connections for each in answers)
        moved = sum(each.moved for each in answers)
        if not connections:
            return []
        if not moved:
            return [f"none of {connections:,} live connections would leave otherwise"]
        to: Counter[str] = Counter()
        for each in answers:
            to.update(each.destinations)
        fullest = sorted(to.items(), key=lambda each: (-each[1], each[0]))[:_DESTINATIONS]
        most = ", ".join(f"{count:,} to {where}" for where, count in fullest)
        established = sum(each.established for each in answers)
        return [
            f"{moved:,} of {connections:,} live connections would leave otherwise if they began "
            f"anew ({most}); {established:,} of them are established, and go on unchanged"
        ]


def grouped(kind: str, reasons: Mapping[str, str]) -> list[str]:
    """Return nodes with one reason in a line."""
    by_reason: dict[str, list[str]] = {}
    for node, why in sorted(reasons.items()):
        by_reason.setdefault(why, []).append(node)
    return [f"{named(nodes)} {kind}: {why}" for why, nodes in by_reason.items()]


def _family(family: str, variant: WhatChanges, rules: bool) -> Iterable[str]:
    found = variant.families[family]
    decisions = [f"{one['cidr']}  {one['from']} → {one['to']}" for one in found["decisions"]]
    written = [f"-{line}" for line in found["rules"]["remove"]]
    written += [f"+{line}" for line in found["rules"]["add"]]
    for lines in (decisions, written if rules else []):
        yield from map(plain, lines[:_SHOWN])
        if len(lines) > _SHOWN:
            yield f"... and {len(lines) - _SHOWN} more of {family}; -o json shows them all"
