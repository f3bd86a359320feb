"""A rule as typed options, whoever wrote it and however it was read.

Two rules are equal when they mean the same. The kernel's reader drops a ``-d 0.0.0.0/0``,
normalises addresses, prints options in an order of its own and rounds probabilities, so
comparing text would see differences where there are none, and rewrite for ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.cidrs import parse_listed


class Option(NamedTuple):
    """One option of a rule in canonical form: ``! --dst-type LOCAL`` and its like."""

    name: str
    values: tuple[str, ...] = ()
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a chain.

    Attributes:
        written: how its reader printed it, or its options in the order of writing.
        meaning: its options in canonical form and order, without the comment: equality.
        comment: free text for people, or None.
        readable: False where the reader is known to have left parts of the rule out.
    """

    written: str | tuple[Option, ...] = field(compare=False)
    meaning: tuple[Option, ...]
    comment: str | None = field(default=None, compare=False)
    readable: bool = True

    @property
    def text(self) -> str:
        """What follows ``-A CHAIN``: of a rule that was read, as its reader printed it."""
        return self.written if isinstance(self.written, str) else in_words(self.written)

    def option(self, name: str) -> Option | None:
        """Return the option of that name, or None."""
        return next((option for option in self.meaning if option.name == name), None)

    @property
    def target(self) -> str | None:
        """Where a match leads: a chain, a built-in verdict, an extension; None for nothing."""
        option = self.option("jump") or self.option("goto")
        return option.values[0] if option and option.values else None


_FLAGS = {"source": "-s", "destination": "-d", "in-interface": "-i", "out-interface": "-o"}
_FLAGS |= {"protocol": "-p", "jump": "-j", "goto": "-g"}
MATCH_OF = {"mark": "mark", "comment": "comment", "dst-type": "addrtype", "match-set": "set"}
MATCH_OF |= {"mode": "statistic", "probability": "statistic"}
"""Options of matches → the match that is to be named before them."""
_PLAIN_WORD = re.compile(r"[\w.:/,=+[][\w.:/!,=+[\]-]*", re.ASCII)


def in_words(options: Iterable[Option]) -> str:
    """Return options, in the order in which they come, as iptables takes them."""
    words: list[str] = []
    named = None
    for name, values, negated in options:
        match = MATCH_OF.get(name)
        if match is not None and match != named:
            words += ("-m", match)
        named = match
        if negated:
            words.append("!")
        words.append(_FLAGS.get(name) or f"--{name}")
        words += map(quote, values)
    return " ".join(words)


def quote(text: str) -> str:
    """Return ``text`` as one word of the restore format, which is never taken for an option."""
    if _PLAIN_WORD.fullmatch(text):
        return text
    return '"' + re.sub(r'(["\\\'])', r"\\\1", text) + '"'


@lru_cache(maxsize=1024)  # of one rule it is asked more than once
def read_prefix(text: str, family: Family) -> Prefix | None:
    """Return an address with any mask as a prefix of a family; None if it is not one."""
    try:
        prefix = parse_listed(text)
    except ValueError:
        return None  # a name: kept as it is written
    return prefix if prefix.family is family else None


def find_all(rules: Iterable[Rule], target: str) -> list[Rule]:
    """Return the rules that lead to ``target``."""
    return [rule for rule in rules if rule.target == target]
