"""Which backend is in use now, and which ones have to be cleaned after a move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ipmasq_agent.backends import Backend
from ipmasq_agent.errors import AgentError

AnyBackend = Backend[Any, Any, Any]


class BackendChoice:
    """Asks again at every pass which backend the node uses, and remembers those we left.

    Attributes:
        reason: why the current one was chosen.
    """

    def __init__(
        self,
        detect: Callable[[], tuple[str, str]],
        make: Callable[[str], AnyBackend],
        holders: Callable[[], list[str]],
    ) -> None:
        """Take the three questions as functions.

        Args:
            detect: returns the name of the backend to use and why.
            make: returns the backend of a name.
            holders: names of the backends whose tables exist on this host, and which may
                therefore hold rules that we wrote before.
        """
        self._detect = detect
        self._make = make
        self._holders = holders
        self._made: dict[str, AnyBackend] = {}
        self._current: str | None = None
        self._to_clean: set[str] = set()
        self.reason = "not chosen yet"

    def current(self) -> tuple[AnyBackend, list[AnyBackend]]:
        """Return the backend to use, and those that must be cleaned once it is in force.

        At the first call every other backend with a table counts as left behind: the
        agent may have been killed in the middle of a move.

        Raises:
            AgentError: the node's backend cannot be told.
        """
        name, self.reason = self._detect()
        if self._current is None:
            self._to_clean = set(self._holders()) - {name}
        elif self._current != name:
            self._to_clean.add(self._current)
            self._to_clean.discard(name)
        self._current = name
        return self._get(name), [self._get(other) for other in sorted(self._to_clean)]

    def cleaned(self, backend: AnyBackend) -> None:
        """Forget a backend that holds nothing of ours any more."""
        self._to_clean.discard(backend.name)
        self._made.pop(backend.name).close()

    def every(self) -> list[AnyBackend]:
        """Return all backends that may hold rules of ours, for leaving without a trace."""
        try:
            names = set(self._holders())
        except AgentError:
            names = set()  # what we know of ourselves is still cleaned
        return [self._get(name) for name in sorted(names | self._to_clean | set(self._made))]

    def close(self) -> None:
        """Close every backend that was made."""
        for backend in self._made.values():
            backend.close()
        self._made.clear()

    def _get(self, name: str) -> AnyBackend:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]
