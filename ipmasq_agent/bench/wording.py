"""How figures are written for people: in tables, in plots and in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ipmasq_agent.bench.results import LIMIT, REFERENCE, Measure, Mode
from ipmasq_agent.bench.statistics import ENOUGH, Summary

_PREFIXES = {-9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}
_SHORT = {"s": "s", "bit/s": "bit/s", "bytes": "B"}
"""Units that are written with a prefix; others count something, and are written out."""
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NO_NAT = {REFERENCE: "no NAT with conntrack", LIMIT: "no NAT, no conntrack"}
"""What a ratio is to, in a few words; by mode."""
_WITHOUT_NAT = {
    REFERENCE: "a node without NAT",
    LIMIT: "a node with neither NAT nor conntrack",
}


@dataclass(frozen=True, slots=True)
class Scale:
    """How figures of a measure are told.

    Attributes:
        to: the mode that they are ratios to; None where they are values.
    """

    measure: Measure
    to: str | None = None

    @property
    def is_share(self) -> bool:
        """Whether they are shares of something, which is as good as it gets."""
        return self.to is not None and self.measure.more_is_better

    def figure(self, *values: float, digits: int = 3) -> str:
        """Return a figure, or the ends of an interval, with the unit.

        ``23.1 µs``, ``412,000 flows/s``, ``1.20 to 1.43 ms``; ``94.6 %`` of what is without NAT
        where more is better, else ``1.05 times`` it.
        """
        if self.to is not None:
            numbers = [self._ratio(value, digits) for value in values]
            unit = "%" if self.is_share else "times"
        else:
            power = _power(max(map(abs, values)), self.measure.unit)
            numbers = [rounded(value / 10**power, digits) for value in values]
            unit = _PREFIXES[power] + _SHORT.get(self.measure.unit, self.measure.unit)
        return f"{' to '.join(numbers)} {unit}"

    def median(self, found: Summary) -> str:
        """Return the figure in the middle."""
        return self.figure(found.median)

    def interval(self, found: Summary) -> str:
        """Return between what figures the median is."""
        return "one round, no interval" if found.count == 1 else self.figure(found.low, found.high)

    def against(self) -> str:
        """Return what goes on after a ratio in a sentence, with a space before it."""
        if self.to is None:
            return ""
        return f" {'of' if self.is_share else 'that of'} {_WITHOUT_NAT[self.to]}"

    def _ratio(self, ratio: float, digits: int) -> str:
        if not self.is_share:
            return rounded(ratio, digits if ratio >= 1 else min(digits, 2))
        return rounded(100 * ratio, digits if ratio < 1 else 3)  # 125 % is not 130 %


def rounded(value: float, digits: int = 3) -> str:
    """Return a number of so many significant digits: ``412,000``, ``1.05``, ``0.0531``."""
    if not value:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"


def listed(names: Sequence[str]) -> str:
    """Return names as they stand in a sentence: ``a, b and c``."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def in_words(number: int) -> str:
    """Return a small number as a word."""
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def inside(title: str) -> str:
    """Return the title of a measure as it stands inside a sentence."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


def with_cidrs(mode: Mode, cidrs: int) -> str:
    """Return a mode and for how many CIDRs."""
    return mode.name if mode.backend is None else f"{mode.name} with {cidrs:,} CIDRs"


def too_few(count: int) -> str:
    """Return what so few rounds are good for."""
    rounds = "one round tells" if count == 1 else f"{in_words(count)} rounds tell"
    return f"{rounds} nothing apart, it takes {in_words(ENOUGH)}"


def _power(value: float, unit: str) -> int:
    if unit not in _SHORT or not value:
        return 0
    power = 3 * math.floor(math.log10(value) / 3)
    return min(max(power, min(_PREFIXES)), max(_PREFIXES))
