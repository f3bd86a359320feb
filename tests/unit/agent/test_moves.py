"""What a data plane translates by itself goes on after a move away from it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from ipmasq_agent.agent.moves import Moves
from ipmasq_agent.agent.reconcile import Outcomes
from ipmasq_agent.errors import HostError, NotPermitted
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.plane import Beginnings, Translator
from ipmasq_agent.planes.rules.table import Table
from ipmasq_agent.planes.usage import Usage
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.flows import Flow
from ipmasq_agent.policy.ports import PortUse
from ipmasq_agent.policy.tally import Tally
from tests.memory import MemoryPlane


class Translating(MemoryPlane, Translator):
    """A backend with flows of its own."""

    def __init__(self, flows: int, *, mute: bool = False) -> None:
        super().__init__(Placement())
        self.going = flows
        self.announced = 0
        self.mute = mute
        self.sealed = False
        self.removable = True
        self.removed_unread = False

    def announce(self) -> None:
        self.announced += 1
        if self.mute:
            raise HostError("there is no connection tracking")

    def drain(self) -> int:
        if self.sealed:
            raise NotPermitted("may not open the maps")
        return self.going

    def read(self, family: Family) -> Table:
        if self.sealed:
            raise NotPermitted("may not open the maps")
        return super().read(family)

    def beginnings(self) -> Beginnings:
        raise AssertionError("nobody asks")

    def flows(self, port: int | None = None) -> Iterator[Flow]:
        raise AssertionError("nobody asks")

    def ports_taken(self, most: int) -> Tally[PortUse]:
        raise AssertionError("nobody asks")

    def counters(self) -> dict[tuple[Family, str], int]:
        return {}

    def sweep(self) -> float:
        return 60.0

    def usage(self) -> Usage:
        return Usage()

    def remove_unread(self, family: Family) -> Any:
        if not self.removable:
            return None
        self.sealed = False
        change = self.dialect.plan(super().read(family), self.dialect.absent(family))
        self.removed_unread = True
        return change


def left(moves: Moves, other: Translating) -> tuple[bool, tuple[str, ...]]:
    """Complete a move, and return whether the backend was cleaned, and what failed."""
    done: list[Outcomes] = []
    failures = moves.complete([other], lambda _, outcomes: done.append(outcomes))
    return bool(done) and not failures, failures


def test_flows_are_announced_once_a_move_and_waited_for() -> None:
    moves, other = Moves(60), Translating(2)
    for _ in range(3):
        moves.announce([other])
        assert left(moves, other) == (False, ())
        assert moves.advice == (f"{other.name}: 2 flows go on there until they end",)
    assert other.announced == 1
    other.going = 0
    moves.announce([other])
    assert left(moves, other) == (True, ())
    assert moves.advice == ()


def test_a_backend_that_was_come_back_to_is_left_anew() -> None:
    moves, other = Moves(60), Translating(2)
    for there in ([other], [], [other]):
        moves.announce(there)
        for one in there:
            assert left(moves, one) == (False, ())
    assert other.announced == 2


def test_patience_ends(caplog: pytest.LogCaptureFixture) -> None:
    moves, other = Moves(0), Translating(2)
    moves.announce([other])
    with caplog.at_level(logging.INFO):
        assert left(moves, other) == (True, ())
    # Told as an end, and not as so many seconds that are left.
    assert [record.message for record in caplog.records] == ["flows end"]


def test_a_move_goes_on_where_flows_cannot_be_announced(caplog: pytest.LogCaptureFixture) -> None:
    moves, other = Moves(60), Translating(0, mute=True)
    with caplog.at_level(logging.WARNING):
        moves.announce([other])
    assert "flows may break" in caplog.text
    assert left(moves, other) == (True, ())


def test_a_plane_that_may_not_be_opened_goes_at_once(caplog: pytest.LogCaptureFixture) -> None:
    moves, other = Moves(60), Translating(2)
    other.sealed = True
    with caplog.at_level(logging.WARNING):
        assert left(moves, other) == (True, ())
    assert other.removed_unread
    assert "flows end" in caplog.text


def test_a_plane_that_can_neither_be_read_nor_removed_is_an_error_at_each_pass() -> None:
    moves, other = Moves(60), Translating(2)
    other.sealed, other.removable = True, False
    for _ in range(3):
        assert left(moves, other) == (
            False,
            (f"{other.name} cannot be left: may not open the maps",),
        )
