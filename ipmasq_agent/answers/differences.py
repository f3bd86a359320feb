"""What a change is, in rules and in decisions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ipmasq_agent.policy.addresses import Family, Prefix, prefixes_of_range, range_text
from ipmasq_agent.policy.decisions import DecisionMap, Verdict


@dataclass(frozen=True, slots=True)
class DecisionChange:
    """A range of destinations, ends included, whose verdict changes."""

    family: Family
    first: int
    last: int
    before: Verdict
    after: Verdict

    @property
    def prefixes(self) -> list[Prefix]:
        """The fewest prefixes that cover the range."""
        return list(prefixes_of_range(self.family, self.first, self.last))

    def __str__(self) -> str:
        return range_text(self.family, self.first, self.last)


@dataclass(frozen=True, slots=True)
class FamilyDiff:
    """What a change does to one family: lines of rules before and after, and decisions."""

    family: Family
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    decisions: tuple[DecisionChange, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything would be written."""
        return bool(self.added or self.removed)

    def as_data(self) -> dict[str, Any]:
        """Return the family's part of the ``diff -o json`` contract."""
        return {
            "rules": {"add": list(self.added), "remove": list(self.removed)},
            "decisions": [
                {"cidr": str(prefix), "from": change.before, "to": change.after}
                for change in self.decisions
                for prefix in change.prefixes
            ],
        }


def decision_changes(before: DecisionMap, after: DecisionMap) -> Iterator[DecisionChange]:
    """Yield the ranges of destinations whose verdict changes, in order."""
    for first, last, left, right in before.changes(after):
        yield DecisionChange(before.family, first, last, left, right)
