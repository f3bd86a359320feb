"""What a benchmark found, as it is kept in ``results.json``: single runs, no statistics yet.

A run either has a value or says what went wrong: packets that were lost, SYNs that had to be
sent again, ports that ran out. Such a run never gives a number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ipmasq_agent.errors import BenchError

FORMAT = 1
LIMIT, REFERENCE = "none", "none+ct"
"""The modes without NAT: without and with connection tracking."""
DELIVERED = 0.999
"""The share of packets, requests or segments that must arrive at the first try."""
LOADING = "load"
"""The measure without which a turn has no other: its policy is not in force."""


@dataclass(frozen=True, slots=True)
class Mode:
    """A way in which the node treats what pods send.

    Attributes:
        name: ``none``, ``none+ct``, or that of a data plane, such as ``ipset`` or ``bpf+ct``.
        title: in words, for people.
        backend: what masquerades; None where nothing does.
        tracking: connections are tracked, as on every node that has kube-proxy.
    """

    name: str
    title: str
    backend: str | None
    tracking: bool


@dataclass(frozen=True, slots=True)
class Measure:
    """Something that is measured.

    Attributes:
        name: a key, such as ``flows``.
        title: in words, such as ``New UDP flows``.
        unit: of the values, such as ``flows/s``; SI units without prefix for bytes, seconds
            (``s``) and bits (``bit/s``).
        more_is_better: whether the larger value wins.
    """

    name: str
    title: str
    unit: str
    more_is_better: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one mode in one round, or why there is none.

    Attributes:
        round: from 1.
        mode: its name.
        cidrs: how many non-masquerade CIDRs the policy has; 0 where nothing masquerades.
        measure: its name.
        value: in the measure's unit; None where the run failed.
        problem: why the run failed, in a sentence; None where it did not.
        ratio: to the mode ``none+ct``, where the two took turns within this run; None where
            a ratio can be had from the runs of a round alone.
    """

    round: int
    mode: str
    cidrs: int
    measure: str
    value: float | None
    problem: str | None = None
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Equality:
    """Whether one mode decided as the document says, read from packets before any figure.

    Attributes:
        wrong: for people: ``10.0.0.1: expected 192.0.2.1, seen 172.20.0.10``; empty where
            all is right.
    """

    mode: str
    cidrs: int
    destinations: int
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Results:
    """All that one call of the benchmark found.

    Attributes:
        began: when, in ISO 8601 with an offset.
        seconds: how long it took.
        rounds: that were asked for.
        quick: it was the short form.
        stopped: why it ended early, as ``Ctrl-C in round 2 of 5``; None where it did not.
        family: ``ipv4`` or ``ipv6``.
        machine: what it ran on, for people: ``kernel`` → ``Linux 6.18`` and so on.
        modes: in the order in which they take turns.
        skipped: what was not measured and why, in sentences.
        disturbed: what else kept the machine busy, in parts of a sentence.
    """

    began: str
    seconds: float
    rounds: int
    quick: bool
    stopped: str | None
    family: str
    machine: Mapping[str, str]
    modes: Sequence[Mode]
    measures: Sequence[Measure]
    equality: Sequence[Equality]
    runs: Sequence[Sample]
    skipped: Sequence[str] = field(default=())
    disturbed: Sequence[str] = field(default=())

    @property
    def failed(self) -> bool:
        """Whether a run gave no value, or a mode decided wrongly."""
        return any(run.problem for run in self.runs) or any(one.wrong for one in self.equality)


def write(results: Results, path: Path) -> None:
    """Write ``results.json``."""
    path.write_text(json.dumps({"format": FORMAT, **asdict(results)}, indent=1) + "\n")


def read(path: Path) -> Results:
    """Return what an earlier benchmark found.

    Raises:
        BenchError: there is no such file, or it is not such a file.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_text())
        if data.pop("format") != FORMAT:
            raise BenchError(f"{path} is of another version of the benchmark", remedy="run it anew")
        lists: dict[str, type[Any]] = {
            "modes": Mode,
            "measures": Measure,
            "equality": Equality,
            "runs": Sample,
        }
        for key, kind in lists.items():
            data[key] = [kind(**entry) for entry in data[key]]
        return Results(**data)
    except OSError as cause:
        raise BenchError(f"cannot read {path}: {cause.strerror}") from cause
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise BenchError(
            f"{path} is not a benchmark's results.json ({cause})",
            remedy="give the file that `ipmasq-agent bench` wrote",
        ) from cause
