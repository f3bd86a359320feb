"""Questions that several verbs ask of a backend, answered by reading the kernel only."""

from __future__ import annotations

from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.answers.differences import FamilyDiff, decision_changes
from ipmasq_agent.answers.in_force import usual
from ipmasq_agent.planes.hook.read import read_hook
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.plane import Desired, Plan, Plane, State
from ipmasq_agent.planes.rules.neighbours import joined, neighbours
from ipmasq_agent.policy.addresses import Family


def family_diff(
    backend: Plane[State, Desired, Plan], family: Family, intent: Intent, placement: Placement
) -> FamilyDiff:
    """Return what bringing one family to ``intent`` would change."""
    actual = backend.read(family)
    desired = intent.desired(backend, family)
    change = backend.plan(actual, desired)
    if not change:
        return FamilyDiff(family)
    then = backend.after(actual, desired)
    before, later = backend.interpret(actual), backend.interpret(then)
    hook = read_hook(family, backend.our_base(family))
    others = neighbours(hook, usual(later.policy.guards, hook))
    decisions = decision_changes(
        joined(before, others).policy.decisions, joined(later, others).policy.decisions
    )
    return FamilyDiff(
        family,
        before=tuple(backend.describe(actual)),
        after=tuple(backend.describe(then)),
        added=tuple(change.added),
        removed=tuple(change.removed),
        decisions=tuple(decisions),
    )


def left_diff(backend: Plane[State, Desired, Plan]) -> list[str]:
    """Return the lines that leaving ``backend`` would remove, of both families."""
    removed: list[str] = []
    for family in Family:
        removed += backend.plan(backend.read(family), backend.absent(family)).removed
    return removed
