"""What ``doctor`` finds on nodes: equal findings are one."""

from __future__ import annotations

import json
from dataclasses import replace

from ipmasq_agent.answers.doctor.facts import Diagnosis, Severity, Symptom
from ipmasq_agent.fleet.nodes import named

_WORST = list(Severity)


class Findings:
    """What was found, and where. It may be added to by several threads."""

    def __init__(self) -> None:
        self._found: dict[Diagnosis, dict[str, tuple[str, ...]]] = {}

    def add(self, node: str, told: bytes) -> None:
        """Take in what ``doctor -o json`` prints on a node.

        Raises:
            one of MALFORMED: it is in another form.
        """
        for one in json.loads(told):
            severity = Severity(one["severity"])
            title, why, remedy = (str(one[key]) for key in ("title", "why", "remedy"))
            symptom = Symptom(severity, title, why, remedy)
            where = self._found.setdefault(Diagnosis(str(one["id"]), symptom), {})
            where[node] = tuple(map(str, one["evidence"]))

    def folded(self) -> list[tuple[Diagnosis, list[str]]]:
        """Return each finding with the evidence of the first node, and where it is.

        The worst come first, and of those what most nodes have.
        """
        found = []
        for diagnosis, where in self._found.items():
            nodes = sorted(where)
            symptom = replace(diagnosis.found, evidence=where[nodes[0]])
            found.append((replace(diagnosis, found=symptom), nodes))

        def rank(each: tuple[Diagnosis, list[str]]) -> tuple[int, int, str, str]:
            one, nodes = each
            return _WORST.index(one.found.severity), -len(nodes), one.id, one.found.title

        return sorted(found, key=rank)


def located(one: Diagnosis, nodes: list[str]) -> Diagnosis:
    """Return a finding that says where it is."""
    where = f"{one.found.title}, on {named(nodes)}"
    return replace(one, found=replace(one.found, title=where))
