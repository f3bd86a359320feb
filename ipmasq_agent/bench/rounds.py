"""All modes, turn by turn and round by round: A B C, A B C.

First each mode shows on packets that it decides as the document says; one that does not
gets no figures. Then the rounds, each turn in a place of its own.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ipmasq_agent.bench import equality, machine, modes, program
from ipmasq_agent.bench.modes import Effort, Turn
from ipmasq_agent.bench.node import Node
from ipmasq_agent.bench.place import Place
from ipmasq_agent.bench.policies import Policy
from ipmasq_agent.bench.reading import Reading
from ipmasq_agent.bench.results import REFERENCE, Equality, Measure, Mode, Results, Run
from ipmasq_agent.bench.sender import busy_seconds
from ipmasq_agent.bench.udp import Udp
from ipmasq_agent.bench.workloads import ONLY_IPV4, Traffic
from ipmasq_agent.errors import AgentError
from ipmasq_agent.lab.children import passing_directory
from ipmasq_agent.policy.addresses import Family

Progress = Callable[[str, float], None]
"""Told what happens next, and which share of all the work is done."""
_QUIET, _LOOK, _QUIETENING = 0.1, 0.05, 5.0  # share of the CPUs; seconds
_CALM, _STIR = 0.5, 1 << 18  # seconds; bytes
_WARM_UP, _TIMED = 10, 4  # of so many flows one
_MANY_FLOWS = 100_000
# How long a part takes, measured in turns of flows and connections alone.
_WEIGHT_OF_EQUALITY, _WEIGHT_OF_EVERYTHING = 0.4, 3.0


@dataclass
class Benchmark:
    """One call of the benchmark, while it runs.

    Attributes:
        modes: which take part, in the order of their turns.
        effort: how much is measured.
        family: which traffic.
        agent: how the agent is started.
        progress: told of each step.
    """

    modes: Sequence[Mode]
    effort: Effort
    family: Family
    agent: Sequence[str]
    progress: Progress
    _runs: list[Run] = field(default_factory=list)
    _equality: list[Equality] = field(default_factory=list)
    _skipped: list[str] = field(default_factory=list)
    _offloads: dict[str, str] = field(default_factory=dict)
    _state: str = ""  # a directory for all places
    _rate: float | None = None  # of requests a second, for latency: the same for all

    def measure(self, *, quick: bool = False) -> Results:
        """Measure everything; what was measured until Ctrl-C is kept.

        Args:
            quick: for the results: it was the short form.

        Raises:
            AgentError: nothing can be measured here.
        """
        # Whatever Ctrl-C interrupts, what it leaves is in here.
        with passing_directory("ipmasq-bench-") as state:
            self._state = str(state)
            return self._measure(quick)

    def _measure(self, quick: bool) -> Results:
        began, started = datetime.now().astimezone(), time.monotonic()
        described = machine.describe()  # its load is that from before
        turns = list(modes.turns(self.modes, self.effort))
        self._skipped += modes.skipped(self.modes, self.effort)
        stopped, done, work = None, 0.0, _work(turns, self.effort.rounds)
        where = "before the first round"
        try:
            for turn in turns:
                self.progress(f"does {_name(turn)} decide as the document says?", done / work)
                self._compare(turn)
                done += _WEIGHT_OF_EQUALITY
            right = {(one.mode, one.cidrs) for one in self._equality if not one.wrong}
            for number in range(1, self.effort.rounds + 1):
                where = f"in round {number} of {self.effort.rounds}"
                for turn in turns:
                    if (turn.mode.name, turn.cidrs) in right:
                        text = f"round {number} of {self.effort.rounds}: {_name(turn)}"
                        self.progress(text, done / work)
                        self._take(number, turn)
                    done += _weight(turn)
        except KeyboardInterrupt:
            stopped = f"Ctrl-C {where}"
        return Results(
            began=began.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - started, 1),
            rounds=self.effort.rounds,
            quick=quick,
            stopped=stopped,
            family=self.family.value,
            machine={**described, **self._offloads},
            modes=self.modes,
            measures=_measured(self._runs),
            equality=self._equality,
            runs=self._runs,
            skipped=self._skipped,
        )

    def _compare(self, turn: Turn) -> None:
        """See whether a mode decides as it should, and that it is to be had here at all."""
        with self._place(turn) as place:
            if not self._offloads:
                with place.node.socket(self.family, socket.SOCK_DGRAM) as of_node:
                    self._offloads = {"offloads": machine.offloads(of_node, "eth0")}
            policy = Policy(self.family, turn.cidrs)
            try:
                if turn.mode.backend is not None:
                    Node(place, self.agent, turn.mode.backend).load(policy)
            except AgentError as error:
                self._skipped.append(f"{_name(turn)}: it cannot be loaded here: {error}")
                return
            self._equality.append(equality.check(place, turn.mode, policy))

    def _take(self, number: int, turn: Turn) -> None:
        """Take one turn, in a place of its own."""
        left = [measure.name for measure in modes.MEASURES]
        try:
            for reading in self._readings(turn):
                left.remove(reading.measure)
                self._runs.append(Run(number, turn.mode.name, turn.cidrs, *reading))
        except AgentError as error:
            # One turn that failed says so; the others go on.
            self._runs.append(Run(number, turn.mode.name, turn.cidrs, left[0], None, str(error)))

    def _readings(self, turn: Turn) -> Iterator[Reading]:
        backend, effort, ends = turn.mode.backend, self.effort, machine.ends()
        policy = Policy(self.family, turn.cidrs)
        with contextlib.ExitStack() as stack:
            # The reference stands beside it all the time, so that it weighs the same.
            beside = self._beside(turn, stack)
            place = stack.enter_context(self._place(turn))
            settle()
            empty = calm_memory() if turn.everything else 0
            node = None
            if backend is not None:
                node = Node(place, self.agent, backend)
                yield Reading("load", node.load(policy))
            at_rest = calm_memory() - empty if turn.everything else 0
            udp = Udp(place, masqueraded=backend is not None, cpus=ends.sender)
            settle()
            list(udp.flows(effort.flows // _WARM_UP, beside))  # caches fill, neighbours are found
            for reading in udp.flows(effort.flows, beside):
                itself = turn.mode.name == REFERENCE and reading.problem is None
                yield reading._replace(ratio=1.0) if itself else reading
            traffic = Traffic(place, ends)
            if turn.everything:
                yield self._memory(udp, at_rest)
                if backend == "bpf":
                    yield program.measure(place, udp, effort.flows // _TIMED)
                yield from udp.packets(effort.packets)
                yield from traffic.streams("stream", 1, effort.seconds)
                yield from traffic.streams("streams", 8, effort.seconds)
                yield from self._latency(traffic)
            yield from traffic.connections(effort.seconds)
            if turn.everything and node is not None:
                yield node.change(policy)

    def _beside(self, turn: Turn, stack: contextlib.ExitStack) -> Udp | None:
        """Return the reference mode in a place of its own, where it takes part at all."""
        reference = next((mode for mode in self.modes if mode.name == REFERENCE), None)
        if reference is None or turn.mode is reference:
            return None
        place = stack.enter_context(self._place(Turn(reference, 0, everything=False)))
        return Udp(place, masqueraded=False, cpus=machine.ends().sender)

    def _latency(self, traffic: Traffic) -> Iterator[Reading]:
        if not traffic.has_requests:
            if ONLY_IPV4 not in self._skipped:
                self._skipped.append(ONLY_IPV4)
            return
        if self._rate is None:
            self._rate = traffic.half_load()
        yield from traffic.latency(self._rate, self.effort.seconds)

    def _memory(self, udp: Udp, at_rest: int) -> Reading:
        """Return what the kernel needs at rest and for so many flows more."""
        before = calm_memory()
        with udp.new_flows(_MANY_FLOWS) as sending:
            sending.send(_MANY_FLOWS)
        flows = calm_memory() - before
        value = None if sending.problem else float(at_rest + flows)
        return Reading("memory", value, sending.problem)

    @contextlib.contextmanager
    def _place(self, turn: Turn) -> Iterator[Place]:
        with (
            tempfile.TemporaryDirectory(dir=self._state) as state,
            Place(self.family, Path(state), tracking=turn.mode.tracking) as place,
        ):
            if cpus := machine.node_cpus():
                place.steer(cpus)
            yield place


def settle() -> None:
    """Wait until the machine has nothing else to do, such as to take the last place down."""
    deadline = time.monotonic() + _QUIETENING
    while time.monotonic() < deadline:
        busy = busy_seconds()
        time.sleep(_LOOK)
        if busy_seconds() - busy <= _QUIET * _LOOK:
            return


def calm_memory() -> int:
    """Return how much memory the kernel has taken, once that stays the same for a while.

    It gives back what a namespace had in the background, and sleeps in between.
    """
    deadline = time.monotonic() + _QUIETENING
    taken, since = machine.kernel_memory(), time.monotonic()
    while (now := time.monotonic()) < deadline and now - since < _CALM:
        time.sleep(_LOOK)
        if abs((found := machine.kernel_memory()) - taken) > _STIR:
            taken, since = found, time.monotonic()
    return machine.kernel_memory()


def _measured(runs: Iterable[Run]) -> list[Measure]:
    names = {run.measure for run in runs}
    return [measure for measure in modes.MEASURES if measure.name in names]


def _name(turn: Turn) -> str:
    return f"{turn.mode.name}, {turn.cidrs:,} CIDRs" if turn.mode.backend else turn.mode.name


def _weight(turn: Turn) -> float:
    return 1 + _WEIGHT_OF_EVERYTHING * turn.everything


def _work(turns: Sequence[Turn], rounds: int) -> float:
    return _WEIGHT_OF_EQUALITY * len(turns) + rounds * sum(map(_weight, turns))
