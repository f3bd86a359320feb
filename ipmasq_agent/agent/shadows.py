"""Watches for rules of others that decide in place of the policy, and says so once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.answers.overrides import Overridden, Shadow, shadow
from ipmasq_agent.errors import AgentError
from ipmasq_agent.logs import event
from ipmasq_agent.planes.placement import OurBase
from ipmasq_agent.planes.plane import AnyPlane
from ipmasq_agent.planes.rules.neighbours import PostroutingHook
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import FamilyPolicy

# What tells that nothing has changed at the hook (None for what gives no sign), the policy that
# was asked about, and what was found.
_Seen = tuple[tuple[int | None, OurBase | None, tuple[str, ...]], FamilyPolicy, Shadow]


class Shadows:
    """Looks at the hook after a pass, where anything there may have changed.

    Args:
        read: returns what stands at the hook of a family, told where our rules are and
                which devices lead out.
        generation: returns the number of nf_tables' state, or None where rules that it does
            not count decide as well.
    """

    def __init__(
        self,
        read: Callable[[Family, OurBase | None, tuple[str, ...]], PostroutingHook],
        generation: Callable[[], int | None],
    ) -> None:
        self._read = read
        self._generation = generation
        self._seen: dict[Family, _Seen] = {}
        self._told: dict[str, Overridden] = {}
        self.overridden: tuple[Overridden, ...] = ()
        self.partial: tuple[str, ...] = ()
        self.unknown: tuple[str, ...] = ()
        """Why it cannot be told what others decide, one line for each family."""

    def look(self, plane: AnyPlane, intent: Intent, egress: tuple[str, ...]) -> None:
        """Find out what others decide about the packets of a policy that is in the kernel."""
        found: dict[Family, Shadow] = {}
        unknown: list[str] = []
        for family in intent.config.families:
            try:
                found[family] = self._shadow(plane, intent.policy(plane, family), egress)
            except AgentError as error:
                self._seen.pop(family, None)
                unknown.append(f"{family.value}: what others decide cannot be told: {error}")
        for line in unknown:
            if line not in self.unknown:
                event(logging.WARNING, line)
        self.unknown = tuple(unknown)
        self._tell(found)

    def _shadow(self, plane: AnyPlane, policy: FamilyPolicy, egress: tuple[str, ...]) -> Shadow:
        family = policy.family
        ours = plane.our_base(family)
        signs = self._generation(), ours, egress
        seen = self._seen.get(family)
        if seen and signs[0] is not None and seen[0] == signs and seen[1] is policy:
            return seen[2]
        found = shadow(policy, self._read(family, ours, egress))
        self._seen[family] = signs, policy, found
        return found

    def _tell(self, found: Mapping[Family, Shadow]) -> None:
        self.overridden = tuple(item for each in found.values() for item in each.overridden)
        self.partial = tuple(line for each in found.values() for line in each.partial)
        told = {f"{item.family.value}: {item}": item for item in self.overridden}
        for line in told.keys() - self._told.keys():
            event(logging.WARNING, "somebody else decides", what=line)
        if self._told and not told and not self.unknown:
            event(logging.INFO, "nobody else decides any more")
        self._told = told
