"""Kinds of keys whose value is one scalar: numbers, switches, durations, words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import yaml

from ipmasq_agent.config.durations import parse_duration, show_duration
from ipmasq_agent.config.model import Kind
from ipmasq_agent.config.reading import Reading, shown
from ipmasq_agent.config.tree import PLAIN, is_null

T = TypeVar("T")

# YAML 1.1, as the converter in front of Go's decoder resolves plain scalars.
_BOOLEANS = {
    spelt: value
    for value, words in ((True, ("y", "yes", "on", "true")), (False, ("n", "no", "off", "false")))
    for word in words
    for spelt in (word, word.title(), word.upper())
}
# Numbers to the converter, once underscores are gone. To PyYAML 0o17 is none, and a float
# needs a point, and a sign in its exponent.
_INTEGER = re.compile(r"[-+]?(0[bB][01]+|0[oO]?[0-7]*|0[xX][0-9a-fA-F]+|[1-9][0-9]*)")
_LONGEST_NUMBER = 400  # digits; Python refuses to read some thousands of them
_OCTAL = re.compile(r"^([-+]?)0(?=[0-7])")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LARGEST = (1 << 63) - 1


def number(like: int) -> Kind[int | None]:
    """Return the kind of whole numbers of 64 bits, ``like`` being the example; null is none."""

    def read(reading: Reading, node: yaml.Node, key: str) -> int | None:
        if is_null(node):
            return None
        value = _number(node)
        if isinstance(value, float) and value.is_integer() and not reading.is_json:
            value = int(value)
        if not isinstance(value, int) or abs(value) > _LARGEST:
            reading.problem(node, f"{key}: {shown(node)} is not a whole number, like {like}")
            return None
        return value

    schema = {"type": ["integer", "null"], "minimum": -_LARGEST, "maximum": _LARGEST}
    return Kind(schema, read)


def _number(node: yaml.Node) -> int | float | None:
    """Return a number as Go's YAML resolves it (its strconv.ParseInt takes base 0)."""
    tag = node.tag.rpartition(":")[2]
    if not (_is_plain(node) or tag in ("int", "float")):
        return None
    digits = node.value.replace("_", "")
    if len(digits) > _LONGEST_NUMBER:
        return None
    if _INTEGER.fullmatch(digits):
        return int(_OCTAL.sub(r"\g<1>0o", digits), 0)
    return float(digits) if _FLOAT.fullmatch(digits) and tag != "int" else None


def _is_plain(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style in PLAIN


def _switch(reading: Reading, node: yaml.Node, key: str) -> bool | None:
    if is_null(node):
        return None
    value = None
    # PyYAML leaves y and n strings.
    if isinstance(node, yaml.ScalarNode) and (node.tag.endswith(":bool") or _is_plain(node)):
        value = _BOOLEANS.get(node.value)
    if value is None:
        reading.problem(node, f"{key}: {shown(node)} is not a boolean; write true or false")
    return value


SWITCH: Kind[bool] = Kind({"type": ["boolean", "null"]}, _switch)
"""On or off; null is none."""


def interval(shortest: int) -> Kind[int]:
    """Return the kind of durations above 0, in nanoseconds; a null is refused, as upstream does.

    What is shorter than ``shortest`` is taken for that, with a warning.
    """

    def read(reading: Reading, node: yaml.Node, key: str) -> int | None:
        if not isinstance(node, yaml.ScalarNode) or not node.tag.endswith(":str"):
            digits = not isinstance(node, yaml.CollectionNode) and node.value.isdigit()
            hint = f'; did you mean "{node.value}s"?' if digits else ', like "60s"'
            reading.problem(node, f"{key}: {shown(node)} is not a duration in quotes{hint}")
            return None
        try:
            duration = parse_duration(node.value)
        except ValueError as cause:
            reading.problem(node, f'{key}: "{node.value}" {cause}')
            return None
        if duration <= 0:
            reading.problem(
                node, f'{key}: "{node.value}" would never wait; write a duration above 0, like 60s'
            )
            return None
        if duration < shortest:
            reading.warn(
                node,
                f'{key}: "{node.value}" is taken for {show_duration(shortest)}, '
                "the shortest that is; changes of the document apply at once in any case",
            )
        return max(duration, shortest)

    pattern = r"^\+?(?=.*[1-9])(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+$"
    return Kind({"type": "string", "pattern": pattern}, read, shown=show_duration)


def word(words: Mapping[str, T]) -> Kind[T]:
    """Return the kind of a few words, each with what it means; null is none."""

    def read(reading: Reading, node: yaml.Node, key: str) -> T | None:
        if is_null(node):
            return None
        if isinstance(node, yaml.ScalarNode) and node.value in words:
            return words[node.value]
        reading.problem(node, f"{key}: {shown(node)} is not {' or '.join(words)}")
        return None

    def show(value: T) -> str | None:
        return next((each for each, meant in words.items() if meant == value), None)

    return Kind({"enum": [*words, None]}, read, shown=show)


def variant(words: Mapping[str, T], variants: Mapping[str, Mapping[str, T]]) -> Kind[T]:
    """Return the kind of a few words, or a mapping of one to what distinguishes it further."""
    plain = word(words)

    def read(reading: Reading, node: yaml.Node, key: str) -> T | None:
        if not isinstance(node, yaml.MappingNode):
            return plain.read(reading, node, key)
        pairs = [(name.value, value) for name, value in node.value if _is_word(name)]
        if len(node.value) != 1 or not pairs or pairs[0][0] not in variants:
            known = " or ".join(f"{{{each}: ...}}" for each in variants)
            reading.problem(node, f"{key}: the mapping is not {known}")
            return None
        ((name, value),) = pairs
        further = variants[name]
        if not _is_word(value) or value.value not in further:
            reading.problem(value, f"{key}: {name}: {shown(value)} is not {' or '.join(further)}")
            return None
        return further[value.value]

    def show(value: T) -> Any:
        for each, further in variants.items():
            for name, meant in further.items():
                if meant == value and value not in words.values():
                    return {each: name}
        return plain.shown(value)

    mappings = [
        {
            "type": "object",
            "properties": {each: {"enum": [*further]}},
            "required": [each],
            "additionalProperties": False,
        }
        for each, further in variants.items()
    ]
    return Kind({"anyOf": [plain.schema, *mappings]}, read, shown=show)


def _is_word(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not is_null(node)
