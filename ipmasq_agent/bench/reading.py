"""A value of a measure, or why there is none; and what every workload asks of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

DELIVERED = 0.999
"""The share of packets, requests or segments that must arrive at the first try."""


class Reading(NamedTuple):
    """A value of a measure, or what went wrong.

    Attributes:
        ratio: to the reference mode, where that took turns within this run.
    """

    measure: str
    value: float | None
    problem: str | None = None
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Ends:
    """Which CPUs programs at the two ends may use, as taskset(1) takes them; "" for any."""

    sender: str = ""
    receiver: str = ""


def pinned(cpus: str, argv: Sequence[str]) -> list[str]:
    """Return ``argv`` made to run on those CPUs; as it is for none."""
    return ["taskset", "-c", cpus, *argv] if cpus else list(argv)
