"""Values that are lists of CIDRs or of patterns, or addresses: read from nodes, with origin."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence

import yaml

from ipmasq_agent.config.cidrs import UnalignedError, parse_cidr, parse_common
from ipmasq_agent.config.reading import Reading, shown
from ipmasq_agent.config.runs import Run, RunOrigins, groups
from ipmasq_agent.config.tree import is_null
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.assemble import AUTO, Auto
from ipmasq_agent.policy.decisions import Origin
from ipmasq_agent.policy.prefixes import Listed, ListedReason

# What the name of a device may hold (net/core/dev.c, dev_valid_name), and a glob around it.
_PATTERN = re.compile(r"!?[^\s/:!]{1,64}")
_AUTO_ROUTE = "auto-route"


def read_cidrs(reading: Reading, node: yaml.Node, key: str, *, masked: bool = False) -> Listed:
    """Return the CIDRs of a list, each with its place; none of a null.

    Args:
        reading: collects the problems.
        node: the value.
        key: whose value it is.
        masked: take an unaligned CIDR for the prefix that it lies in, with a warning.
    """
    if is_null(node):
        return Listed.empty()
    if not isinstance(node, yaml.SequenceNode):
        reading.problem(node, f"{key}: {shown(node)} is not a list; write [10.0.0.0/8]")
        return Listed.empty()
    parts: list[Sequence[tuple[Prefix, ListedReason]]] = []
    for group in groups(node):
        if isinstance(group, Run) and (listed := _run(reading, group)) is not None:
            parts.append(listed)
        else:
            entries = (_cidr(reading, item, key, masked) for item in group)
            parts.append([entry for entry in entries if entry is not None])
    return Listed.chained(parts)


def _run(reading: Reading, run: Run) -> Listed | None:
    """Return the CIDRs of a run; None where there may be something to say about one."""
    columns = parse_common(run.texts())
    if columns is None:
        return None
    families, firsts, lengths = columns
    if Family.IPV6 in families and not reading.flags.enable_ipv6:
        return None
    return Listed(families, firsts, lengths, RunOrigins(run, reading.name))


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


def read_sources(
    reading: Reading, node: yaml.Node | None, key: str
) -> tuple[Prefix, ...] | Auto | None:
    """Return the CIDRs of a list that restricts, or AUTO; None where nothing is restricted."""
    if node is None or is_null(node):
        return None
    if isinstance(node, yaml.ScalarNode) and node.value == AUTO.value:
        return AUTO
    if isinstance(node, yaml.SequenceNode):
        if not node.value:
            reading.problem(node, f"{key}: the list is empty; remove the key to mean every source")
        return tuple(prefix for prefix, _ in read_cidrs(reading, node, key))
    reading.problem(node, f"{key}: {shown(node)} is not a list nor auto; write [172.20.0.0/16]")
    return None


def read_interfaces(
    reading: Reading, node: yaml.Node | None, key: str
) -> tuple[str, ...] | Auto | None:
    """Return the patterns of device names, or AUTO; None where any device will do."""
    if node is None or is_null(node):
        return None
    if isinstance(node, yaml.ScalarNode) and node.value == AUTO.value:
        return AUTO
    if not isinstance(node, yaml.SequenceNode):
        reading.problem(node, f"{key}: {shown(node)} is not a list nor auto; write [eth0, bond*]")
        return None
    if not node.value:
        reading.problem(node, f"{key}: the list is empty; remove the key to mean every device")
    return tuple(_patterns(reading, node, key))


def _patterns(reading: Reading, node: yaml.SequenceNode, key: str) -> Iterator[str]:
    for item in node.value:
        if item.tag.startswith("!"):
            reading.problem(item, f"{key}: {item.tag} is a tag to YAML; quote it: '{item.tag}'")
        elif not isinstance(item, yaml.ScalarNode) or not _PATTERN.fullmatch(item.value):
            reading.problem(item, f"{key}: {shown(item)} is not a device or a pattern, like eth*")
        else:
            yield item.value


def read_snat(reading: Reading, node: yaml.Node | None, key: str) -> dict[Family, int | Auto]:
    """Return family → source address, or AUTO for the route's preferred source."""
    if node is None or is_null(node):
        return {}
    if isinstance(node, yaml.ScalarNode):
        return _one_snat(reading, node, key)
    if not isinstance(node, yaml.MappingNode):
        reading.problem(node, f"{key}: {shown(node)} is not an address, {_AUTO_ROUTE} or a mapping")
        return {}
    found: dict[Family, int | Auto] = {}
    families = {family.value: family for family in Family}
    for name, value in node.value:
        # What is no scalar is never made into text: aliases let it be of any size.
        word = name.value.lower() if isinstance(name, yaml.ScalarNode) else ""
        family = families.get(word)
        if family is None:
            reading.problem(name, f"{key}: {shown(name)} is not a family; write ipv4 or ipv6")
            continue
        taken = _one_snat(reading, value, key)
        if taken and family not in taken:
            reading.problem(value, f"{key}: {shown(value)} is not an address of {family.value}")
        elif taken:
            found[family] = taken[family]
    return found


def _one_snat(reading: Reading, node: yaml.Node, key: str) -> dict[Family, int | Auto]:
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


def read_word(
    reading: Reading, node: yaml.Node | None, key: str, words: tuple[str, ...]
) -> str | None:
    """Return one of the words; None where the key is not set."""
    if node is None or is_null(node):
        return None
    if isinstance(node, yaml.ScalarNode) and node.value in words:
        return str(node.value)
    reading.problem(node, f"{key}: {shown(node)} is not {' or '.join(words)}")
    return None
