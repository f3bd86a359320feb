"""How many flows rules let pass and translated, added up from their own counters.

The first packet of a connection meets the nat chains, and no other does: what a rule there
counts are flows. The kernel forgets what a rule counted with the rule, so what is told are the
sums of what came since the first question, by whatever rules.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

from ipmasq_agent.errors import AgentError
from ipmasq_agent.policy.addresses import Family

ENTERED, TRANSLATED = "entered", "translated"
Counts = Iterable[tuple[Hashable, str, int]]
"""Of each rule what tells it from others, ENTERED or TRANSLATED, and how many packets."""


class FlowCount:
    """Flows by outcome, of both families; in any thread.

    Args:
        read: returns what the rules of a family have counted, those that packets come in by
            first: what is translated meanwhile is then counted the next time.
    """

    def __init__(self, read: Callable[[Family], Counts]) -> None:
        self._read = read
        self._one_at_a_time = threading.Lock()
        self._before: dict[Family, Mapping[tuple[Hashable, str], int]] = {}
        self._sums: Counter[tuple[Family, str]] = Counter()

    def told(self) -> dict[tuple[Family, str], int]:
        """Read the counters, and return how many flows there were since this was first asked.

        Raises:
            AgentError: they cannot be read.
        """
        with self._one_at_a_time:
            for family in Family:
                self._take(family)
            return {key: n for key, n in self._sums.items() if n and key[1].startswith("flows_")}

    @contextlib.contextmanager
    def rewriting(self, family: Family) -> Iterator[None]:
        """Read what rules have counted that are about to go, and what the new ones begin with."""
        self._keep(family)
        try:
            yield
        finally:
            self._keep(family)

    def _keep(self, family: Family) -> None:
        """Read the counters if anybody ever asked for them."""
        # Who is asking now reads them as well; a pass waits for nobody, nor fails for a number.
        if family in self._before and self._one_at_a_time.acquire(blocking=False):
            try:
                with contextlib.suppress(AgentError):
                    self._take(family)
            finally:
                self._one_at_a_time.release()

    def _take(self, family: Family) -> None:
        now: Counter[tuple[Hashable, str]] = Counter()
        for rule, what, packets in self._read(family):
            now[rule, what] += packets
        before = self._before.get(family)
        self._before[family] = now
        if before is None:
            return
        sums = self._sums
        for key, packets in now.items():
            what, was = key[1], before.get(key, 0)
            # Less than before: another rule, which counts from 0 on.
            sums[family, what] += packets - was if packets >= was else packets
        kept = sums[family, ENTERED] - sums[family, TRANSLATED]
        sums[family, "flows_kept"] = max(sums[family, "flows_kept"], kept)
        sums[family, "flows_translated"] = sums[family, TRANSLATED]
