"""What programs read of us, taken apart as they do, and by nothing of the package.

Words: add_param_to_argv of iptables' xshared.c. Lines end at a line feed, in quotes too: a restore
reads them with fgets(3).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple


class Word(NamedTuple):
    """A word of a line; one that was quoted is never taken for an option."""

    text: str
    quoted: bool


def words(line: str) -> Iterator[Word]:
    """Yield the words of a line of a restore."""
    text, quoted, is_open, escaped = "", False, False, False
    for char in f"{line}\n":
        if is_open:
            if escaped or char not in '\\"':
                text, escaped = text + char, False
            elif char == "\\":
                escaped = True
            else:
                is_open = False
                yield Word(text, quoted)
                text, quoted = "", False
        elif char == '"':
            is_open = quoted = True
        elif char not in " \t\n":
            text += char
        elif text:
            yield Word(text, quoted)
            text, quoted = "", False
    assert not is_open, f"a quote is open at the end of {line!r}"


_ADDRESSES = r"[0-9a-f:.]+/\d+"
_PORTS = r"\d+(-\d+)?"
# Each option that we write, and what its value may be; "" for one without.
OPTIONS = {
    "-s": _ADDRESSES,
    "-d": _ADDRESSES,
    "-p": "tcp|udp|sctp",
    "-m": "comment|addrtype|statistic|set",
    "--dst-type": "LOCAL",
    "--mode": "random",
    "--probability": r"0\.\d+",
    "--to-ports": _PORTS,
    "--to-source": rf"([0-9.]+|[0-9a-f:]+|\[[0-9a-f:]+\])(:{_PORTS})?",
    "--random-fully": "",
}
NAMED = ("-o", "--comment", "-j", "--match-set")
"""Options whose values are names: what they are is for a test to say."""


def options(line: list[Word]) -> Iterator[tuple[str, str]]:
    """Yield each option of a rule with its value; of ``NAMED`` ones whatever that is.

    Fails at anything that is no option of ours, or no value of it.
    """
    position = 0
    while position < len(line):
        flag = line[position]
        if flag == ("!", False):
            assert line[position + 1].text == "--dst-type", line
            position += 1
            flag = line[position]
        assert not flag.quoted, line
        position += 1
        if flag.text in NAMED:
            value = line[position]
            assert value.quoted or not value.text.startswith(("-", "!")), line
            position += 1
            if flag.text == "--match-set":
                assert line[position] == ("dst", False), line
                position += 1
            yield flag.text, value.text
            continue
        pattern = OPTIONS[flag.text]
        if pattern:
            assert re.fullmatch(pattern, line[position].text), line
            position += 1
        yield flag.text, ""


class Restored(NamedTuple):
    """The names in a restore: chains that are made or emptied, and those that rules have."""

    chains: set[str]
    devices: set[str]
    comments: set[str]
    targets: set[str]
    sets: set[str]


def restored(text: str) -> Restored:
    """Read what is fed to ``iptables-restore``; fails at whatever is not of our making."""
    assert text.endswith("\nCOMMIT\n")
    first, *lines, _, _ = text.split("\n")
    assert first == "*nat"
    found = Restored(set(), set(), set(), set(), set())
    places = dict(
        zip(NAMED, (found.devices, found.comments, found.targets, found.sets), strict=True)
    )
    for line in lines:
        if line.startswith(":"):
            made = re.fullmatch(r":(\S+) - \[0:0\]", line)
            assert made, line
            found.chains.add(made[1])
            continue
        verb, chain, *rest = words(line)
        assert verb.text in ("-A", "-I", "-D", "-X"), line
        assert not chain.quoted
        found.chains.add(chain.text)
        if rest and rest[0].text.isdecimal():
            assert verb.text in ("-I", "-D"), line
            del rest[0]
        for flag, value in options(rest):
            if flag in places:
                places[flag].add(value)
    return found


_SET = re.compile(
    r"create (\S+) hash:net family inet6? hashsize \d+ maxelem \d+"
    rf"|add (\S+) {_ADDRESSES}(?: nomatch)?(?: -exist)?"
    rf"|del (\S+) {_ADDRESSES}"
)


def sets(text: str) -> set[str]:
    """Return the names of sets in what is fed to ``ipset restore``; fails at anything else."""
    *lines, rest = text.split("\n")
    assert rest == ""
    matches = [_SET.fullmatch(line) for line in lines]
    assert all(matches), text
    return {name for match in matches if match for name in match.groups() if name}
