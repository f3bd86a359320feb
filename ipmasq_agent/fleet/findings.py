"""What ``doctor`` finds on nodes: equal findings are one."""

from __future__ import annotations

import json
from dataclasses import replace

from ipmasq_agent.answers.doctor.facts import Severity, Symptom
from ipmasq_agent.fleet.nodes import named, plain

_WORST = list(Severity)


class Findings:
    """What was found, and where. It may be added to by several threads."""

    def __init__(self) -> None:
        self._found: dict[Symptom, dict[str, tuple[str, ...]]] = {}
        self._ids: dict[str, set[str]] = {}

    def add(self, node: str, told: bytes) -> None:
        """Take in what ``doctor -o json`` prints on a node.

        Raises:
            one of MALFORMED: it is in another form.
        """
        found = json.loads(told)
        self._ids[node] = {str(one["id"]) for one in found}
        for one in found:
            severity = Severity(one["severity"])
            title, why, remedy = (plain(str(one[key])) for key in ("title", "why", "remedy"))
            symptom = Symptom(severity, title, why, remedy, id=plain(str(one["id"])))
            where = self._found.setdefault(symptom, {})
            where[node] = tuple(plain(str(line)) for line in one["evidence"])

    def folded(self) -> list[tuple[Symptom, list[str]]]:
        """Return each finding with the evidence of the first node, and where it is.

        The worst come first, and of those what most nodes have.
        """
        found = []
        for symptom, where in self._found.items():
            nodes = sorted(where)
            found.append((replace(symptom, evidence=where[nodes[0]]), nodes))

        def rank(each: tuple[Symptom, list[str]]) -> tuple[int, int, str, str]:
            one, nodes = each
            return _WORST.index(one.severity), -len(nodes), one.id, one.title

        return sorted(found, key=rank)

    def since(self, before: Findings) -> list[str]:
        """Return what bites where it did not before, a line each.

        Nodes that were not looked at before are left out: what is new there nobody knows.
        """
        lines = []
        for one, nodes in self.folded():
            new = [node for node in nodes if one.id not in before._ids.get(node, {one.id})]
            if new and one.severity is not Severity.INFO:
                lines.append(f"doctor finds: {located(one, new).title}")
        return lines


def located(one: Symptom, nodes: list[str]) -> Symptom:
    """Return a finding that says where it is."""
    return replace(one, title=f"{one.title}, on {named(nodes)}")
