"""Sets of values that the chart's schema allows: all, or so many that each two meet."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from tests.deploy.chart import Values
from tests.deploy.chart_files import TOGETHER, Schema, schema

Choice = dict[str, Any]
"""The path of a value → one of those that it can have."""

# What needs one more value, which no choice gives.
_COMPANIONS: tuple[tuple[str, Any, str, Any], ...] = (
    ("serviceAccount.create", False, "serviceAccount.name", "another"),
    ("seccompProfile.type", "Localhost", "seccompProfile.localhostProfile", "ipmasq-agent.json"),
)
_TRIES = 40
# What bears on nothing else: it is handed on as it is, or adds an object that is always the same.
_APART = (
    *("image.pullPolicy", "updateStrategy.type", "seccompProfile.type"),
    *("prometheusRule.enabled", "dashboard.enabled"),
)


def merged(*parts: Values) -> Values:
    """Return values that say all that several do; the last of two counts."""
    found: Values = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, dict) and key in found
            found[key] = merged(found[key], value) if both else value
    return found


def at(values: Values, path: str) -> Any:
    """Return one of the values."""
    found: Any = values
    for name in path.split("."):
        found = found[name]
    return found


def nested(path: str, value: Any) -> Values:
    """Return values of which one is given."""
    for name in reversed(path.split(".")):
        value = {name: value}
    found: Values = value
    return found


def values_of(choice: Choice) -> Values:
    """Return the values that a choice means, with what those need."""
    more = {other: value for path, had, other, value in _COMPANIONS if choice.get(path) == had}
    return merged(*(nested(path, value) for path, value in (choice | more).items()))


def _offered(path: str, part: Schema) -> Iterator[tuple[str, list[Any]]]:
    if "enum" in part:
        yield path, part["enum"]
    elif part.get("type") == "boolean":
        yield path, [False, True]
    for name, each in part.get("properties", {}).items():
        # The document and the flags are not the chart's; the last is for charts with it as a part.
        if path or name not in ("config", "flags", "enabled"):
            yield from _offered(f"{path}.{name}".lstrip("."), each)


def offered() -> dict[str, list[Any]]:
    """Return each switch and each value that is one of a few, with what it can be."""
    return dict(_offered("", schema()))


def _allowed(choice: Choice) -> bool:
    """Whether no two of the choices exclude each other."""
    for path, value, other, needed in TOGETHER:
        if choice.get(path) == value and other in choice:
            can_be = needed["enum"] if isinstance(needed, dict) else [needed]
            if choice[other] not in can_be:
                return False
    return True


def every_choice() -> Iterator[Choice]:
    """Yield all choices that are allowed, of what bears on something else."""
    choices = {path: some for path, some in offered().items() if path not in _APART}
    for picked in itertools.product(*choices.values()):
        choice = dict(zip(choices, picked, strict=True))
        if _allowed(choice):
            yield choice


Pair = tuple[tuple[str, Any], tuple[str, Any]]


def _pairs(choice: Sequence[tuple[str, Any]]) -> set[Pair]:
    return set(itertools.combinations(choice, 2))


def paired_choices() -> list[Choice]:
    """Return choices in which each two that are allowed together are together somewhere."""
    choices = offered()
    source = random.Random(0)
    left = {
        pair
        for some in itertools.combinations(choices.items(), 2)
        for pair in itertools.product(*([(path, each) for each in can_be] for path, can_be in some))
        if _allowed(dict(pair))
    }
    found: list[Choice] = []
    while left:
        wanted = dict(min(left, key=repr))
        tried = [
            {path: wanted.get(path, source.choice(some)) for path, some in choices.items()}
            for _ in range(_TRIES)
        ]
        best = max(filter(_allowed, tried), key=lambda each: len(_pairs([*each.items()]) & left))
        found.append(best)
        left -= _pairs([*best.items()])
    return found
