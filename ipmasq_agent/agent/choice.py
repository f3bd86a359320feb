"""Which backend is in use now, and which ones have to be cleaned after a move."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ipmasq_agent.errors import AgentError
from ipmasq_agent.planes.plane import AnyPlane


class PlaneChoice:
    """Asks again at every pass which backend the node uses, and remembers those we left.

    Attributes:
        reason: why the current one was chosen.
        unseen: why other data planes could not be looked into; empty where they could.
    """

    def __init__(
        self,
        detect: Callable[[bool], tuple[str, str]],
        make: Callable[[str], AnyPlane],
        holders: Callable[[], list[str]],
        home: Callable[[str], str],
        leavings: Callable[[], list[str]] = list,
    ) -> None:
        """Take the questions as functions.

        Args:
            detect: returns the name of the backend to use and why, told whether the policy
                is too large for one rule each.
            make: returns the backend of a name.
            holders: names of the backends whose tables exist on this host, and which may
                therefore hold rules that we wrote before.
            home: returns what two planes have in common whose state is the same in the kernel
                (a chain of rules, and the same chain with a set): each replaces the other.
            leavings: names of those of which cheap signs tell that something of ours is
                there, written since by an agent that was on its way out.
        """
        self._detect = detect
        self._make = make
        self._holders = holders
        self._leavings = leavings
        self._home = home
        self._looked = False
        self._made: dict[str, AnyPlane] = {}
        self._current: str | None = None
        self._to_clean: set[str] = set()
        self.reason = "not chosen yet"
        self.unseen: tuple[str, ...] = ()

    def current(
        self, *, large: bool = False, look: bool = False
    ) -> tuple[AnyPlane, list[AnyPlane]]:
        """Return the backend to use, and those that must be cleaned once it is in force.

        At the first call every other place with a table counts as left behind: the agent
        may have been killed in the middle of a move. Two backends of one place (a chain of
        rules, and the same chain with a set) replace each other and leave nothing.

        Args:
            large: the policy is too large for one rule each.
            look: look again for what was left in other places.

        Raises:
            AgentError: the node's backend cannot be told.
        """
        name, self.reason = self._detect(large)
        backend = self._get(name)
        if look or not self._looked:
            self._look()
        if self._current is not None and self._current != name:
            self._to_clean.add(self._current)
        for other in list(self._to_clean):
            if self._home(other) == self._home(name):
                self._to_clean.discard(other)
                if other != name and other in self._made:
                    # What it remembers of the state will not be true any more.
                    self._made.pop(other).close()
        self._current = name
        return backend, [self._get(other) for other in sorted(self._to_clean)]

    def _look(self) -> None:
        """Ask what was left; a look that fails stops no pass, and is made again."""
        try:
            self._to_clean |= set(self._leavings() if self._looked else self._holders())
        except AgentError as error:
            self.unseen = (f"other data planes cannot be looked into: {error}",)
        else:
            self._looked, self.unseen = True, ()

    @property
    def in_use(self) -> AnyPlane | None:
        """The backend of the latest pass; None before the first."""
        return self._made.get(self._current) if self._current is not None else None

    def cleaned(self, backend: AnyPlane) -> None:
        """Forget a backend that holds nothing of ours any more."""
        for name in [name for name, made in self._made.items() if made is backend]:
            self._to_clean.discard(name)
            self._made.pop(name).close()

    def every(self) -> Iterator[AnyPlane]:
        """Yield all backends that may hold rules of ours, for leaving without a trace.

        Raises:
            AgentError: there may be more, which cannot be told; after those that we know of.
        """
        names, failed = set(self._made) | self._to_clean, None
        try:
            names |= set(self._holders())
        except AgentError as error:
            failed = error
        for name in sorted(names):
            yield self._get(name)
        if failed is not None:
            raise failed

    def close(self) -> None:
        """Close every backend that was made."""
        for backend in self._made.values():
            backend.close()
        self._made.clear()

    def _get(self, name: str) -> AnyPlane:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]
