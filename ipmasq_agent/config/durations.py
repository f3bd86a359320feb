"""Durations as Go writes and reads them: ``1h5m``, ``1.5s``, ``300ms``.

Grammar and printing: the documentation of Go's time.ParseDuration and Duration.String.
"""

from __future__ import annotations

import re

UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # U+00B5, micro sign
    "μs": 1_000,  # U+03BC, Greek mu
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|µs|μs|ms|s|m|h)")
_LARGEST = (1 << 63) - 1
_TOO_LONG = "is longer than the 292 years that a duration can hold"
_DIGITS = 19  # as many as the largest duration has


def parse_duration(text: str) -> int:
    """Return a duration in nanoseconds.

    Raises:
        ValueError: ``text`` is not a Go duration, with what to write instead.
    """
    negative = text.startswith("-")
    unsigned = text.removeprefix("-") if negative else text.removeprefix("+")
    if unsigned == "0":
        return 0
    total, position = 0, 0
    while position < len(unsigned):
        part = _PART.match(unsigned, position)
        if part is None or not (part[1] or part[2]):
            break
        whole = part[1].lstrip("0")
        if len(whole) > _DIGITS:
            raise ValueError(_TOO_LONG)
        unit = UNITS[part[3]]
        total += int(whole or 0) * unit + _fraction(part[2] or "", unit)
        position = part.end()
    if not unsigned or position < len(unsigned):
        number = len(unsigned) < _DIGITS and re.fullmatch(r"[0-9]+(\.[0-9]+)?", unsigned)
        hint = f"; did you mean {unsigned}s?" if number else ""
        raise ValueError(f"is not a duration like 60s, 5m or 1h30m{hint}")
    if total > _LARGEST + negative:
        raise ValueError(_TOO_LONG)
    return -total if negative else total


def _fraction(digits: str, unit: int) -> int:
    """Return a fraction of a unit in nanoseconds, in Go's floating point.

    Go keeps as many digits as fit 63 bits, so 0.3333333333333333333h is 20m to it, where
    exact arithmetic would be a nanosecond short.
    """
    value, scale = 0, 1.0
    for digit in digits:
        if value > _LARGEST // 10 or value * 10 + int(digit) > 1 << 63:
            break
        value = value * 10 + int(digit)
        scale *= 10
    return int(float(value) * (unit / scale))


def show_duration(nanoseconds: int) -> str:
    """Return a duration as Go prints it: ``1m0s``, ``1.5s``, ``300ms``, ``0s``."""
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if rest == 0:
        return "0s"
    for unit, size in (("ns", 1), ("µs", 1_000), ("ms", 1_000_000)):
        if rest < size * 1_000:
            return f"{sign}{_decimal(rest, size)}{unit}"
    hours, rest = divmod(rest, UNITS["h"])
    minutes, rest = divmod(rest, UNITS["m"])
    seconds = _decimal(rest, UNITS["s"]) + "s"
    if hours:
        return f"{sign}{hours}h{minutes}m{seconds}"
    return f"{sign}{minutes}m{seconds}" if minutes else sign + seconds


def _decimal(value: int, unit: int) -> str:
    whole, fraction = divmod(value, unit)
    digits = f"{fraction:0{len(str(unit)) - 1}d}".rstrip("0") if unit > 1 else ""
    return f"{whole}.{digits}" if digits else str(whole)
