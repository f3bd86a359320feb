"""iptables rules as typed values: what ``iptables-save`` prints, whoever wrote the rule.

Two rules are equal when they mean the same. The kernel's reader drops a ``-d 0.0.0.0/0``,
normalises addresses, prints options in an order of its own and rounds probabilities, so
comparing text would see differences where there are none, and rewrite for ever.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from ipmasq_agent.policy.addresses import Family, Prefix

_LONG = {
    "-s": "source", "--source": "source", "--src": "source",
    "-d": "destination", "--destination": "destination", "--dst": "destination",
    "-p": "protocol", "--protocol": "protocol", "--proto": "protocol",
    "-i": "in-interface", "--in-interface": "in-interface",
    "-o": "out-interface", "--out-interface": "out-interface",
    "-j": "jump", "--jump": "jump",
    "-g": "goto", "--goto": "goto",
    "-m": "match", "--match": "match",
    "-f": "fragment", "--fragment": "fragment",
}  # fmt: skip
# Matches that mean nothing by their name alone: their options say it all.
_SILENT_MODULES = frozenset({"addrtype", "comment", "mark", "multiport", "sctp", "set"})
_SILENT_MODULES |= {"statistic", "tcp", "udp", "conntrack"}
_PROTOCOLS = {"6": "tcp", "17": "udp", "132": "sctp", "1": "icmp", "58": "ipv6-icmp", "0": "all"}
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_PROBABILITY_UNIT = 1 << 31  # the kernel keeps a probability as 31 bits (xt_statistic.h)


class Option(NamedTuple):
    """One option of a rule in canonical form: ``! --dst-type LOCAL`` and its like."""

    name: str
    values: tuple[str, ...] = ()
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a chain.

    Attributes:
        text: what follows ``-A CHAIN``, as written or as the kernel's reader printed it.
        meaning: its options in canonical form and order, without the comment: equality.
        comment: free text for people, or None.
        readable: False where the reader is known to have left parts of the rule out.
    """

    text: str = field(compare=False)
    meaning: tuple[Option, ...]
    comment: str | None = field(default=None, compare=False)
    readable: bool = True

    def option(self, name: str) -> Option | None:
        """Return the option of that name, or None."""
        return next((option for option in self.meaning if option.name == name), None)

    @property
    def target(self) -> str | None:
        """Where a match leads: a chain, a built-in verdict, an extension; None for nothing."""
        option = self.option("jump") or self.option("goto")
        return option.values[0] if option else None


@lru_cache(maxsize=1024)  # most lines of a pass are those of the pass before
def parse_rule(text: str, family: Family, *, readable: bool = True) -> Rule:
    """Return the rule that ``text`` (without ``-A CHAIN``) writes down.

    Options that are not known are kept as they are, so that a rule of someone else's
    compares equal to itself and is never mistaken for one that does less.
    """
    comment: str | None = None
    options: list[Option] = []
    modules: list[str] = []
    for option in _options(_tokens(text)):
        if option.name == "comment":
            comment = option.values[0] if option.values else ""
        elif option.name == "match":
            modules.extend(option.values)
        else:
            canonical = _canonical(option, family)
            if canonical is not None:
                options.append(canonical)
    options += (Option("match", (name,)) for name in modules if name not in _SILENT_MODULES)
    return Rule(text, tuple(sorted(options)), comment, readable)


def quote(text: str) -> str:
    """Return ``text`` as one word of the restore format."""
    if re.fullmatch(r"[\w.:/!,=+-]+", text, re.ASCII):
        return text
    return '"' + re.sub(r'(["\\\'])', r"\\\1", text) + '"'


def _tokens(text: str) -> list[str]:
    if '"' not in text:
        return text.split()
    return [
        re.sub(r"\\(.)", r"\1", match[1]) if match[1] is not None else match[2]
        for match in _TOKEN.finditer(text)
    ]


def _options(tokens: list[str]) -> Iterator[Option]:
    """Group words into options: a flag, an ``!`` before it, the words that follow."""
    position, negated = 0, False
    while position < len(tokens):
        word = tokens[position]
        position += 1
        if word == "!":
            negated = True
            continue
        values: list[str] = []
        # A comment may look like an option; every other value never begins with a dash.
        while position < len(tokens) and (
            (word == "--comment" and not values) or not _begins_option(tokens[position])
        ):
            values.append(tokens[position])
            position += 1
        yield Option(_LONG.get(word, word.lstrip("-")), tuple(values), negated)
        negated = False


def _begins_option(word: str) -> bool:
    return word == "!" or (len(word) > 1 and word[0] == "-" and not word[1:].isdigit())


def _canonical(option: Option, family: Family) -> Option | None:
    """Return the one form of an option, or None where it restricts nothing."""
    name, values, negated = option
    if name in ("source", "destination") and len(values) == 1:
        prefix = read_prefix(values[0], family)
        if prefix is None:
            return option
        if prefix.length == 0 and not negated:
            return None
        return Option(name, (str(prefix),), negated)
    if name == "protocol" and len(values) == 1:
        protocol = _PROTOCOLS.get(values[0], values[0].lower())
        return None if protocol == "all" and not negated else Option(name, (protocol,), negated)
    if name == "probability" and len(values) == 1:
        return Option(name, (str(round(float(values[0]) * _PROBABILITY_UNIT)),), negated)
    if name in ("to-ports", "dport", "sport") and len(values) == 1:
        first, dash, last = values[0].replace(":", "-").partition("-")
        return Option(name, (f"{first}-{last if dash else first}",), negated)
    return option


def read_prefix(text: str, family: Family) -> Prefix | None:
    """Return an address with any mask that iptables takes as a prefix; None if it is not one."""
    try:
        if family is Family.IPV4:
            network: ipaddress.IPv4Network | ipaddress.IPv6Network
            network = ipaddress.IPv4Network(text, strict=False)
        else:
            network = ipaddress.IPv6Network(text, strict=False)
    except ValueError:
        return None  # a mask with holes, or a name: kept as it is written
    return Prefix(family, int(network.network_address), network.prefixlen)


def find_all(rules: Iterable[Rule], target: str) -> list[Rule]:
    """Return the rules that lead to ``target``."""
    return [rule for rule in rules if rule.target == target]
