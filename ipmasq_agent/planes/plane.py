"""A dialect joined to a kernel: read what it holds, plan, apply.

A backend knows one data plane and nothing of documents or of other backends.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from ipmasq_agent.planes.interpretation import Interpretation
from ipmasq_agent.planes.placement import OurBase
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import Fact
from ipmasq_agent.policy.model import Capabilities, FamilyPolicy


class Change(Protocol):
    """What turns one state of a data plane into another; false when nothing does."""

    def __bool__(self) -> bool: ...

    @property
    def counts(self) -> tuple[int, int]:
        """How many lines come and how many go, without writing them down."""

    @property
    def added(self) -> Sequence[str]:
        """What comes, line by line."""

    @property
    def removed(self) -> Sequence[str]:
        """What goes, line by line."""


State = TypeVar("State")
Desired = TypeVar("Desired")
Plan = TypeVar("Plan", bound=Change)


class Plane(abc.ABC, Generic[State, Desired, Plan]):
    """One data plane on one host.

    ``compile``, ``absent``, ``plan``, ``after`` and ``interpret`` are the dialect's, pure;
    ``read``, ``apply`` and ``session`` reach the kernel.
    """

    name: str
    """What users call it: ``iptables-nft``, ``ipset``."""
    place: str
    """Where in the kernel its state lives. Of two backends of one place, each replaces the
    other's state by its own in one change; nothing is left to clean after such a move."""
    glances: bool = False
    """The kernel does not tell when somebody takes away what is ours, so we look now and then."""
    needs: frozenset[Fact[Any]] = frozenset()
    """Facts of the host whose change calls for a pass, whatever the document says."""

    @abc.abstractmethod
    def capabilities(self, family: Family) -> Capabilities:
        """Return what this host can do, asked once and without touching the kernel."""

    @abc.abstractmethod
    def compile(self, policy: FamilyPolicy) -> Desired:
        """Return what the data plane must hold to decide as ``policy`` does."""

    @abc.abstractmethod
    def absent(self, family: Family) -> Desired:
        """Return the state that holds nothing of ours."""

    @abc.abstractmethod
    def plan(self, actual: State, desired: Desired) -> Plan:
        """Return the change from one to the other, false when there is none."""

    @abc.abstractmethod
    def after(self, actual: State, desired: Desired) -> State:
        """Return the state once the plan was applied."""

    @abc.abstractmethod
    def describe(self, state: State) -> list[str]:
        """Return our part of a state, line by line, in the data plane's own syntax."""

    @abc.abstractmethod
    def interpret(self, state: State, source: int | None = None) -> Interpretation:
        """Return what our part of a state decides, for every source or for one."""

    @abc.abstractmethod
    def read(self, family: Family) -> State:
        """Return what the kernel holds of ours, and where it stands: what a pass needs.

        What that costs follows from what is ours, however much others have beside it.

        Raises:
            KernelReadError: it cannot be read in full.
        """

    def recall(self, family: Family) -> State:
        """Return what the kernel holds, without asking for what it cannot have lost.

        A backend of sets remembers a hundred thousand elements that it read or wrote, as
        long as cheap signs (a generation number, a count) agree with them. It is what a
        change of the document is planned on; each resync reads in full.

        Raises:
            KernelReadError: as ``read``.
        """
        return self.read(family)

    def read_at(self, family: Family, destination: int) -> State:
        """Return a state that is right about one destination; cheaper than ``read``."""
        return self.read(family)

    @abc.abstractmethod
    def apply(self, family: Family, change: Plan) -> None:
        """Carry out ``change`` in one transaction: all of it, or nothing and an error."""

    @contextmanager
    def session(self, family: Family) -> Iterator[None]:
        """Keep others from writing between a read and the write that builds on it.

        A backend whose kernel interface guards its transactions by itself does nothing.
        """
        yield

    def our_base(self, family: Family) -> OurBase | None:
        """Return where packets come to what is ours at the postrouting hook.

        None for programs, which have their turn after all that stands there.
        """
        return None

    def advice(self, desired: Desired) -> str | None:
        """Return what a user should know about holding ``desired`` this way; None for nothing."""
        return None

    def disturbed(self) -> bool:
        """Return whether what is in force was taken away, as far as a glance can tell.

        Raises:
            AgentError: it cannot be told.
        """
        return False

    def announce(self) -> None:
        """Prepare for another backend that is about to be in force beside this one.

        Raises:
            AgentError: flows that are translated here may not go on there.
        """
        return None

    def drain(self) -> int:
        """Leave new flows to another backend; return how many of ours would break without us.

        What connection tracking translates goes on by itself, so there is nothing to wait
        for unless a backend translates on its own.

        Raises:
            AgentError: it cannot be told.
        """
        return 0

    def remove_unread(self, family: Family) -> Plan | None:
        """Remove what is ours though it may not be read, with the flows that go on there.

        Returns:
            What was removed, which may be more than this family's; None where that cannot
            be done.

        Raises:
            AgentError: it was tried, and something is left.
        """
        return None

    def counters(self) -> Mapping[tuple[Family, str], int]:
        """Return how often each outcome was met, where the data plane counts by itself.

        Raises:
            AgentError: they cannot be read.
        """
        return {}

    def close(self) -> None:
        """Give back what the backend holds on this host (processes, files), not its rules."""
        return None


AnyPlane = Plane[Any, Any, Any]
