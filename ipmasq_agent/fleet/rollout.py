"""A document on its way to nodes: who holds it, who fails, and what is to be done next.

A value that is made anew from what agents say, so that it can be tried without a cluster.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from ipmasq_agent.fleet.nodes import NodeState


class NextStep(enum.Enum):
    """What is to be done next."""

    WAIT = "wait"
    DONE = "done"
    WITHDRAW = "withdraw"


@dataclass(frozen=True, slots=True)
class Rollout:
    """A document, and the nodes that are to hold it.

    Attributes:
        target: its hash.
        nodes: who is waited for.
        grace: seconds for which one of them may be unready, or silent, before it has failed.
        limit: seconds after which one has failed that does not hold it.
        tolerated: how many may fail.
        holding: those that hold it, and are ready.
        ailing: those that are unready or silent → since when, and why.
        failed: those that will not hold it, and why.
        confirmed: at the last look all were asked, and all but those that failed hold it.
    """

    target: str
    nodes: frozenset[str]
    grace: float = 30.0
    limit: float = 600.0
    tolerated: int = 0
    holding: frozenset[str] = frozenset()
    ailing: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    confirmed: bool = False

    @property
    def step(self) -> NextStep:
        """What is to be done next."""
        if len(self.failed) > self.tolerated:
            return NextStep.WITHDRAW
        return NextStep.DONE if self.confirmed else NextStep.WAIT

    @property
    def pending(self) -> frozenset[str]:
        """Who is to be asked next: who does not hold it yet, and in the end all once more."""
        return self.nodes - self.holding - self.failed.keys() or self.nodes

    @property
    def troubled(self) -> dict[str, str]:
        """Who has failed or is about to, and why."""
        about_to = {node: why for node, (_, why) in self.ailing.items()}
        return dict(sorted((about_to | dict(self.failed)).items()))

    def after(
        self, states: Iterable[NodeState], moment: float, present: Collection[str]
    ) -> Rollout:
        """Return what has become of it.

        Args:
            states: what nodes say, or that they say nothing; of all that are pending.
            moment: seconds since the document was written.
            present: nodes that still have an agent. Who left the cluster is not waited for.
        """
        states = list(states)
        nodes = self.nodes & frozenset(present)
        holding, ailing, failed = set(self.holding & nodes), dict(self.ailing), dict(self.failed)
        for each in states:
            holding.discard(each.node)
            why = self._ails(each)
            if why is None:
                ailing.pop(each.node, None)
            else:
                ailing.setdefault(each.node, (moment, why))
            if self._holds(each):
                holding.add(each.node)
                failed.pop(each.node, None)
            elif each.newest == self.target and not each.accepted:
                failed[each.node] = each.why_not(self.target)
            elif why is not None and moment - ailing[each.node][0] >= self.grace:
                failed[each.node] = why
            elif moment >= self.limit:
                failed[each.node] = each.why_not(self.target)
        known = {each.node for each in states}
        return replace(
            self,
            nodes=nodes,
            holding=frozenset(holding),
            ailing={node: found for node, found in ailing.items() if node in nodes},
            failed={node: why for node, why in failed.items() if node in nodes},
            confirmed=nodes <= known and nodes <= holding | failed.keys(),
        )

    def _holds(self, each: NodeState) -> bool:
        return each.held == self.target and each.ready

    def _ails(self, each: NodeState) -> str | None:
        """Return why a node is worse off than by waiting for the document; None if it is not."""
        if each.silent is not None:
            return each.silent
        if self.target in (each.held, each.newest) and not each.ready:
            return each.why_not(self.target)
        return None
