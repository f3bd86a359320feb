"""All modes, turn by turn and round by round: A B C, A B C.

First each mode shows on packets that it decides as the document says; one that does not
gets no figures. Then the rounds, each turn in a rig of its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ipmasq_agent.bench import equality, machine, modes, workloads
from ipmasq_agent.bench.modes import Effort, Turn
from ipmasq_agent.bench.node import AgentOnNode
from ipmasq_agent.bench.policies import BlockPolicy
from ipmasq_agent.bench.results import LOADING, REFERENCE, Equality, Mode, Results, Sample
from ipmasq_agent.bench.rig import Rig
from ipmasq_agent.bench.udp import Udp
from ipmasq_agent.bench.workload import Measured, Stage, Unable, failed
from ipmasq_agent.errors import AgentError
from ipmasq_agent.lab.children import passing_directory
from ipmasq_agent.policy.addresses import Family

Progress = Callable[[str, float], None]
"""Told what happens next, and which share of all the work is done."""
# How long a part takes, measured in turns of flows and connections alone.
_WEIGHT_OF_EQUALITY, _WEIGHT_OF_EVERYTHING = 0.4, 3.0
# Shares of the CPUs from which on what others do is in the figures.
_LOADED, _STOLEN = 0.5, 0.02


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
    _runs: list[Sample] = field(default_factory=list)
    _equality: list[Equality] = field(default_factory=list)
    _skipped: list[str] = field(default_factory=list)
    _offloads: dict[str, str] = field(default_factory=dict)
    _turns: int = 0
    _unquiet: int = 0  # of them, those before which something else was at work all the time
    _state: str = ""  # a directory for all rigs
    _kept: dict[str, float] = field(default_factory=dict)  # of workloads, for all turns

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
        load, stolen = os.getloadavg()[0], machine.stolen_seconds()
        turns = list(modes.turns(self.modes, self.effort))
        self._skipped += modes.skipped(self.modes, self.effort)
        stopped, done, work = None, 0.0, _work(turns, self.effort.rounds)
        where = "before the first round"
        try:
            for turn in turns:
                self.progress(f"does {turn.title} decide as the document says?", done / work)
                self._compare(turn)
                done += _WEIGHT_OF_EQUALITY
            right = {(one.mode, one.cidrs) for one in self._equality if not one.wrong}
            for number in range(1, self.effort.rounds + 1):
                where = f"in round {number} of {self.effort.rounds}"
                for turn in turns:
                    if (turn.mode.name, turn.cidrs) in right:
                        text = f"round {number} of {self.effort.rounds}: {turn.title}"
                        self.progress(text, done / work)
                        for one in self._turn(turn):
                            sample = Sample(number, turn.mode.name, turn.cidrs, *one)
                            self._runs.append(sample)
                    done += _weight(turn)
        except KeyboardInterrupt:
            stopped = f"Ctrl-C {where}"
        names = {run.measure for run in self._runs}
        return Results(
            began=began.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - started, 1),
            rounds=self.effort.rounds,
            quick=quick,
            stopped=stopped,
            family=self.family.value,
            machine={**described, **self._offloads},
            modes=self.modes,
            measures=[measure for measure in workloads.MEASURES if measure.name in names],
            equality=self._equality,
            runs=self._runs,
            skipped=self._skipped,
            disturbed=self._disturbed(load, stolen, time.monotonic() - started),
        )

    def _disturbed(self, load: float, stolen: float, seconds: float) -> list[str]:
        """Return what else kept the machine busy, from what there was when it began."""
        count = os.cpu_count() or 1
        share = (machine.stolen_seconds() - stolen) / (seconds * count)
        told = {
            f"the load was {load:.1f} on {count} CPUs when it began": load > _LOADED * count,
            f"before {self._unquiet} of {self._turns} turns the machine did not become quiet": (
                self._unquiet > 0
            ),
            f"other guests of its host took {100 * share:.0f} % of the CPUs": share > _STOLEN,
        }
        return [words for words, is_so in told.items() if is_so]

    def _compare(self, turn: Turn) -> None:
        """See whether a mode decides as it should, and that it is to be had here at all."""
        with self._rig(turn.mode) as rig:
            if not self._offloads:
                with rig.node.socket(self.family, socket.SOCK_DGRAM) as of_node:
                    self._offloads = {"offloads": machine.offloads(of_node, "eth0")}
            policy = BlockPolicy(self.family, turn.cidrs)
            try:
                if turn.mode.backend is not None:
                    AgentOnNode(rig, self.agent, turn.mode.backend).load(policy)
            except AgentError as error:
                self._skipped.append(f"{turn.title}: it cannot be loaded here: {error}")
                return
            self._equality.append(equality.check(rig, turn.mode, policy))

    def _turn(self, turn: Turn) -> Iterator[Measured]:
        """Take one turn; each workload that fails says so, and the others go on."""
        due = workloads.due(turn)
        with contextlib.ExitStack() as stack:
            try:
                stage = stack.enter_context(self._stage(turn))
            except AgentError as error:
                yield from failed((name for workload in due for name in workload.names), error)
                return
            self._turns += 1
            self._unquiet += not machine.settle()
            for workload in due:
                try:
                    for one in workload.results(stage):
                        yield one
                        if one.measure == LOADING and one.problem:
                            return  # without its policy it is another mode
                except Unable as why:
                    self._skipped += [str(why)] if str(why) not in self._skipped else []

    @contextlib.contextmanager
    def _stage(self, turn: Turn) -> Iterator[Stage]:
        ends, backend = machine.ends(), turn.mode.backend
        reference = next((mode for mode in self.modes if mode.name == REFERENCE), None)
        with contextlib.ExitStack() as stack:
            beside = None
            if reference is not None and turn.mode is not reference:
                other = stack.enter_context(self._rig(reference))
                whose = f"in the rig of {REFERENCE} beside it: "
                beside = Udp(other, masqueraded=False, cpus=ends.sender, whose=whose)
            rig = stack.enter_context(self._rig(turn.mode))
            yield Stage(
                turn=turn,
                effort=self.effort,
                ends=ends,
                policy=BlockPolicy(self.family, turn.cidrs),
                rig=rig,
                agent=AgentOnNode(rig, self.agent, backend) if backend else None,
                udp=Udp(rig, masqueraded=backend is not None, cpus=ends.sender),
                beside=beside,
                kept=self._kept,
            )

    @contextlib.contextmanager
    def _rig(self, mode: Mode) -> Iterator[Rig]:
        with (
            tempfile.TemporaryDirectory(dir=self._state) as state,
            Rig(self.family, Path(state), tracking=mode.tracking) as rig,
        ):
            if cpus := machine.node_cpus():
                rig.steer(cpus)
            yield rig


def _weight(turn: Turn) -> float:
    return 1 + _WEIGHT_OF_EVERYTHING * turn.everything


def _work(turns: Sequence[Turn], rounds: int) -> float:
    return _WEIGHT_OF_EQUALITY * len(turns) + rounds * sum(map(_weight, turns))
