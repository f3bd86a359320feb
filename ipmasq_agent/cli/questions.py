"""Questions that several verbs ask of a data plane, answered by reading the kernel only."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ipmasq_agent.agent.choice import PlaneChoice
from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.agent.moves import deciding
from ipmasq_agent.answers.differences import FamilyDiff, decision_changes
from ipmasq_agent.answers.impact import Ruling
from ipmasq_agent.answers.in_force import usual
from ipmasq_agent.errors import AgentError
from ipmasq_agent.host.devices import egress_devices
from ipmasq_agent.planes.hook.read import read_hook
from ipmasq_agent.planes.plane import AnyPlane
from ipmasq_agent.planes.rules.neighbours import PostroutingHook, joined, neighbours
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import PortRange

if TYPE_CHECKING:
    from ipmasq_agent.cli.options import Settings


def ours_now(
    family: Family,
    plane: AnyPlane,
    state: Any,
    others: Collection[AnyPlane],
    read: Callable[[AnyPlane], Any],
) -> tuple[AnyPlane, Any]:
    """Return the data plane whose rules decide now, and its state.

    Of several, those at the hook count as what stands there; programs have their turn last.

    Args:
        family: of the rules.
        plane: the one asked about, which stands for all where none holds anything.
        state: what it holds.
        others: those that the agent would leave for it, and that may hold rules of ours.
        read: returns what one of them holds. One that cannot be read is passed over, as
            ``deciding`` tells of it.
    """
    held = [(plane, state)] if plane.dialect.describe(state) else []
    for other in others:
        try:
            its_state = read(other)
        except AgentError:
            continue
        if other.dialect.describe(its_state):
            held.append((other, its_state))
    return min(held, key=lambda one: one[0].our_base(family) is not None, default=(plane, state))


def at_work(choice: PlaneChoice, settings: Settings) -> tuple[AnyPlane, list[AnyPlane]]:
    """Return the data plane that a question without a document is about, and the others.

    Where no backend was named, one that holds our rules counts before the one that an agent
    would take.
    """
    chosen, others = choice.current()
    candidates = [chosen, *(others if settings.backend == "auto" else [])]
    plane = next((each for each in candidates if deciding([each]).holding), chosen)
    return plane, [each for each in (chosen, *others) if each is not plane]


class Standing(NamedTuple):
    """Where our rules of a family are, before and after a change.

    Attributes:
        now: the data plane that decides now.
        held: what it holds.
        around: what stands at the hook now.
        then: what will, where what is left has gone.
    """

    now: AnyPlane
    held: Any
    around: PostroutingHook
    then: PostroutingHook


class FamilyChange:
    """A family of a data plane as it is and as it is meant, each part of it read once.

    Args:
        plane: where.
        family: of the rules.
        intent: what is meant.
        others: the data planes that would be left for it.
    """

    def __init__(
        self, plane: AnyPlane, family: Family, intent: Intent, others: Collection[AnyPlane]
    ) -> None:
        self._plane, self._family, self._others = plane, family, others
        self._actual = plane.read(family)
        self._plan = None
        if family in intent.config.families:
            self._plan = plane.dialect.plan(self._actual, intent.desired(plane, family))
        self._later = self._plan.result if self._plan else self._actual

    @cached_property
    def _standing(self) -> Standing:
        plane, family, others = self._plane, self._family, self._others
        now, held = ours_now(family, plane, self._actual, others, lambda each: each.read(family))
        egress = egress_devices()
        hook = around = read_hook(family, plane.our_base(family), egress)
        if now is not plane:
            around = read_hook(family, now.our_base(family), egress)
        gone = [base for other in others if (base := other.our_base(family)) is not None]
        return Standing(now, held, around, hook.without(gone))

    def diff(self) -> FamilyDiff:
        """Return what would change, in rules and in decisions."""
        if not self._plan and not self._others:
            return FamilyDiff(self._family)
        dialect, (now, held, around, hook) = self._plane.dialect, self._standing
        later = dialect.interpret(self._later)
        asked = usual(later.policy.guards, hook)
        before = joined(now.dialect.interpret(held), neighbours(around, asked))
        after = joined(later, neighbours(hook, asked))
        return FamilyDiff(
            self._family,
            before=tuple(dialect.describe(self._actual)),
            after=tuple(dialect.describe(self._later)),
            added=tuple(self._plan.added) if self._plan else (),
            removed=tuple(self._plan.removed) if self._plan else (),
            decisions=tuple(decision_changes(before.policy.decisions, after.policy.decisions)),
        )

    def rulings(self) -> tuple[AnyPlane, tuple[Ruling, Ruling]]:
        """Return which data plane decides about connections now, how, and how it will be."""
        now, held, around, hook = self._standing
        before = Ruling(partial(now.dialect.interpret, held), around)
        return now, (before, Ruling(partial(self._plane.dialect.interpret, self._later), hook))


def ports_in_force(plane: AnyPlane) -> tuple[PortRange, ...]:
    """Return the port ranges that our rules in the kernel give, to one of the families or both."""
    for family in Family:
        ports = plane.dialect.interpret(plane.read_at(family, 0)).policy.action.ports
        if ports:
            return ports
    return ()


def left_diff(plane: AnyPlane) -> list[str]:
    """Return the lines that leaving ``plane`` would remove, of both families."""
    removed: list[str] = []
    for family in Family:
        removed += plane.dialect.plan(plane.read(family), plane.dialect.absent(family)).removed
    return removed
