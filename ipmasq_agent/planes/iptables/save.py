"""A nat table as ``iptables-save`` prints it → typed chains, or an error; never a guess."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.planes.iptables.text import is_whole, parse_rule, unlisted
from ipmasq_agent.planes.rules.rule import Rule
from ipmasq_agent.planes.rules.table import Chain, Table
from ipmasq_agent.policy.addresses import Family

_ANNOUNCED = re.compile(r":(\S+) (\S+)(?: \[\d+:\d+\])?")
_COUNTERS = re.compile(r"^\[\d+:\d+\] ")
_LONGEST_RULE = 1 << 14  # a comment has 256 bytes at most; past this a quote was cut off


def parse_saved(text: str, family: Family, *, writer: str, table: str = "nat") -> Table:
    """Return the nat table in the output of ``iptables-save -t nat``, or another one.

    Raises:
        KernelReadError: the output is cut short, or is not such a table.
    """
    policies: dict[str, str | None] = {}
    rules: dict[str, list[Rule]] = {}
    in_table = committed = False
    for line in _lines(text):
        if line == f"*{table}":
            in_table = True
        elif not in_table or not line or line.startswith("#"):
            continue
        elif line == "COMMIT":
            committed = True
            break
        elif line.startswith(":"):
            announced = _ANNOUNCED.fullmatch(line)
            if announced is None:
                raise _incomplete(writer, f"the line {line!r} does not announce a chain")
            name, policy = announced.groups()
            policies[name] = None if policy == "-" else policy
            rules[name] = []
        else:
            appended = _COUNTERS.sub("", line)
            if not appended.startswith("-A "):
                raise _incomplete(writer, f"the line {line!r} is not a rule")
            chain, _, rest = appended[3:].partition(" ")
            if chain not in rules:
                raise _incomplete(writer, f"the chain {chain!r} has rules but was not announced")
            rules[chain].append(parse_rule(unlisted(rest), family))
    if not committed:
        raise _incomplete(
            writer, "it ends before COMMIT" if in_table else f"it has no {table} table"
        )
    return Table(
        family, {name: Chain(name, policies[name], tuple(rules[name])) for name in policies}
    )


class Sieve:
    """Tells which lines of a save are worth keeping, one after the other: those of some chains.

    Others may keep a hundred thousand rules beside them.
    """

    def __init__(self, chains: Collection[str]) -> None:
        self._chains = chains
        self._keeping = True
        self._open = ""  # a rule that goes on in the next line

    def __call__(self, line: str) -> bool:
        """Return whether to keep the line."""
        if self._open:
            line = f"{self._open}\n{line}"
        elif line.startswith((":", "-A ")):
            name = line.removeprefix("-A ").removeprefix(":")
            self._keeping = name.partition(" ")[0] in self._chains
        else:
            self._keeping = True
        self._open = "" if _is_complete(line) else line
        return self._keeping


def parse_listed(
    text: str, family: Family, chain: str, *, writer: str, unreadable: Collection[int]
) -> list[Rule]:
    """Return the rules in the output of ``iptables -t nat -S CHAIN``.

    Args:
        text: the output.
        family: whose chain it is.
        chain: which one it is.
        writer: the program, for messages.
        unreadable: positions (from 0) of rules that another reader of the kernel found to
            hold more than iptables can print; they are carried, never compared equal.

    Raises:
        KernelReadError: the output is cut short, or is not a chain. Whether rules are left
            out at its end it does not tell.
    """
    if not text.endswith("\n"):
        raise _incomplete(writer, "its last line is cut off" if text else "there is none")
    rules: list[Rule] = []
    for line in _lines(text):
        # The first line makes the chain (-N), or sets its policy (-P).
        if not line or line.startswith(("#", f"-N {chain}", f"-P {chain} ")):
            continue
        head, _, rest = line.removeprefix("-A ").partition(" ")
        if not line.startswith("-A ") or head != chain:
            raise _incomplete(writer, f"the line {line!r} is not a rule of {chain}")
        rules.append(parse_rule(unlisted(rest), family, readable=len(rules) not in unreadable))
    return rules


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a save. One ends at a line feed, unless a quoted comment goes on.

    A comment may hold any character, and ``splitlines`` breaks at a dozen of them.
    """
    pending = ""
    for line in text.split("\n"):
        pending = f"{pending}\n{line}" if pending else line
        if _is_complete(pending):
            yield pending
            pending = ""
    if pending:
        yield pending


def _is_complete(line: str) -> bool:
    return line.startswith("#") or len(line) > _LONGEST_RULE or is_whole(line)


def _incomplete(writer: str, why: str) -> KernelReadError:
    return KernelReadError(
        f"the output of {writer} cannot be used: {why}",
        remedy=f"run `{writer} -t nat` by hand to see what it says; nothing was written",
    )
