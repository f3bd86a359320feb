"""One document: its keys with their values' nodes, and plain values read from nodes.

Problems are collected and reading goes on, so that all of them are shown at once.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping

import yaml

from ipmasq_agent.config.durations import parse_duration
from ipmasq_agent.config.model import DEFAULT_CIDR_LIMIT, Flags
from ipmasq_agent.config.tree import NodeTree
from ipmasq_agent.errors import ConfigError

KEYS = (
    *("nonMasqueradeCIDRs", "cidrLimit", "masqLinkLocal", "masqLinkLocalIPv6", "resyncInterval"),
    *("masqueradeCIDRs", "defaultAction", "podCIDRs", "nativeRoutingCIDRs", "exemptNodeIPs"),
    *("egressInterfaces", "snatAddress", "profile"),
)
# YAML 1.1, as the converter in front of Go's decoder resolves plain scalars.
_TRUE = frozenset({"y", "yes", "on", "true"})
_FALSE = frozenset({"n", "no", "off", "false"})
_PLAIN = (None, "")
# A document of 100,000 typing errors should not print 100,000 lines.
SHOWN = 20
_LONGEST = 400
_NULL_CHANGES_NOTHING = frozenset({"cidrLimit", "masqLinkLocal", "masqLinkLocalIPv6"})
# A float to the converter; PyYAML wants a point, and a sign in the exponent.
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


class Reading:
    """One reading of one document: collects problems and goes on, so that all are shown."""

    def __init__(self, name: str, flags: Flags) -> None:
        self.name = name
        self.flags = flags
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.is_json = False

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

    def keys(self, content: bytes) -> Mapping[str, yaml.Node]:
        """Return the value of each known key, under its proper spelling."""
        tree = NodeTree(content, self.name)
        self.is_json = tree.is_json
        if tree.more:
            self.warn(None, "only the first YAML document is used; remove the others")
        root = tree.root
        if root is None or is_null(root):
            return {}
        if not isinstance(root, yaml.MappingNode):
            kind = "a list" if isinstance(root, yaml.SequenceNode) else f"the text {shown(root)}"
            raise ConfigError(
                [
                    f"{self.place(root)}: the document is {printable(kind)}; "
                    f"write keys, as in `nonMasqueradeCIDRs: [10.0.0.0/8]`"
                ]
            )
        spellings = {key.lower(): key for key in KEYS}
        written: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for merged, key_node, value_node in tree.pairs():
            if not isinstance(key_node, yaml.ScalarNode):
                self.problem(key_node, f"{shown(key_node)} cannot be a key; write a word")
                continue
            word: str = key_node.value
            key = spellings.get(word.lower())
            if key is None:
                # The search for a near word is slow, and only so many warnings are shown.
                near = _nearest(word) if len(self.warnings) < SHOWN else ""
                self.warn(key_node, f"unknown key {word!r} is ignored{near}")
            elif not (merged and word in written):
                if word in written:
                    self.warn(key_node, f"{key} is set twice; the first has no effect")
                written.pop(word, None)
                written[word] = (key_node, value_node)
        return self._decided(written, spellings)

    def _decided(
        self, written: Mapping[str, tuple[yaml.Node, yaml.Node]], spellings: Mapping[str, str]
    ) -> Mapping[str, yaml.Node]:
        """Let the spellings of a key overwrite each other, as the decoder does.

        From YAML they reach it sorted bytewise, from JSON in the order of the document. A
        null overwrites a list, and leaves a number or a switch as it is.
        """
        values: dict[str, yaml.Node] = {}
        for word in written if self.is_json else sorted(written):
            key_node, value_node = written[word]
            key = spellings[word.lower()]
            if key in values:
                self.warn(key_node, f"{key} is set in two spellings; only one has an effect")
                if is_null(value_node) and key in _NULL_CHANGES_NOTHING:
                    continue
            values[key] = value_node
        return values

    # -- values -------------------------------------------------------------------------

    def integer(self, node: yaml.Node | None, key: str) -> int | None:
        """Return a whole number; None where there is none."""
        if node is None or is_null(node):
            return None
        value = _resolved(node)
        if isinstance(value, str) and _is_plain(node) and _FLOAT.fullmatch(value):
            value = float(value)
        if isinstance(value, float) and value.is_integer() and not self.is_json:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 63:
            self.problem(
                node, f"{key}: {shown(node)} is not a whole number, like {DEFAULT_CIDR_LIMIT}"
            )
            return None
        return value

    def boolean(self, node: yaml.Node | None, key: str) -> bool | None:
        """Return a switch; None where it is not set."""
        if node is None or is_null(node):
            return None
        value = _resolved(node)
        if _is_plain(node) and value in ("y", "Y", "n", "N"):
            value = str(value).lower() in _TRUE  # the one spelling that PyYAML leaves a string
        if not isinstance(value, bool):
            self.problem(node, f"{key}: {shown(node)} is not a boolean; write true or false")
            return None
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
        return duration


def printable(text: str) -> str:
    """Return one line that is safe to print: short, without control characters."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 3]}..."
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def _nearest(written: str) -> str:
    lowered: Mapping[str, str] = {key.lower(): key for key in KEYS}
    near: Iterable[str] = difflib.get_close_matches(written.lower(), lowered, n=1, cutoff=0.6)
    return "".join(f"; did you mean {lowered[key]}?" for key in near)


def is_null(node: yaml.Node) -> bool:
    """Whether a value is null, however it is written."""
    return bool(node.tag == "tag:yaml.org,2002:null")


def _is_plain(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style in _PLAIN


def shown(node: yaml.Node) -> str:
    """Return a value as messages show it."""
    if isinstance(node, yaml.ScalarNode):
        return json.dumps(node.value) if node.tag.endswith(":str") else str(node.value) or "null"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def _resolved(node: yaml.Node) -> object:
    """Return a scalar as YAML 1.1 resolves it; None for anything that is not one."""
    if not isinstance(node, yaml.ScalarNode):
        return None
    text = str(node.value)
    readers: Mapping[str, Callable[[str], object]] = {
        "bool": lambda t: t.lower() in _TRUE if t.lower() in _TRUE | _FALSE else None,
        "int": _integer,
        "float": _real,
        "str": str,
    }
    reader = readers.get(node.tag.rsplit(":", 1)[-1])
    return reader(text) if reader else None


def _integer(text: str) -> int | None:
    digits = text.replace("_", "")
    # YAML 1.1 writes octal as 010, Python as 0o10; 1:30 (base 60) is no integer to Go's YAML.
    if len(digits) > 1 and digits.lstrip("+-").startswith("0") and digits.lstrip("+-").isdigit():
        digits = digits.replace("0", "0o", 1)
    try:
        return int(digits, 0)
    except ValueError:
        return None


def _real(text: str) -> float | None:
    try:
        return float(text.replace("_", ""))
    except ValueError:
        return None
