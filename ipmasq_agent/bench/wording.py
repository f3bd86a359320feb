"""How figures are written for people: in tables, in plots and in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ipmasq_agent.bench.results import LIMIT, REFERENCE, Measure, Mode
from ipmasq_agent.bench.statistics import ENOUGH, Summary

_PREFIXES = {-9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}
_SHORT = {"s": "s", "bit/s": "bit/s", "bytes": "B"}
"""Units that are written with a prefix; others count something, and are written out."""
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NO_NAT = {REFERENCE: "no NAT", LIMIT: "no NAT, no conntrack"}
"""What a ratio is to, in a few words; by mode."""
WITHOUT_NAT = {
    REFERENCE: "a node without NAT",
    LIMIT: "a node with neither NAT nor conntrack",
}
"""The same in a sentence."""


def rounded(value: float, digits: int = 3) -> str:
    """Return a number of so many significant digits: ``412,000``, ``1.05``, ``0.0531``."""
    if not value:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"


def quantity(value: float, unit: str, digits: int = 3) -> str:
    """Return a value with its unit: ``23.1 µs``, ``9.41 Gbit/s``, ``412,000 flows/s``."""
    power = _power(value, unit)
    return f"{rounded(value / 10**power, digits)} {_unit(power, unit)}"


def span(low: float, high: float, unit: str) -> str:
    """Return an interval with its unit: ``1.20 to 1.43 ms``."""
    power = _power(max(abs(low), abs(high)), unit)
    return f"{rounded(low / 10**power)} to {rounded(high / 10**power)} {_unit(power, unit)}"


def share(ratio: float, measure: Measure, digits: int = 3) -> str:
    """Return a ratio: ``94.6 %`` where more is better, else ``1.05 times``."""
    return f"{_share(ratio, measure, digits)} {_sign(measure)}"


def share_span(low: float, high: float, measure: Measure, digits: int = 3) -> str:
    """Return an interval of ratios: ``93.9 to 95.2 %``."""
    ends = " to ".join(_share(ratio, measure, digits) for ratio in (low, high))
    return f"{ends} {_sign(measure)}"


def figure(value: float, to: str | None, measure: Measure) -> str:
    """Return a ratio to a mode, or a value."""
    return share(value, measure) if to else quantity(value, measure.unit)


def figures(low: float, high: float, to: str | None, measure: Measure) -> str:
    """Return two ratios to a mode, or two values."""
    return share_span(low, high, measure) if to else span(low, high, measure.unit)


def told(found: Summary, to: str | None, measure: Measure) -> str:
    """Return a median, of ratios to a mode or of values."""
    return figure(found.median, to, measure)


def told_span(found: Summary, to: str | None, measure: Measure) -> str:
    """Return an interval, of ratios to a mode or of values."""
    if found.count == 1:
        return "one round, no interval"
    return figures(found.low, found.high, to, measure)


def held_against(to: str | None, measure: Measure) -> str:
    """Return what goes on after a ratio in a sentence, with a space before it."""
    if to is None:
        return ""
    return f" {'of' if measure.more_is_better else 'that of'} {WITHOUT_NAT[to]}"


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
    power = 3 * math.floor(math.log10(abs(value)) / 3)
    return min(max(power, min(_PREFIXES)), max(_PREFIXES))


def _unit(power: int, unit: str) -> str:
    return _PREFIXES[power] + _SHORT.get(unit, unit)


def _share(ratio: float, measure: Measure, digits: int) -> str:
    if not measure.more_is_better:
        return rounded(ratio, digits if ratio >= 1 else min(digits, 2))
    percent = 100 * ratio
    return rounded(percent, digits if percent < 100 else 3)  # 125 % is not 130 %


def _sign(measure: Measure) -> str:
    return "%" if measure.more_is_better else "times"
