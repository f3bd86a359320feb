"""What is meant to be in force: a configuration and the facts it is made with, each step made once.

Resyncs come every minute with nothing changed, and a policy of a hundred thousand prefixes
takes a good part of a second to make.
"""

from __future__ import annotations

from typing import Any, cast

from ipmasq_agent.config.assemble import assemble_family, is_large
from ipmasq_agent.config.model import Config
from ipmasq_agent.planes.plane import Desired, Plan, Plane, State
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import NO_FACTS, Facts
from ipmasq_agent.policy.model import Capabilities, FamilyPolicy


class Intent:
    """A configuration made into policies, and these into what a plane must hold.

    Attributes:
        facts: what it depends on; all that it needs is learnt.
    """

    def __init__(self, config: Config, facts: Facts = NO_FACTS) -> None:
        self.config = config
        self.facts = facts
        self._policies: dict[Family, tuple[Capabilities, FamilyPolicy]] = {}
        self._desired: dict[Family, tuple[Any, FamilyPolicy, Any]] = {}

    @property
    def is_large(self) -> bool:
        """Whether one rule for each prefix would be too many."""
        return is_large(self.config, self.facts)

    def policy(self, plane: Plane[State, Desired, Plan], family: Family) -> FamilyPolicy:
        """Return the policy of a family, for what the backend's host can do."""
        # Asked for each family: one may lack its programs, and the other must not suffer.
        capabilities = plane.capabilities(family)
        known = self._policies.get(family)
        if known is None or known[0] != capabilities:
            policy = assemble_family(self.config, family, capabilities, self.facts)
            known = self._policies[family] = capabilities, policy
        return known[1]

    def desired(self, plane: Plane[State, Desired, Plan], family: Family) -> Desired:
        """Return what the plane must hold of a family."""
        policy = self.policy(plane, family)
        known = self._desired.get(family)
        if known is None or known[0] is not plane or known[1] is not policy:
            known = self._desired[family] = plane, policy, plane.dialect.compile(policy)
        return cast(Desired, known[2])
