"""Questions that verbs ask of a node's data planes, answered by reading the kernel only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.answers.differences import FamilyDiff, decision_changes
from ipmasq_agent.answers.explain import Ruling
from ipmasq_agent.answers.in_force import usual
from ipmasq_agent.cli.options import Settings
from ipmasq_agent.cli.wiring import backend_choice
from ipmasq_agent.errors import AgentError
from ipmasq_agent.host.devices import egress_devices
from ipmasq_agent.planes.hook.read import read_hook
from ipmasq_agent.planes.plane import AnyPlane
from ipmasq_agent.planes.rules.neighbours import PostroutingHook, joined, neighbours
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import PortRange


@dataclass
class Here:
    """The data planes of this node, and what stands around them, each read once.

    Attributes:
        plane: the one that is asked about.
        others: those that an agent would leave for it, and that may hold rules of ours.
        reason: why it is that one.
        unseen: why there may be more of the others.
    """

    plane: AnyPlane
    others: list[AnyPlane]
    reason: str = ""
    unseen: tuple[str, ...] = ()

    @cached_property
    def read(self) -> Callable[[AnyPlane, Family], Any]:
        """Returns what a plane holds."""
        return cache(lambda plane, family: plane.read(family))

    def held(self, plane: AnyPlane, family: Family) -> Any:
        """Return what a plane holds, where any of it is ours; None elsewhere."""
        state = self.read(plane, family)
        return state if plane.dialect.describe(state) else None

    def holds(self, plane: AnyPlane) -> bool:
        """Whether a plane holds anything of ours, as far as it can be read."""
        with suppress(AgentError):
            return any(self.held(plane, family) is not None for family in Family)
        return False

    @cached_property
    def _beside(self) -> tuple[dict[tuple[AnyPlane, Family], Any], dict[str, None]]:
        """What the others hold of ours, and why some of them cannot be looked into."""
        states: dict[tuple[AnyPlane, Family], Any] = {}
        unread: dict[str, None] = {}
        for other in self.others:
            for family in Family:
                try:
                    if (state := self.held(other, family)) is not None:
                        states[other, family] = state
                except AgentError as error:
                    unread[f"{other.name} cannot be looked into: {error}"] = None
        return states, unread

    @property
    def elsewhere(self) -> list[str]:
        """Names of the others that hold rules of ours which are in force."""
        return list(dict.fromkeys(plane.name for plane, _ in self._beside[0]))

    @property
    def left(self) -> tuple[str, ...]:
        """A line for each of them."""
        return tuple(f"{name} holds rules of ours that decide too" for name in self.elsewhere)

    @property
    def unread(self) -> tuple[str, ...]:
        """Why others, which may, cannot be looked into."""
        return (*self.unseen, *self._beside[1])

    @cached_property
    def egress(self) -> tuple[str, ...]:
        """The devices through which traffic leaves the node."""
        return egress_devices()

    def hook(self, family: Family, plane: AnyPlane | None = None) -> PostroutingHook:
        """Return what stands at the hook beside what a plane holds of ours."""
        return read_hook(family, (plane or self.plane).our_base(family), self.egress)

    def now(self, family: Family, state: Any) -> tuple[AnyPlane, Any]:
        """Return the data plane whose rules decide now, and its state.

        Of several, those at the hook count as what stands there; programs have their turn last.
        The one asked about, which holds ``state``, stands for all where none holds anything.
        """
        own = (self.plane, state)
        held = [own] if self.plane.dialect.describe(state) else []
        held += [(other, its) for (other, of), its in self._beside[0].items() if of is family]
        return min(held, key=lambda one: one[0].our_base(family) is not None, default=own)

    def leaving(self, other: AnyPlane) -> list[str]:
        """Return the lines that leaving a plane would remove, of both families."""
        plan, absent = other.dialect.plan, other.dialect.absent
        return [line for f in Family for line in plan(self.read(other, f), absent(f)).removed]

    def ports(self) -> tuple[PortRange, ...]:
        """Return the port ranges that our rules give, to one of the families or both."""
        for family in Family:
            state = self.plane.read_at(family, 0)
            if ports := self.plane.dialect.interpret(state).policy.action.ports:
                return ports
        return ()


@contextmanager
def here(
    settings: Settings, intent: Intent | None = None, *, at_work: bool = False
) -> Iterator[Here]:
    """Give the data planes of this node, and give back what they hold on it.

    Args:
        settings: name the backend.
        intent: what is meant to be there, of which the choice depends.
        at_work: the question is about no document: where no backend was named, one that holds
            our rules counts before the one that an agent would take.

    Raises:
        AgentError: the node's backend cannot be told.
    """
    choice = backend_choice(settings)
    try:
        plane, others = choice.current(large=intent is not None and intent.is_large)
        found = Here(plane, others, choice.reason, choice.unseen)
        if at_work and settings.backend == "auto":
            every = plane, *others
            found.plane = next(filter(found.holds, every), plane)
            found.others = [each for each in every if each is not found.plane]
        yield found
    finally:
        choice.close()


class FamilyChange:
    """A family of this node's data plane as it is, and as it is meant."""

    def __init__(self, here: Here, family: Family, intent: Intent) -> None:
        self._here, self._family = here, family
        self._dialect = here.plane.dialect
        self._actual = here.read(here.plane, family)
        self._plan = None
        if family in intent.config.families:
            self._plan = self._dialect.plan(self._actual, intent.desired(here.plane, family))
        self._later = self._plan.result if self._plan else self._actual

    @cached_property
    def _sides(self) -> tuple[tuple[AnyPlane, Any, PostroutingHook], PostroutingHook]:
        """Which plane decides now, what it holds and what is around it; what will be around."""
        here, family = self._here, self._family
        now, held = here.now(family, self._actual)
        hook = here.hook(family)
        around = hook if now is here.plane else here.hook(family, now)
        gone = [base for other in here.others if (base := other.our_base(family)) is not None]
        return (now, held, around), hook.without(gone)

    def diff(self) -> FamilyDiff:
        """Return what would change, in rules and in decisions."""
        if not self._plan and not self._here.others:
            return FamilyDiff(self._family)
        (now, held, around), hook = self._sides
        later = self._dialect.interpret(self._later)
        asked = usual(later.policy.guards, hook)
        before = joined(now.dialect.interpret(held), neighbours(around, asked))
        after = joined(later, neighbours(hook, asked))
        return FamilyDiff(
            self._family,
            before=tuple(self._dialect.describe(self._actual)),
            after=tuple(self._dialect.describe(self._later)),
            added=tuple(self._plan.added) if self._plan else (),
            removed=tuple(self._plan.removed) if self._plan else (),
            decisions=tuple(decision_changes(before.policy.decisions, after.policy.decisions)),
        )

    def rulings(self) -> tuple[AnyPlane, tuple[Ruling, Ruling]]:
        """Return which data plane decides about connections now, how, and how it will be."""
        (now, held, around), hook = self._sides
        before = Ruling(partial(now.dialect.interpret, held), around)
        return now, (before, Ruling(partial(self._dialect.interpret, self._later), hook))
