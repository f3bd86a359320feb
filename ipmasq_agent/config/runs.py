"""Long runs of plain CIDRs in a document, read without a node for each of them.

libyaml tells Python of every scalar, and an event, a node and its marks cost 10 µs and a
kilobyte each: a second and 100 MB for a hundred thousand CIDRs. But a list of that length
is written by a program, line after line alike. Such lines are recognised by a regular
expression, and YAML is asked about the first and the last of them only.

Why the answer is that of YAML: between two items of one block sequence stand only lines of
the very form of these two, at the same indentation, blank lines and comments. Each such
line leaves libyaml's scanner (src/scanner.c) in the state in which it found it: the same
indentation, a simple key allowed, a block entry expected next. Where the first and the
last line turn out to be anything else (text of a block scalar, say), the document is read
as a whole, as if there were no runs.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from ipmasq_agent.policy.columns import Mapped
from ipmasq_agent.policy.decisions import Origin

_STR = "tag:yaml.org,2002:str"
# No scalar with a slash in it is anything but a string to YAML 1.1, quoted or not.
_QUOTED = r"[0-9a-fA-F.:]+/[0-9]+"
# A plain scalar may hold a colon before anything but a blank, and libyaml lets none begin
# with one.
_SCALAR = rf"(?:[0-9a-fA-F][0-9a-fA-F.:]*/[0-9]+|'{_QUOTED}'|\"{_QUOTED}\")"
# All that YAML allows in a comment but tabs, line breaks (U+0085, U+2028, U+2029 are some to
# it), byte order marks and what needs four bytes.
_COMMENT = r"#[ -~\u00a0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd]*"
_ITEM = rf"- {_SCALAR}(?: +{_COMMENT}| *)\r?\n"
_NOTHING = rf" *(?:{_COMMENT})?\r?\n"
# Groups: the first line and the last, and the indentation. What is matched once is not
# given back, so that a long run needs no memory to go back in.
_YAML_RUN = (
    rf"^(?P<first>(?P<indent> *){_ITEM})"
    rf"(?:(?:{_NOTHING})*+(?P<last>(?P=indent){_ITEM})){{15,}}+"
)
_SHORTEST = 16  # lines
_YAML_TEXT = re.compile(r"^ *- ['\"]?([0-9a-fA-F.:/]+)", re.MULTILINE)
JSON_RUN = re.compile(rf'(?:"{_QUOTED}"[ \t\r\n]*,[ \t\r\n]*){{16,}}+')
JSON_TEXT = re.compile(r'"([0-9a-fA-F.:/]+)')
_TEXT = re.compile(r"[0-9a-fA-F.:/]+")
_Mark: Any = yaml.Mark


class Run:
    """Strings of a list that stand one after the other, which no node was made of.

    Args:
        pattern: finds the strings in it; its group is the text of each, without quotes.
        line: that of the document in which ``body`` begins, from 0.
        column: where in that line it begins, from 0.
    """

    def __init__(self, body: str, pattern: re.Pattern[str], line: int, column: int) -> None:
        self._body = body
        self._pattern = pattern
        self._line = line
        self._column = column

    def texts(self) -> list[str]:
        """Return the strings."""
        return self._pattern.findall(self._body)

    @cached_property
    def _places(self) -> tuple[Sequence[int], Sequence[int]]:
        """Where each text begins, and each line ends; most documents are never asked."""
        starts = (found.start(1) for found in self._pattern.finditer(self._body))
        return array("I", starts), array("I", (m.start() for m in re.finditer("\n", self._body)))

    def place(self, index: int) -> tuple[str, int, int]:
        """Return text, line and column of a string, both from 0."""
        starts, lines = self._places
        start = starts[index]
        found = _TEXT.match(self._body, start)
        assert found is not None  # this is where the pattern matched
        start -= self._body[start - 1] in "'\""
        line = bisect_left(lines, start)
        column = start - lines[line - 1] - 1 if line else start + self._column
        return found[0], self._line + line, column

    def origins(self, document: str, count: int) -> Sequence[Origin]:
        """Return where the strings stand, of which there are ``count``; made on access."""

        def origin(index: int) -> Origin:
            text, line, column = self.place(index)
            return Origin(text, document, line + 1, column + 1)

        return Mapped(origin, range(count))

    def nodes(self) -> Iterator[yaml.ScalarNode]:
        """Yield a node for each string."""
        for index in range(len(self._places[0])):
            text, line, column = self.place(index)
            mark = _Mark(None, 0, line, column, None, None)
            yield yaml.ScalarNode(_STR, text, mark, mark)


def items(node: yaml.SequenceNode) -> Iterator[yaml.Node]:
    """Yield the nodes of a sequence, made of those runs that stand among its items."""
    for part in node.value:
        if isinstance(part, Run):
            yield from part.nodes()
        else:
            yield part


class NotARunError(Exception):
    """What looked like items of one list is something else."""


@dataclass(frozen=True, slots=True)
class _Gap:
    """Lines that were taken out, and where their neighbours' scalars begin in what is left."""

    first: int
    last: int
    body: str


class Cut:
    """A YAML text without its runs, and what puts them back where they were.

    Attributes:
        text: the text; lines that were taken out are empty.
    """

    def __init__(self, text: str) -> None:
        pieces: list[str] = []
        length = position = 0
        self._gaps: dict[int, _Gap] = {}
        # To compile the expression takes longer than to read most documents without it.
        is_long = text.count("\n") >= _SHORTEST
        for run in re.finditer(_YAML_RUN, text, re.MULTILINE) if is_long else ():
            after_first, last = run.end("first"), run.start("last")
            body = text[after_first:last]
            kept = text[position:after_first], "\n" * body.count("\n")
            pieces += kept
            length += len(kept[0])
            indent = len(run["indent"]) + len("- ")
            first = length - (after_first - run.start()) + indent
            length += len(kept[1])
            self._gaps[first] = _Gap(first, length + indent, body)
            position = last
        self.text = "".join([*pieces, text[position:]]) if pieces else text
        self._open: tuple[_Gap, yaml.Node] | None = None

    def __bool__(self) -> bool:
        return bool(self._gaps)

    def put(self, event: Any, parent: yaml.Node | None) -> None:
        """Follow a node that was added to ``parent``, and add the run that comes after it.

        Raises:
            NotARunError: the lines around a gap are not neighbours in one sequence.
        """
        mark = event.start_mark
        if self._open is not None:
            gap, sequence = self._open
            if mark.index != gap.last or parent is not sequence:
                raise NotARunError
            self._open = None
        elif mark.index in self._gaps:
            if not isinstance(event, yaml.ScalarEvent) or not isinstance(parent, yaml.SequenceNode):
                raise NotARunError
            gap = self._gaps.pop(mark.index)
            parent.value.append(Run(gap.body, _YAML_TEXT, mark.line + 1, 0))
            self._open = gap, parent

    def end(self) -> None:
        """Make sure that every run has found its place.

        Raises:
            NotARunError: one has not.
        """
        if self._gaps or self._open is not None:
            raise NotARunError
