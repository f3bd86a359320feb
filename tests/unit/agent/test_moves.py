"""What a data plane translates by itself goes on after a move away from it."""

from __future__ import annotations

import logging

import pytest

from ipmasq_agent.agent.moves import Moves
from ipmasq_agent.backends.memory import MemoryBackend
from ipmasq_agent.dialects.iptables import Placement
from ipmasq_agent.errors import HostError


class Translating(MemoryBackend):
    """A backend with flows of its own."""

    def __init__(self, flows: int, *, mute: bool = False) -> None:
        super().__init__(Placement())
        self.flows = flows
        self.announced = 0
        self.mute = mute

    def announce(self) -> None:
        self.announced += 1
        if self.mute:
            raise HostError("there is no connection tracking")

    def drain(self) -> int:
        return self.flows


def test_flows_are_announced_once_a_move_and_waited_for() -> None:
    moves, left = Moves(60), Translating(2)
    for _ in range(3):
        moves.announce([left])
        assert not moves.drained(left)
        assert moves.advice == (f"{left.name}: 2 flows go on there until they end",)
    assert left.announced == 1
    left.flows = 0
    moves.announce([left])
    assert moves.drained(left)
    assert moves.advice == ()


def test_a_backend_that_was_come_back_to_is_left_anew() -> None:
    moves, left = Moves(60), Translating(2)
    for there in ([left], [], [left]):
        moves.announce(there)
        for one in there:
            assert not moves.drained(one)
    assert left.announced == 2


def test_patience_ends() -> None:
    moves, left = Moves(0), Translating(2)
    moves.announce([left])
    assert moves.drained(left)


def test_a_move_goes_on_where_flows_cannot_be_announced(caplog: pytest.LogCaptureFixture) -> None:
    moves, left = Moves(60), Translating(0, mute=True)
    with caplog.at_level(logging.WARNING):
        moves.announce([left])
    assert "flows may break" in caplog.text
    assert moves.drained(left)
