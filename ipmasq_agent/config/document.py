"""Bytes of a document → ``Config``, with every fault named by line, column and remedy.

The meaning of each key, present, absent or null, is that of ip-masq-agent, whose parser
is Go's encoding/json behind a YAML converter: that is why keys match without regard to
case, why a null list is an empty list while a null number keeps its default, and why a
document that begins with ``{`` must be strict JSON.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import yaml

from ipmasq_agent.config.cidrs import parse_cidr
from ipmasq_agent.config.durations import parse_duration
from ipmasq_agent.config.model import (
    DEFAULT_CIDR_LIMIT,
    DEFAULT_RESYNC_INTERVAL,
    PRIVATE,
    RESERVED,
    Config,
    Flags,
)
from ipmasq_agent.config.tree import NodeTree
from ipmasq_agent.errors import ConfigError
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import Origin

KEYS = ("nonMasqueradeCIDRs", "cidrLimit", "masqLinkLocal", "masqLinkLocalIPv6", "resyncInterval")
# YAML 1.1, as the converter in front of Go's decoder resolves plain scalars.
_TRUE = frozenset({"y", "yes", "on", "true"})
_FALSE = frozenset({"n", "no", "off", "false"})
_PLAIN = (None, "")
# A document of 100,000 typing errors should not print 100,000 lines.
_SHOWN = 20
_LONGEST = 400
_NULL_CHANGES_NOTHING = frozenset({"cidrLimit", "masqLinkLocal", "masqLinkLocalIPv6"})
# A float to the converter; PyYAML wants a point, and a sign in the exponent.
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Understood:
    """A document that can be used, and what its author may want to know about it."""

    config: Config
    warnings: tuple[str, ...] = ()


def parse_document(content: bytes | None, name: str, flags: Flags) -> Understood:
    """Return what a document says.

    Args:
        content: its bytes; None where the document does not exist, which means defaults.
        name: what to call it in messages: a path or the name of a ConfigMap.
        flags: they decide the defaults, and whether IPv6 entries are welcome.

    Raises:
        ConfigError: with one line for each problem, ``NAME:LINE:COLUMN: …``.
    """
    reading = _Reading(name, flags)
    values = reading.keys(content) if content is not None else {}
    config = Config(
        non_masquerade_cidrs=reading.cidrs(values.get("nonMasqueradeCIDRs")),
        cidr_limit=reading.integer(values.get("cidrLimit"), "cidrLimit", DEFAULT_CIDR_LIMIT),
        masq_link_local=reading.boolean(values.get("masqLinkLocal"), "masqLinkLocal"),
        masq_link_local_ipv6=reading.boolean(values.get("masqLinkLocalIPv6"), "masqLinkLocalIPv6"),
        resync_interval=reading.interval(values.get("resyncInterval")),
    )
    if len(config.non_masquerade_cidrs) > config.cidr_limit:
        reading.problem(
            values.get("cidrLimit") or values.get("nonMasqueradeCIDRs"),
            f"nonMasqueradeCIDRs has {len(config.non_masquerade_cidrs)} entries, "
            f"cidrLimit allows {config.cidr_limit}; raise cidrLimit or merge entries",
        )
    if reading.problems:
        raise ConfigError(_shortened(reading.problems))
    return Understood(config, tuple(_shortened(reading.warnings + overlaps(config, name))))


def default_config(flags: Flags) -> Config:
    """Return the configuration that a missing document stands for."""
    ranges = PRIVATE + RESERVED if flags.nomasq_all_reserved_ranges else PRIVATE
    origin = Origin("default")
    return Config(tuple((parse_cidr(text), origin) for text in ranges))


class _Reading:
    """One reading of one document: collects problems and goes on, so that all are shown."""

    def __init__(self, name: str, flags: Flags) -> None:
        self.name = name
        self.flags = flags
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.is_json = False

    # -- places -------------------------------------------------------------------------

    def place(self, node: yaml.Node | None) -> str:
        if node is None:
            return self.name
        return f"{self.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def problem(self, node: yaml.Node | None, text: str) -> None:
        self.problems.append(f"{self.place(node)}: {printable(text)}")

    def warn(self, node: yaml.Node | None, text: str) -> None:
        self.warnings.append(f"{self.place(node)}: {printable(text)}")

    # -- structure ----------------------------------------------------------------------

    def keys(self, content: bytes) -> Mapping[str, yaml.Node]:
        """Return the value of each known key, under its proper spelling."""
        tree = NodeTree(content, self.name)
        self.is_json = tree.is_json
        if tree.more:
            self.warn(None, "only the first YAML document is used; remove the others")
        root = tree.root
        if root is None or _is_null(root):
            return {}
        if not isinstance(root, yaml.MappingNode):
            kind = "a list" if isinstance(root, yaml.SequenceNode) else f"the text {_shown(root)}"
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
                self.problem(key_node, f"{_shown(key_node)} cannot be a key; write a word")
                continue
            word: str = key_node.value
            key = spellings.get(word.lower())
            if key is None:
                # The search for a near word is slow, and only so many warnings are shown.
                near = _nearest(word) if len(self.warnings) < _SHOWN else ""
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
                if _is_null(value_node) and key in _NULL_CHANGES_NOTHING:
                    continue
            values[key] = value_node
        return values

    # -- values -------------------------------------------------------------------------

    def cidrs(self, node: yaml.Node | None) -> tuple[tuple[Prefix, Origin], ...]:
        if node is None:
            return default_config(self.flags).non_masquerade_cidrs
        if _is_null(node):
            return ()
        if not isinstance(node, yaml.SequenceNode):
            self.problem(
                node, f"nonMasqueradeCIDRs: {_shown(node)} is not a list; write [10.0.0.0/8]"
            )
            return ()
        entries = []
        for item in node.value:
            entry = self._cidr(item)
            if entry is not None:
                entries.append(entry)
        return tuple(entries)

    def _cidr(self, node: yaml.Node) -> tuple[Prefix, Origin] | None:
        if not isinstance(node, yaml.ScalarNode) or not node.tag.endswith(":str"):
            self.problem(node, f"nonMasqueradeCIDRs: {_shown(node)} is not a CIDR in quotes")
            return None
        text: str = node.value
        try:
            prefix = parse_cidr(text)
        except ValueError as cause:
            self.problem(node, f'nonMasqueradeCIDRs: "{text}" {cause}')
            return None
        if prefix.family is Family.IPV6 and not self.flags.enable_ipv6:
            self.problem(
                node,
                f'nonMasqueradeCIDRs: "{text}" is IPv6, which is off; '
                "start the agent with --enable-ipv6, or remove the entry",
            )
        mark = node.start_mark
        return prefix, Origin(text, self.name, mark.line + 1, mark.column + 1)

    def integer(self, node: yaml.Node | None, key: str, default: int) -> int:
        if node is None or _is_null(node):
            return default
        value = _resolved(node)
        if isinstance(value, str) and _is_plain(node) and _FLOAT.fullmatch(value):
            value = float(value)
        if isinstance(value, float) and value.is_integer() and not self.is_json:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 63:
            self.problem(node, f"{key}: {_shown(node)} is not a whole number, like {default}")
            return default
        return value

    def boolean(self, node: yaml.Node | None, key: str) -> bool:
        if node is None or _is_null(node):
            return False
        value = _resolved(node)
        if _is_plain(node) and value in ("y", "Y", "n", "N"):
            value = str(value).lower() in _TRUE  # the one spelling that PyYAML leaves a string
        if not isinstance(value, bool):
            self.problem(node, f"{key}: {_shown(node)} is not a boolean; write true or false")
            return False
        return value

    def interval(self, node: yaml.Node | None) -> int:
        key, fallback = "resyncInterval", DEFAULT_RESYNC_INTERVAL
        if node is None:
            return fallback
        if not isinstance(node, yaml.ScalarNode) or not node.tag.endswith(":str"):
            number = not isinstance(node, yaml.CollectionNode) and node.value.isdigit()
            hint = f'; did you mean "{node.value}s"?' if number else ', like "60s"'
            self.problem(node, f"{key}: {_shown(node)} is not a duration in quotes{hint}")
            return fallback
        try:
            duration = parse_duration(node.value)
        except ValueError as cause:
            self.problem(node, f'{key}: "{node.value}" {cause}')
            return fallback
        if duration <= 0:
            self.problem(
                node, f'{key}: "{node.value}" would never wait; write a duration above 0, like 60s'
            )
            return fallback
        return duration


def overlaps(config: Config, name: str) -> list[str]:
    """Return a warning for each entry that an equal or a larger one makes needless."""
    warnings = []
    entries = sorted(
        enumerate(config.non_masquerade_cidrs),
        key=lambda item: (item[1][0].family.bits, item[1][0].first, item[1][0].length, item[0]),
    )
    outer: tuple[Prefix, Origin] | None = None
    for _, (prefix, origin) in entries:
        if outer and outer[0].family is prefix.family and prefix.last <= outer[0].last:
            relation = "repeats" if prefix == outer[0] else "is covered by"
            at = f" in line {outer[1].line}" if outer[1].line else ""
            place = f"{name}:{origin.line}:{origin.column}" if origin.line else name
            warnings.append(f"{place}: {origin.text} {relation} {outer[1].text}{at}")
        else:
            outer = (prefix, origin)
    return warnings


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= _SHOWN:
        return lines
    return [*lines[:_SHOWN], f"... and {len(lines) - _SHOWN} more of the kind"]


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


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _is_plain(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style in _PLAIN


def _shown(node: yaml.Node) -> str:
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
