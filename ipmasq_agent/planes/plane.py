"""The contract: what a data plane is to the agent and to the verbs, in two halves.

Its ``Dialect`` is pure: what the plane must hold to decide as a policy does, what leads there
from what it holds, and what any state of it decides. The ``Plane`` reaches one host's kernel:
it reads such states and carries out such changes. Neither knows of documents or of other
planes. What only some planes can do is a class of its own, and who needs it asks for it.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ipmasq_agent.planes.interpretation import Interpretation
from ipmasq_agent.planes.placement import OurBase
from ipmasq_agent.planes.usage import Usage
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import Fact
from ipmasq_agent.policy.flows import Flow
from ipmasq_agent.policy.model import Capabilities, FamilyPolicy
from ipmasq_agent.policy.ports import PortUse
from ipmasq_agent.policy.tally import Tally

State = TypeVar("State")
StateOut = TypeVar("StateOut", covariant=True)
Desired = TypeVar("Desired")


class Change(Protocol[StateOut]):
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

    @property
    def result(self) -> StateOut:
        """The state that it leads to."""


Plan = TypeVar("Plan", bound=Change[Any])


def _nothing_to_say(desired: object) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Dialect(Generic[State, Desired, Plan]):
    """The pure half of a data plane.

    Attributes:
        compile: returns what the plane must hold to decide as a policy does. ``HostError``
            where the plane cannot express that.
        absent: returns what it must hold to have nothing of ours.
        plan: returns the change from a state to what is desired. ``KernelReadError`` where
            what is there cannot be understood, or is somebody else's.
        describe: returns our part of a state, line by line, in the plane's own syntax.
        interpret: returns what our part of a state decides, for every source or for one.
        advice: returns what a user should know about holding this; None for nothing.
    """

    compile: Callable[[FamilyPolicy], Desired]
    absent: Callable[[Family], Desired]
    plan: Callable[[State, Desired], Plan]
    describe: Callable[[State], list[str]]
    interpret: Callable[..., Interpretation]
    advice: Callable[[Desired], str | None] = _nothing_to_say


class Plane(abc.ABC, Generic[State, Desired, Plan]):
    """The kernel half: one data plane on one host.

    Attributes:
        name: what users call it: ``iptables-nft``, ``ipset``.
        dialect: its pure half.
        needs: facts of the host whose change calls for a pass, whatever the document says.
        in_nf_tables: whether any commit there may have changed what is ours.
    """

    name: str
    dialect: Dialect[State, Desired, Plan]
    needs: frozenset[Fact[Any]] = frozenset()
    in_nf_tables = False

    def capabilities(self, family: Family) -> Capabilities:
        """Return what this host can do, asked once and without touching the kernel."""
        return Capabilities()

    def our_base(self, family: Family) -> OurBase | None:
        """Return where packets come to what is ours at the postrouting hook.

        None for programs, which have their turn after all that stands there.
        """
        return None

    @abc.abstractmethod
    def read(self, family: Family) -> State:
        """Return what the kernel holds of ours, and where it stands: what a pass needs.

        What that costs follows from what is ours, however much others have beside it.

        Raises:
            KernelReadError: it cannot be read in full.
        """

    def recall(self, family: Family) -> State:
        """Return what the kernel holds, without asking for what it cannot have lost.

        A plane of sets remembers a hundred thousand elements that it read or wrote, as
        long as cheap signs (a generation number, a count) agree with them. It is what a
        change of the document is planned on; each resync reads in full.
        """
        return self.read(family)

    def read_at(self, family: Family, destination: int) -> State:
        """Return a state that is right about one destination; cheaper than ``read``."""
        return self.read(family)

    @abc.abstractmethod
    def apply(self, family: Family, change: Plan) -> None:
        """Carry out ``change`` in one transaction: all of it, or nothing and an error."""

    @abc.abstractmethod
    def disturbed(self, failing: Collection[Family] = ()) -> bool:
        """Return whether others changed what a pass left, as far as a cheap look can tell.

        Args:
            failing: families that the latest pass did not bring to what is asked for: a look
                at those would find what the next pass finds.

        Raises:
            AgentError: it cannot be told.
        """

    def host_changed(self, before: State, after: State) -> bool:
        """Return whether the host asks for another state than when ``before`` was read.

        Word of that comes by what the plane ``needs``, so what is missing for it is no failure.
        """
        return False

    @contextmanager
    def session(self, family: Family) -> Iterator[None]:
        """Keep others from writing between a read and the write that builds on it.

        A plane whose kernel interface guards its transactions by itself does nothing.
        """
        yield

    def counters(self) -> Mapping[tuple[Family, str], int]:
        """Return how often each outcome was met, as far as the plane counts; in any thread.

        Raises:
            AgentError: that cannot be read.
        """
        return {}

    def close(self) -> None:
        """Give back what the plane holds on this host (processes, files), not its rules."""
        return None


AnyPlane = Plane[Any, Any, Any]


class Beginnings(Protocol):
    """Connections as they are made; to be closed in the end."""

    def read(self, seconds: float) -> list[tuple[float, Flow]]:
        """Return those that were made, each with the moment of time(2), in their order.

        Args:
            seconds: to wait at most for the first one.

        Raises:
            AgentError: there is nothing to read any more.
        """

    def stop(self) -> None:
        """Listen to no more; those that were made before are still to be read."""

    @property
    def missed(self) -> int:
        """How many were made beside those that are read, since this was opened."""

    def close(self) -> None:
        """Hold nothing any more."""


class Translator(abc.ABC):
    """A plane that translates by itself, so that its flows would break without it.

    What connection tracking translates goes on whatever becomes of the rules. Methods raise
    AgentError where something cannot be told or done.
    """

    @abc.abstractmethod
    def announce(self) -> None:
        """Prepare for another plane that is about to be in force beside this one."""

    @abc.abstractmethod
    def flows(self, port: int | None = None) -> Iterator[Flow]:
        """Yield the flows that leave the node, of both families."""

    @abc.abstractmethod
    def beginnings(self) -> Beginnings:
        """Listen to flows that leave the node, as they begin."""

    @abc.abstractmethod
    def ports_taken(self, most: int) -> Tally[PortUse]:
        """Count the translated flows by what shares ports; return those with most."""

    @abc.abstractmethod
    def drain(self) -> int:
        """Leave new flows to another plane; return how many of ours would break without us."""

    @abc.abstractmethod
    def remove_unread(self, family: Family) -> Change[Any] | None:
        """Remove what is ours though it may not be read, with the flows that go on there.

        Returns:
            What was removed, which may be more than this family's; None where that cannot
            be done.

        Raises:
            AgentError: it was tried, and something is left.
        """

    @abc.abstractmethod
    def sweep(self) -> float:
        """Forget flows that have ended; return the seconds until that is due again.

        In a thread of its own, beside whatever else is asked of the plane.
        """

    @abc.abstractmethod
    def usage(self) -> Usage:
        """Return how full its tables were at the latest sweep, and where ports ran out."""
