"""Kinds of keys whose value is a list of CIDRs or of patterns, or addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import yaml

from ipmasq_agent.config.model import AUTO, Auto, Kind
from ipmasq_agent.config.reading import Reading, shown
from ipmasq_agent.config.runs import Run, items
from ipmasq_agent.config.tree import is_null
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.cidrs import UnalignedError, parse_cidr, parse_common
from ipmasq_agent.policy.decisions import Origin
from ipmasq_agent.policy.prefixes import Listed, ListedReason

T = TypeVar("T")

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
_IPV6 = r"[0-9a-fA-F:.]*:[0-9a-fA-F:.]*"
_CIDR_SCHEMA = {
    "type": "string",
    "description": "an aligned CIDR; one of IPv6 where the agent runs with --enable-ipv6 only",
    "pattern": rf"^(?:{_IPV4}/(?:3[0-2]|[12]?[0-9])|{_IPV6}/(?:12[0-8]|1[01][0-9]|[1-9]?[0-9]))$",
}
# What the name of a device may hold (net/core/dev.c, dev_valid_name), and a glob around it.
_PATTERN = re.compile(r"!?[^\s/:!]{1,64}")
_AUTO_ROUTE = "auto-route"


def cidrs(masked_by: str | None = None) -> Kind[Listed]:
    """Return the kind of destinations, each with its place, in their order; null lists none.

    Unaligned ones are read as the prefixes that they lie in where ``masked_by`` is the profile;
    each is warned of.
    """

    def read(reading: Reading, node: yaml.Node, key: str) -> Listed:
        if is_null(node):
            return Listed.empty()
        if not isinstance(node, yaml.SequenceNode):
            reading.problem(node, f"{key}: {shown(node)} is not a list; write [10.0.0.0/8]")
            return Listed.empty()
        masked = masked_by is not None and reading.profile is not None
        return _cidrs(reading, node, key, masked=masked)

    def joined(documents: Sequence[Sequence[Listed]]) -> Listed:
        return Listed.chained(lists[-1] for lists in documents)

    def show(value: Listed) -> list[str]:
        return list(map(str, value.prefixes()))

    item = dict(_CIDR_SCHEMA)
    if masked_by is not None:
        item["description"] += f"; with the profile {masked_by}, aligned or not"
    return Kind({"type": ["array", "null"], "items": item}, read, joined, show, destinations=True)


def _cidrs(reading: Reading, node: yaml.SequenceNode, key: str, *, masked: bool = False) -> Listed:
    parts: list[Sequence[tuple[Prefix, ListedReason]]] = []
    others: list[tuple[Prefix, ListedReason]] = []
    for part in node.value:
        if isinstance(part, Run) and (listed := _run(reading, part)) is not None:
            parts += others, listed
            others = []
        else:
            nodes = part.nodes() if isinstance(part, Run) else (part,)
            others += filter(None, (_cidr(reading, each, key, masked) for each in nodes))
    return Listed.chained((*parts, others))


def _run(reading: Reading, run: Run) -> Listed | None:
    """Return the CIDRs of a run; None where there may be something to say about one."""
    columns = parse_common(run.texts())
    if columns is None:
        return None
    families, firsts, lengths = columns
    if Family.IPV6 in families and not reading.flags.enable_ipv6:
        return None
    return Listed(families, firsts, lengths, run.origins(reading.name, len(firsts)))


def _cidr(
    reading: Reading, node: yaml.Node, key: str, masked: bool
) -> tuple[Prefix, Origin] | None:
    if not isinstance(node, yaml.ScalarNode) or not node.tag.endswith(":str"):
        reading.problem(node, f"{key}: {shown(node)} is not a CIDR in quotes")
        return None
    text: str = node.value
    try:
        prefix = parse_cidr(text)
    except ValueError as cause:
        if not masked or not isinstance(cause, UnalignedError):
            reading.problem(node, f'{key}: "{text}" {cause}')
            return None
        prefix = cause.aligned
        reading.warn(node, f'{key}: "{text}" is read as {prefix}, as Cilium does')
    if prefix.family is Family.IPV6 and not reading.flags.enable_ipv6:
        reading.problem(
            node,
            f'{key}: "{text}" is IPv6, which is off; '
            "start the agent with --enable-ipv6, or remove the entry",
        )
    mark = node.start_mark
    return prefix, Origin(text, reading.name, mark.line + 1, mark.column + 1)


def _restriction(
    listed: Callable[[Reading, yaml.SequenceNode, str], Iterable[T]],
    items: Mapping[str, Any],
    example: str,
    everything: str,
) -> Kind[tuple[T, ...] | Auto | None]:
    """Return a list that restricts, of at least one, or the word auto; null restricts nothing."""

    def read(reading: Reading, node: yaml.Node, key: str) -> tuple[T, ...] | Auto | None:
        if is_null(node):
            return None
        if isinstance(node, yaml.ScalarNode) and node.value == AUTO.value:
            return AUTO
        if not isinstance(node, yaml.SequenceNode):
            reading.problem(node, f"{key}: {shown(node)} is not a list nor auto; write [{example}]")
            return None
        if not node.value:
            reading.problem(
                node, f"{key}: the list is empty; remove the key to mean every {everything}"
            )
        return tuple(listed(reading, node, key))

    def show(value: tuple[T, ...] | Auto | None) -> Any:
        if isinstance(value, Auto):
            return value.value
        return None if value is None else list(map(str, value))

    array = {"type": "array", "minItems": 1, "items": items}
    return Kind({"anyOf": [{"enum": [AUTO.value, None]}, array]}, read, shown=show)


def _prefixes(reading: Reading, node: yaml.SequenceNode, key: str) -> Iterator[Prefix]:
    return _cidrs(reading, node, key).prefixes()


def _patterns(reading: Reading, node: yaml.SequenceNode, key: str) -> Iterator[str]:
    for item in items(node):
        if item.tag.startswith("!"):
            reading.problem(item, f"{key}: {item.tag} is a tag to YAML; quote it: '{item.tag}'")
        elif (
            not isinstance(item, yaml.ScalarNode)
            or is_null(item)
            or not _PATTERN.fullmatch(item.value)
        ):
            reading.problem(item, f"{key}: {shown(item)} is not a device or a pattern, like eth*")
        else:
            yield item.value


SOURCES = _restriction(_prefixes, _CIDR_SCHEMA, "172.20.0.0/16", "source")
# A device may be called 5, or on, which YAML takes for no text.
_NAMES = {"type": ["string", "number", "boolean"], "pattern": rf"^{_PATTERN.pattern}$"}
DEVICES = _restriction(_patterns, _NAMES, "eth0, bond*", "device")


Snats = Mapping[Family, int | Auto]
"""Family → source address, or AUTO for the route's preferred source."""
_FAMILIES = {family.value: family for family in Family}


_SNAT_SCHEMA = {
    "description": "an address that can be the source of packets on a network; one of IPv6 "
    "where the agent runs with --enable-ipv6 only",
    "anyOf": [
        {"type": "null"},
        {"type": "string", "pattern": rf"^(?:{_AUTO_ROUTE}|{_IPV4}|{_IPV6}(?:%.+)?)$"},
        {
            "type": "object",
            "patternProperties": {
                "^[iI][pP][vV]4$": {
                    "type": "string",
                    "pattern": rf"^(?:{_AUTO_ROUTE}|{_IPV4})$",
                },
                "^[iI][pP][vV]6$": {
                    "type": "string",
                    "pattern": rf"^(?:{_AUTO_ROUTE}|{_IPV6}(?:%.+)?)$",
                },
            },
            "additionalProperties": False,
        },
    ],
}


def _snat(reading: Reading, node: yaml.Node, key: str) -> Snats:
    if is_null(node):
        return {}
    if isinstance(node, yaml.ScalarNode):
        return _one_snat(reading, node, key)
    if not isinstance(node, yaml.MappingNode):
        reading.problem(node, f"{key}: {shown(node)} is not an address, {_AUTO_ROUTE} or a mapping")
        return {}
    found: dict[Family, int | Auto] = {}
    for name, value in node.value:
        # What is no scalar is never made into text: aliases let it be of any size.
        word = name.value.lower() if isinstance(name, yaml.ScalarNode) else ""
        family = _FAMILIES.get(word)
        if family is None:
            reading.problem(name, f"{key}: {shown(name)} is not a family; write ipv4 or ipv6")
            continue
        taken = _one_snat(reading, value, key)
        if taken and family not in taken:
            reading.problem(value, f"{key}: {shown(value)} is not an address of {family.value}")
        elif taken:
            found[family] = taken[family]
    return found


def _each_last(documents: Sequence[Sequence[Snats]]) -> Snats:
    """Return for each family the address that is given last."""
    given = chain.from_iterable(documents)
    return {family: source for each in given for family, source in each.items()}


def _shown_snat(value: Snats) -> dict[str, str]:
    return {
        family.value: _AUTO_ROUTE if isinstance(source, Auto) else family.show(source)
        for family, source in value.items()
    }


def _one_snat(reading: Reading, node: yaml.Node, key: str) -> Snats:
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    if text == _AUTO_ROUTE:
        return dict.fromkeys(Family, AUTO)
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        reading.problem(node, f"{key}: {shown(node)} is not an address nor {_AUTO_ROUTE}")
        return {}
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        reading.problem(node, f"{key}: {address} cannot be the source of packets on a network")
    family = Family.IPV4 if address.version == 4 else Family.IPV6
    if family is Family.IPV6 and not reading.flags.enable_ipv6:
        reading.problem(
            node, f"{key}: {address} is IPv6, which is off; start the agent with --enable-ipv6"
        )
    return {family: int(address)}


SNAT: Kind[Snats] = Kind(_SNAT_SCHEMA, _snat, _each_last, _shown_snat)
"""A source address, for each family if need be; null gives none."""
