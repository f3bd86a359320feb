"""Lines that programs on many nodes print, in the order of their times."""

from __future__ import annotations

import heapq
import selectors
import time
from collections.abc import Callable, Iterator, Mapping

from ipmasq_agent.errors import SourceUnavailable
from ipmasq_agent.sources.kube_exec import ENDED, STDERR, STDOUT, Exec

# Seconds for which a line is held, for one of an earlier time from a node that is farther away.
HELD = 1.0
_RECEIVING = 5.0  # seconds that the rest of a message may take


class Merged:
    """The lines of programs that are being run.

    Args:
        programs: by node.
        moment: returns the time that a line tells; lines are sorted by it.
        ended: is told of a node whose program has ended, with the last that it said.
    """

    def __init__(
        self,
        programs: Mapping[str, Exec],
        moment: Callable[[bytes], str],
        ended: Callable[[str, str], None],
    ) -> None:
        self._selector = selectors.DefaultSelector()
        self._moment, self._ended = moment, ended
        self._waiting: list[tuple[str, int, float, str, bytes]] = []
        self._count = 0
        self._rest: dict[tuple[str, int], bytes] = {}
        for node, program in programs.items():
            self._selector.register(program, selectors.EVENT_READ, node)

    def lines(self) -> Iterator[tuple[str, bytes]]:
        """Yield node and line until all programs have ended."""
        while self._selector.get_map() or self._waiting:
            for key, _ in self._selector.select(HELD / 4):
                assert isinstance(key.fileobj, Exec)
                self._receive(key.data, key.fileobj)
            # Lines are held by when they came: clocks of nodes may differ by more.
            oldest = time.monotonic() - (HELD if self._selector.get_map() else 0)
            while self._waiting and self._waiting[0][2] <= oldest:
                _, _, _, node, line = heapq.heappop(self._waiting)
                yield node, line

    def close(self) -> None:
        """End the programs."""
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, Exec)
            key.fileobj.close()
        self._selector.close()

    def _receive(self, node: str, program: Exec) -> None:
        try:
            while True:
                stream, data = program.receive(_RECEIVING)
                if stream == ENDED:
                    self._end(
                        node, program, self._rest.pop((node, STDERR), b"").decode(errors="replace")
                    )
                    return
                self._take(node, stream, data)
                if not program.pending:
                    return
        except SourceUnavailable as error:
            self._end(node, program, error.message)

    def _take(self, node: str, stream: int, data: bytes) -> None:
        if stream == STDERR:  # the last of it is worth telling, when the program ends
            self._rest[node, stream] = (self._rest.get((node, stream), b"") + data)[-4000:]
            return
        if stream != STDOUT:
            return
        *lines, rest = (self._rest.pop((node, stream), b"") + data).split(b"\n")
        self._rest[node, stream] = rest
        for line in lines:
            self._count += 1
            entry = self._moment(line), self._count, time.monotonic(), node, line
            heapq.heappush(self._waiting, entry)

    def _end(self, node: str, program: Exec, why: str) -> None:
        self._selector.unregister(program)
        program.close()
        self._ended(node, why.strip())
