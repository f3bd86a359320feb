"""One document: its keys with their values' nodes, and plain values read from nodes.

Problems are collected and reading goes on, so that all of them are shown at once.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import NoReturn

import yaml

from ipmasq_agent.config.durations import parse_duration, show_duration
from ipmasq_agent.config.model import DEFAULT_CIDR_LIMIT, SHORTEST_RESYNC_INTERVAL, Flags
from ipmasq_agent.config.tree import PLAIN, NodeTree, is_null, printable
from ipmasq_agent.errors import ConfigError

KEYS = (
    *("nonMasqueradeCIDRs", "cidrLimit", "masqLinkLocal", "masqLinkLocalIPv6", "resyncInterval"),
    *("masqueradeCIDRs", "defaultAction", "podCIDRs", "nativeRoutingCIDRs", "exemptNodeIPs"),
    *("egressInterfaces", "snatAddress", "profile"),
)
# YAML 1.1, as the converter in front of Go's decoder resolves plain scalars.
_BOOLEANS = {
    spelt: value
    for value, words in ((True, ("y", "yes", "on", "true")), (False, ("n", "no", "off", "false")))
    for word in words
    for spelt in (word, word.title(), word.upper())
}
# A document of 100,000 typing errors should not print 100,000 lines.
SHOWN = 20
_SPELLINGS = {key.lower(): key for key in KEYS}
# What the converter can't make a key of an object.
_NO_KEYS = frozenset({"tag:yaml.org,2002:null", "tag:yaml.org,2002:timestamp"})
_EXAMPLE = "write keys, as in `nonMasqueradeCIDRs: [10.0.0.0/8]`"
# Numbers to the converter, once underscores are gone. To PyYAML 0o17 is none, and a float
# needs a point, and a sign in its exponent.
_INTEGER = re.compile(r"[-+]?(0[bB][01]+|0[oO]?[0-7]*|0[xX][0-9a-fA-F]+|[1-9][0-9]*)")
_LONGEST_NUMBER = 400  # digits; Python refuses to read some thousands of them
_OCTAL = re.compile(r"^([-+]?)0(?=[0-7])")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


class Reading:
    """One reading of one document: collects problems and goes on, so that all are shown."""

    def __init__(self, name: str, flags: Flags) -> None:
        self.name = name
        self.flags = flags
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.is_json = False
        self.unknown: yaml.ScalarNode | None = None
        """The first key that is not known."""

    # -- places -------------------------------------------------------------------------

    def place(self, node: yaml.Node | None) -> str:
        """Return ``NAME:LINE:COLUMN`` of a node, both from 1."""
        if node is None:
            return self.name
        return f"{self.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def problem(self, node: yaml.Node | None, text: str) -> None:
        """Note what makes the document unusable."""
        self.problems.append(f"{self.place(node)}: {printable(text)}")

    def warn(self, node: yaml.Node | None, text: str) -> None:
        """Note what the document's author may want to know."""
        self.warnings.append(f"{self.place(node)}: {printable(text)}")

    # -- structure ----------------------------------------------------------------------

    def keys(self, tree: NodeTree) -> Mapping[str, Sequence[yaml.Node]]:
        """Return the values of each known key, under its proper spelling; the last one counts.

        Several come from spellings of a key, and from JSON that repeats one: the decoder
        takes them one after the other, and refuses the document where it can't take one.
        """
        self.is_json = tree.is_json
        if tree.more:
            self.warn(None, "only the first YAML document is used; remove what follows it")
        root = tree.root
        if root is None or is_null(root):
            return {}
        if not isinstance(root, yaml.MappingNode):
            kind = "a list" if isinstance(root, yaml.SequenceNode) else f"the text {shown(root)}"
            self._refuse(root, f"the document is {kind}; {_EXAMPLE}")
        written: list[tuple[str, yaml.Node, yaml.Node]] = []
        places: dict[str, int] = {}
        for merged, key_node, value_node in tree.pairs():
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag in _NO_KEYS:
                self.problem(key_node, f"{shown(key_node)} cannot be a key; write a word")
                continue
            word: str = key_node.value
            key = _SPELLINGS.get(word.lower())
            if key is None:
                if not self.unknown:
                    self.unknown = key_node
                # The search for a near word is slow, and only so many warnings are shown.
                near = nearest(word) if len(self.warnings) < SHOWN else ""
                self.warn(key_node, f"unknown key {word!r} is ignored{near}")
            elif merged and word in places:
                continue
            else:
                if word in places:
                    self.warn(key_node, f"{key} is set twice; the first has no effect")
                if word in places and not self.is_json:
                    written[places[word]] = word, key_node, value_node
                else:
                    places[word] = len(written)
                    written.append((word, key_node, value_node))
        return self._decided(written)

    def _decided(
        self, written: list[tuple[str, yaml.Node, yaml.Node]]
    ) -> Mapping[str, Sequence[yaml.Node]]:
        """Bring the spellings of a key into the order in which they overwrite each other.

        From YAML they reach the decoder sorted bytewise, from JSON in the order of the
        document.
        """
        values: dict[str, list[yaml.Node]] = {}
        spelt: dict[str, str] = {}
        for word, key_node, value_node in written if self.is_json else sorted(written, key=_word):
            key = _SPELLINGS[word.lower()]
            if spelt.setdefault(key, word) != word:
                self.warn(key_node, f"{key} is set in two spellings; only one has an effect")
            values.setdefault(key, []).append(value_node)
        return values

    def refuse_unknown(self) -> None:
        """Refuse a document none of whose keys is known.

        To upstream it means the defaults; whoever wrote it meant something else.

        Raises:
            ConfigError: always.
        """
        node = self.unknown
        word = node.value if node else ""
        self._refuse(node, f"none of its keys is known, like {word!r}; {_EXAMPLE}{nearest(word)}")

    def _refuse(self, node: yaml.Node | None, text: str) -> NoReturn:
        raise ConfigError([f"{self.place(node)}: {printable(text)}"])

    # -- values -------------------------------------------------------------------------

    def integer(self, node: yaml.Node | None, key: str) -> int | None:
        """Return a whole number; None where there is none."""
        if node is None or is_null(node):
            return None
        value = _number(node)
        if isinstance(value, float) and value.is_integer() and not self.is_json:
            value = int(value)
        if not isinstance(value, int) or abs(value) >= 1 << 63:
            self.problem(
                node, f"{key}: {shown(node)} is not a whole number, like {DEFAULT_CIDR_LIMIT}"
            )
            return None
        return value

    def boolean(self, node: yaml.Node | None, key: str) -> bool | None:
        """Return a switch; None where it is not set."""
        if node is None or is_null(node):
            return None
        value = None
        # PyYAML leaves y and n strings.
        if isinstance(node, yaml.ScalarNode) and (node.tag.endswith(":bool") or _is_plain(node)):
            value = _BOOLEANS.get(node.value)
        if value is None:
            self.problem(node, f"{key}: {shown(node)} is not a boolean; write true or false")
        return value

    def interval(self, node: yaml.Node | None, key: str) -> int | None:
        """Return a duration in nanoseconds, above 0; None where it is not set."""
        if node is None:
            return None
        if not isinstance(node, yaml.ScalarNode) or not node.tag.endswith(":str"):
            number = not isinstance(node, yaml.CollectionNode) and node.value.isdigit()
            hint = f'; did you mean "{node.value}s"?' if number else ', like "60s"'
            self.problem(node, f"{key}: {shown(node)} is not a duration in quotes{hint}")
            return None
        try:
            duration = parse_duration(node.value)
        except ValueError as cause:
            self.problem(node, f'{key}: "{node.value}" {cause}')
            return None
        if duration <= 0:
            self.problem(
                node, f'{key}: "{node.value}" would never wait; write a duration above 0, like 60s'
            )
            return None
        if duration < SHORTEST_RESYNC_INTERVAL:
            self.warn(
                node,
                f'{key}: "{node.value}" is taken for {show_duration(SHORTEST_RESYNC_INTERVAL)}, '
                "the shortest that is; changes of the document apply at once in any case",
            )
        return max(duration, SHORTEST_RESYNC_INTERVAL)


def nearest(written: str) -> str:
    """Return the question whether a known key was meant, if one is near."""
    near = difflib.get_close_matches(written.lower(), _SPELLINGS, n=1, cutoff=0.6)
    return "".join(f"; did you mean {_SPELLINGS[key]}?" for key in near)


def _word(written: tuple[str, yaml.Node, yaml.Node]) -> str:
    return written[0]


def _is_plain(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style in PLAIN


def shown(node: yaml.Node) -> str:
    """Return a value as messages show it."""
    if isinstance(node, yaml.ScalarNode):
        return json.dumps(node.value) if node.tag.endswith(":str") else str(node.value) or "null"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


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
