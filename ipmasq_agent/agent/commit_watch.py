"""The loop is told of commits to nf_tables, so that what they took from us is put back at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from ipmasq_agent.agent.choice import PlaneChoice
from ipmasq_agent.agent.side_thread import SideThread
from ipmasq_agent.netlink.nft_events import Commits
from ipmasq_agent.planes.plane import AnyPlane

_TURN = 5.0
"""Seconds after which the thread looks whether it is to end."""
_BREATH = 0.01
"""Seconds between two words: who restores a table by many commits makes many in a row."""


class CommitWatch(SideThread):
    """Tells of commits by anybody, ours included: whether one matters, a look tells."""

    name = "commits"

    def __init__(self, choice: PlaneChoice, tell: Callable[[], None]) -> None:
        super().__init__(choice)
        self._tell = tell

    def _concerns(self, plane: AnyPlane) -> bool:
        return plane.in_nf_tables

    def _work(self) -> None:
        with closing(Commits()) as commits:
            # What came before we listened is nobody's news.
            self._tell()
            while not self._stopping.wait(_BREATH):
                if commits.wait(_TURN):
                    self._tell()
