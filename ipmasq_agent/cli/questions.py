"""Questions that several verbs ask of a data plane, answered by reading the kernel only."""

from __future__ import annotations

from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.answers.differences import FamilyDiff, decision_changes
from ipmasq_agent.answers.in_force import usual
from ipmasq_agent.host.devices import egress_devices
from ipmasq_agent.planes.hook.read import read_hook
from ipmasq_agent.planes.plane import Desired, Plan, Plane, State
from ipmasq_agent.planes.rules.neighbours import joined, neighbours
from ipmasq_agent.policy.addresses import Family


def family_diff(plane: Plane[State, Desired, Plan], family: Family, intent: Intent) -> FamilyDiff:
    """Return what bringing one family to ``intent`` would change."""
    dialect, actual = plane.dialect, plane.read(family)
    change = dialect.plan(actual, intent.desired(plane, family))
    if not change:
        return FamilyDiff(family)
    then: State = change.result
    before, later = dialect.interpret(actual), dialect.interpret(then)
    hook = read_hook(family, plane.our_base(family), egress_devices())
    others = neighbours(hook, usual(later.policy.guards, hook))
    decisions = decision_changes(
        joined(before, others).policy.decisions, joined(later, others).policy.decisions
    )
    return FamilyDiff(
        family,
        before=tuple(dialect.describe(actual)),
        after=tuple(dialect.describe(then)),
        added=tuple(change.added),
        removed=tuple(change.removed),
        decisions=tuple(decisions),
    )


def left_diff(plane: Plane[State, Desired, Plan]) -> list[str]:
    """Return the lines that leaving ``plane`` would remove, of both families."""
    removed: list[str] = []
    for family in Family:
        removed += plane.dialect.plan(plane.read(family), plane.dialect.absent(family)).removed
    return removed
