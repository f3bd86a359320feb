"""Reads as much of the Dockerfile language as ours uses, and refuses the rest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

KNOWN = frozenset({"CMD", "COPY", "ENTRYPOINT", "ENV", "LABEL", "RUN", "WORKDIR"})
_PAIR = re.compile(r'([\w.]+)=("(?:[^"\\]|\\.)*"|\S*)\s*')


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a stage, its continued lines joined."""

    keyword: str
    text: str

    @property
    def words(self) -> list[str]:
        """The text as words; the exec form where it is one, blanks between words where not."""
        if self.text.startswith("["):
            return [str(word) for word in json.loads(self.text)]
        return self.text.split()


@dataclass(frozen=True, slots=True)
class Stage:
    """What follows one FROM."""

    name: str
    base: str
    instructions: tuple[Instruction, ...]

    def all(self, keyword: str) -> list[Instruction]:
        """Return the instructions of one kind in order."""
        return [found for found in self.instructions if found.keyword == keyword]


def parse(text: str) -> list[Stage]:
    """Return the stages of a Dockerfile, with the defaults of ARG put into each FROM.

    Raises:
        ValueError: it uses an instruction that a replay would not know how to carry out.
    """
    arguments: dict[str, str] = {}
    heads: list[tuple[str, str]] = []
    bodies: list[list[Instruction]] = []
    for keyword, rest in _logical_lines(text):
        if keyword == "ARG" and not heads:
            name, _, value = rest.partition("=")
            arguments[name] = value
        elif keyword == "FROM":
            base, _, name = expand(rest, arguments).partition(" AS ")
            heads.append((name, base))
            bodies.append([])
        elif keyword in KNOWN and heads:
            bodies[-1].append(Instruction(keyword, rest))
        else:
            raise ValueError(f"cannot replay {keyword} {rest}")
    return [Stage(*head, tuple(body)) for head, body in zip(heads, bodies, strict=True)]


def pairs(text: str) -> dict[str, str]:
    """Return the ``KEY=VALUE`` pairs of an ENV or a LABEL, quotes taken off."""
    found = {match[1]: match[2].strip('"') for match in _PAIR.finditer(text)}
    if _PAIR.sub("", text).strip():
        raise ValueError(f"not KEY=VALUE pairs: {text}")
    return found


def expand(text: str, values: Mapping[str, str]) -> str:
    """Put values in place of ``$NAME`` and ``${NAME}``; an unknown name is an error."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: values[match[1] or match[2]], text)


def _logical_lines(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split()[0].upper(), line.split(None, 1)[1]) for line in joined.splitlines()]
