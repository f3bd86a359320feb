"""What a workload is: something that is done in a rig, and the measures that it gives.

One workload is one file in ``workloads/``. It says what it measures, which programs it needs
and for which modes it is there, and it reads what came of it; no other file knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ipmasq_agent.bench.machine import Ends
from ipmasq_agent.bench.modes import Effort, Turn
from ipmasq_agent.bench.node import AgentOnNode
from ipmasq_agent.bench.policies import BlockPolicy
from ipmasq_agent.bench.results import Measure, Mode
from ipmasq_agent.bench.rig import Rig
from ipmasq_agent.bench.udp import Udp
from ipmasq_agent.errors import AgentError


class Unable(Exception):
    """A workload cannot be done here, in a sentence; that is no failure."""


class Measured(NamedTuple):
    """A value of a measure, or what went wrong.

    Attributes:
        ratio: to the reference mode, where that took turns within this run.
    """

    measure: str
    value: float | None
    problem: str | None = None
    ratio: float | None = None


@dataclass
class Stage:
    """What a workload has to work with in one turn: a mode in a rig.

    Attributes:
        agent: in the node; None where nothing masquerades.
        udp: sends through the rig.
        beside: sends through one of the reference mode, which stands beside it all the time,
            so that it weighs the same; None where this is it, or it takes no part.
        kept: what workloads keep from one turn for all later ones.
        policy_memory: bytes of the kernel that the policy takes, once it is loaded.
    """

    turn: Turn
    effort: Effort
    ends: Ends
    policy: BlockPolicy
    rig: Rig
    agent: AgentOnNode | None
    udp: Udp
    beside: Udp | None
    kept: dict[str, float]
    policy_memory: int = 0


def _every(_: Mode) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Workload:
    """Something that is done in a rig.

    Attributes:
        measures: what ``run`` yields a value of, or says why there is none.
        run: does it. An error that it raises is told of each measure that it has not yielded.
        tools: the programs that it starts, each with its Debian package.
        always: it runs for every number of CIDRs, else only where all is measured.
        fits: whether it means anything for a mode.
    """

    measures: tuple[Measure, ...]
    run: Callable[[Stage], Iterator[Measured]]
    tools: Mapping[str, str] = field(default_factory=dict)
    always: bool = False
    fits: Callable[[Mode], bool] = _every

    @property
    def names(self) -> list[str]:
        """Of its measures."""
        return [measure.name for measure in self.measures]

    def is_due(self, turn: Turn) -> bool:
        """Return whether it has a part in a turn."""
        return (self.always or turn.everything) and self.fits(turn.mode)

    def results(self, stage: Stage) -> Iterator[Measured]:
        """Do it, and yield each measure once: what fails here is nobody else's failure.

        Raises:
            Unable: it cannot be done here.
        """
        left = self.names
        try:
            for one in self.run(stage):
                left.remove(one.measure)
                yield one
        except AgentError as error:
            yield from failed(left, error)


def failed(measures: Iterable[str], error: AgentError) -> Iterator[Measured]:
    """Yield what is said of measures that there is no value of."""
    return (Measured(name, None, str(error)) for name in measures)
