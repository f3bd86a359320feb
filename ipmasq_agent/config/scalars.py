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


class Number(Kind[int | None]):
    """A whole number of 64 bits."""

    def __init__(self, like: int) -> None:
        """Give ``like`` as the example to those who write something else."""
        self._like = like
        self.schema = {"type": ["integer", "null"], "minimum": -_LARGEST, "maximum": _LARGEST}

    def read(self, reading: Reading, node: yaml.Node, key: str) -> int | None:
        """Return the number; null is none."""
        if is_null(node):
            return None
        value = _number(node)
        if isinstance(value, float) and value.is_integer() and not reading.is_json:
            value = int(value)
        if not isinstance(value, int) or abs(value) > _LARGEST:
            reading.problem(node, f"{key}: {shown(node)} is not a whole number, like {self._like}")
            return None
        return value


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


class Switch(Kind[bool]):
    """On or off."""

    schema: Mapping[str, Any] = {"type": ["boolean", "null"]}

    def read(self, reading: Reading, node: yaml.Node, key: str) -> bool | None:
        """Return the boolean; null is none."""
        if is_null(node):
            return None
        value = None
        # PyYAML leaves y and n strings.
        if isinstance(node, yaml.ScalarNode) and (node.tag.endswith(":bool") or _is_plain(node)):
            value = _BOOLEANS.get(node.value)
        if value is None:
            reading.problem(node, f"{key}: {shown(node)} is not a boolean; write true or false")
        return value


class Interval(Kind[int]):
    """A duration above 0, in nanoseconds."""

    schema: Mapping[str, Any] = {
        "type": "string",
        "pattern": r"^\+?(?=.*[1-9])(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+$",
    }

    def __init__(self, shortest: int) -> None:
        """Take what is shorter for ``shortest``, with a warning."""
        self._shortest = shortest

    def read(self, reading: Reading, node: yaml.Node, key: str) -> int | None:
        """Return the duration; a null is refused, as upstream does."""
        if not isinstance(node, yaml.ScalarNode) or not node.tag.endswith(":str"):
            number = not isinstance(node, yaml.CollectionNode) and node.value.isdigit()
            hint = f'; did you mean "{node.value}s"?' if number else ', like "60s"'
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
        if duration < self._shortest:
            reading.warn(
                node,
                f'{key}: "{node.value}" is taken for {show_duration(self._shortest)}, '
                "the shortest that is; changes of the document apply at once in any case",
            )
        return max(duration, self._shortest)

    def shown(self, value: int) -> str:
        """Return the duration as Go prints it."""
        return show_duration(value)


class Word(Kind[T]):
    """One of a few words."""

    def __init__(self, words: Mapping[str, T]) -> None:
        """Take these words, each with what it means."""
        self._words = words
        self.schema = {"enum": [*words, None]}

    def read(self, reading: Reading, node: yaml.Node, key: str) -> T | None:
        """Return what the word means; null is none."""
        if is_null(node):
            return None
        if isinstance(node, yaml.ScalarNode) and node.value in self._words:
            return self._words[node.value]
        reading.problem(node, f"{key}: {shown(node)} is not {' or '.join(self._words)}")
        return None

    def shown(self, value: T) -> str | None:
        """Return the word; None where it is none of them."""
        return next((word for word, meant in self._words.items() if meant == value), None)


class Variant(Word[T]):
    """One of a few words, or a mapping of one of them to what distinguishes it further."""

    def __init__(self, words: Mapping[str, T], variants: Mapping[str, Mapping[str, T]]) -> None:
        """Take these words, and for a word these ones more."""
        super().__init__(words)
        self._variants = variants
        mappings = [
            {
                "type": "object",
                "properties": {word: {"enum": [*further]}},
                "required": [word],
                "additionalProperties": False,
            }
            for word, further in variants.items()
        ]
        self.schema = {"anyOf": [self.schema, *mappings]}

    def read(self, reading: Reading, node: yaml.Node, key: str) -> T | None:
        """Return what the word, or the word in the mapping, means; null is none."""
        if not isinstance(node, yaml.MappingNode):
            return super().read(reading, node, key)
        pairs = [(name.value, value) for name, value in node.value if is_word(name)]
        if len(node.value) != 1 or not pairs or pairs[0][0] not in self._variants:
            known = " or ".join(f"{{{word}: ...}}" for word in self._variants)
            reading.problem(node, f"{key}: the mapping is not {known}")
            return None
        (word, value) = pairs[0]
        further = self._variants[word]
        if not is_word(value) or value.value not in further:
            reading.problem(value, f"{key}: {word}: {shown(value)} is not {' or '.join(further)}")
            return None
        return further[value.value]

    def shown(self, value: T) -> Any:
        """Return the word, or the mapping where it takes one."""
        for word, further in self._variants.items():
            for name, meant in further.items():
                if meant == value and value not in self._words.values():
                    return {word: name}
        return super().shown(value)


def is_word(node: yaml.Node) -> bool:
    """Whether a node is a text, of whatever kind."""
    return isinstance(node, yaml.ScalarNode) and not is_null(node)
