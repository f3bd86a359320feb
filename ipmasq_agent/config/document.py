"""Bytes of documents → ``Config``, with every fault named by line, column and remedy.

The meaning of each of upstream's keys, present, absent or null, is that of ip-masq-agent,
whose parser is Go's encoding/json behind a YAML converter: that is why keys match without
regard to case, why a null list is an empty list while a null number keeps its default, and
why a document that begins with ``{`` must be strict JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TypeVar

import yaml

from ipmasq_agent.config.cidrs import parse_cidr
from ipmasq_agent.config.lists import (
    read_cidrs,
    read_interfaces,
    read_snat,
    read_sources,
    read_word,
)
from ipmasq_agent.config.model import (
    CILIUM,
    DEFAULT_RESYNC_INTERVAL,
    PRIVATE,
    RESERVED,
    Config,
    Flags,
)
from ipmasq_agent.config.reading import SHOWN, Reading
from ipmasq_agent.config.tree import NodeTree
from ipmasq_agent.errors import ConfigError
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.assemble import AUTO, Auto
from ipmasq_agent.policy.decisions import Origin, Stated, Verdict
from ipmasq_agent.policy.prefixes import Listed, ListedReason
from ipmasq_agent.policy.ranges import are_apart

# Upstream's keys: a document that sets one of them is no longer empty to Cilium.
_UPSTREAM = frozenset(
    {"nonMasqueradeCIDRs", "cidrLimit", "masqLinkLocal", "masqLinkLocalIPv6", "resyncInterval"}
)
_ACTIONS = {"masquerade": Verdict.MASQUERADE, "keep": Verdict.NON_MASQUERADE}
# What etcd, and so one ConfigMap, holds; counted over all of its keys.
_CONFIGMAP_HOLDS = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Understood:
    """Documents that can be used, and what their authors may want to know about them."""

    config: Config
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What was passed over on the way to the document, as other manifests of a stream."""


def parse_document(content: bytes | None, name: str, flags: Flags) -> Understood:
    """Return what one document says; see ``parse_documents``.

    Args:
        content: its bytes; None where the document does not exist, which means defaults.
        name: what to call it in messages: a path or the name of a ConfigMap.
        flags: they decide the defaults, and whether IPv6 entries are welcome.
    """
    return parse_documents([] if content is None else [(name, content)], name, flags)


def parse_documents(parts: Sequence[tuple[str, bytes]], name: str, flags: Flags) -> Understood:
    """Return what documents say together.

    Their lists are joined in the order given; of a key with one value the last counts.

    Args:
        parts: name and bytes of each; none where there is no document, which means defaults.
        name: what to call all of them together.
        flags: they decide the defaults, and whether IPv6 entries are welcome.

    Raises:
        ConfigError: with one line for each problem, ``NAME:LINE:COLUMN: …``.
    """
    notes: list[str] = []
    written = [part for name_, content in parts for part in _opened(name_, content, flags, notes)]
    merged = _Merged(written, flags)
    config = merged.config()
    problems = [problem for part in written for problem in part.reading.problems]
    warnings = [warning for part in written for warning in part.reading.warnings]
    problems += _contradictions(config)
    if not problems:
        problems += _over_limit(config, merged, name, flags)
    if problems:
        raise ConfigError(_shortened(problems))
    needless, unsaid = overlaps(config, name)
    return Understood(
        config, tuple(_shortened(warnings + needless, unsaid)), tuple(_shortened(notes))
    )


def default_config(flags: Flags) -> Config:
    """Return the configuration that a missing document stands for."""
    return parse_documents([], "default", flags).config


def oversize(parts: Iterable[tuple[str, bytes]]) -> list[str]:
    """Return a warning for each document that no ConfigMap can hold."""
    return [
        f"{name}: has {len(content):,} bytes, and one ConfigMap holds {_CONFIGMAP_HOLDS:,}; "
        "split it into several (they are merged in the order of their names)"
        for name, content in parts
        if len(content) > _CONFIGMAP_HOLDS
    ]


class _Part:
    """One of the documents: its reading, and the nodes of its keys."""

    def __init__(self, name: str, tree: NodeTree, flags: Flags) -> None:
        self.reading = Reading(name, flags)
        self.nodes = self.reading.keys(tree)


def _opened(
    name: str, content: bytes | str, flags: Flags, notes: list[str], *, nested: bool = False
) -> list[_Part]:
    """Return a document, or those that are in it if it is made of manifests.

    Raises:
        ConfigError: it says something, and nothing that we know.
    """
    tree = NodeTree(content, name)
    part = _Part(name, tree, flags)
    unknown = part.reading.unknown
    if part.nodes or not (unknown or tree.more):
        return [part]
    if not nested:
        from ipmasq_agent.config.manifests import Manifests  # which few agents ever need

        manifests = Manifests(tree, name)
        inner = manifests.documents()
        notes += manifests.notes
        if inner:
            return [
                part
                for its_name, text in inner
                for part in _opened(its_name, text, flags, notes, nested=True)
            ]
    if unknown:
        part.reading.refuse_unknown()
    if tree.roots():
        raise ConfigError(
            [f"{name}: its first YAML document is empty; remove the --- before the second"]
        )
    return [part]


class _Merged:
    """The keys of all parts, as one document."""

    def __init__(self, parts: Sequence[_Part], flags: Flags) -> None:
        self._parts = parts
        self._flags = flags
        self._profile = self.last("profile", partial(read_word, words=(CILIUM,)))

    def config(self) -> Config:
        cilium = self._profile == CILIUM
        action = self.last("defaultAction", partial(read_word, words=tuple(_ACTIONS)))
        default = _ACTIONS[action or "masquerade"]
        masquerade = self.cidrs("masqueradeCIDRs") or Listed.empty()
        non_masquerade = self.cidrs("nonMasqueradeCIDRs", masked=cilium)
        if non_masquerade is None:
            defaults = self._defaults(default, cilium)
            non_masquerade = Listed.of(e for e in defaults if not masquerade.holds(e[0]))
        limit = self.last("cidrLimit", Reading.integer)
        link_local = [bool(self.switch(key)) for key in ("masqLinkLocal", "masqLinkLocalIPv6")]
        interval = self.last("resyncInterval", Reading.interval)
        sources = self.last("podCIDRs", read_sources)
        devices = self.last("egressInterfaces", read_interfaces)
        exempt = self.switch("exemptNodeIPs")
        snat: dict[Family, int | Auto] = {}
        for reading, node in self.nodes("snatAddress"):
            snat |= read_snat(reading, node, "snatAddress")
        return Config(
            non_masquerade_cidrs=non_masquerade,
            cidr_limit=self._flags.cidr_limit if limit is None else limit,
            cidr_limit_set=limit is not None,
            masq_link_local=link_local[0],
            masq_link_local_ipv6=link_local[1],
            resync_interval=DEFAULT_RESYNC_INTERVAL if interval is None else interval,
            masquerade_cidrs=masquerade,
            default_action=default,
            pod_cidrs=AUTO if sources is None and cilium else sources,
            native_routing_cidrs=self.cidrs("nativeRoutingCIDRs") or Listed.empty(),
            exempt_node_ips=cilium if exempt is None else exempt,
            egress_interfaces=AUTO if devices is None and cilium else devices,
            snat=snat,
            profile=self._profile,
        )

    def _defaults(self, default: Verdict, cilium: bool) -> Listed:
        """Return what the absent key nonMasqueradeCIDRs stands for."""
        if default is Verdict.NON_MASQUERADE:
            return Listed.empty()  # to keep is the rule already
        if cilium and any(_UPSTREAM & part.nodes.keys() for part in self._parts):
            return Listed.empty()  # Cilium has defaults for an empty document only
        every = cilium or self._flags.nomasq_all_reserved_ranges
        reason = Stated("default")
        ranges = PRIVATE + (RESERVED if every else ())
        return Listed.of((parse_cidr(text), reason) for text in ranges)

    def nodes(self, key: str) -> list[tuple[Reading, yaml.Node]]:
        """Return the key's values in each part that has it."""
        return [(part.reading, node) for part in self._parts for node in part.nodes.get(key, ())]

    def last(self, key: str, read: Callable[[Reading, yaml.Node, str], T]) -> T | None:
        """Return the last value that a part gives; all are read, for their problems."""
        values = [read(reading, node, key) for reading, node in self.nodes(key)]
        given = [value for value in values if value is not None]
        return given[-1] if given else None

    def switch(self, key: str) -> bool | None:
        return self.last(key, Reading.boolean)

    def cidrs(self, key: str, *, masked: bool = False) -> Listed | None:
        """Return the lists of all parts as one; None where no part has the key."""
        lists = [
            [read_cidrs(part.reading, node, key, masked=masked) for node in part.nodes[key]][-1]
            for part in self._parts
            if key in part.nodes
        ]
        return Listed.chained(lists) if lists else None

    def place(self, *keys: str) -> str | None:
        """Return where the first of the keys that is set stands last."""
        for key in keys:
            for reading, node in reversed(self.nodes(key)):
                return reading.place(node)
        return None


def _over_limit(config: Config, merged: _Merged, name: str, flags: Flags) -> list[str]:
    count = config.listed
    if config.cidr_limit is None or count <= config.cidr_limit:
        return []
    place = merged.place("cidrLimit", "nonMasqueradeCIDRs", "masqueradeCIDRs") or name
    remedy = "raise cidrLimit or merge entries"
    if not config.cidr_limit_set:
        remedy = (
            f"which is what plain iptables takes unless the document sets it; write cidrLimit: "
            f"{count}, or run the agent with --backend ipset or nftables, which have no such limit"
        )
    kinds = "nonMasqueradeCIDRs" if count == len(config.non_masquerade_cidrs) else "the document"
    limit = f"cidrLimit allows {config.cidr_limit}"
    joint = "; " if config.cidr_limit_set else ", "
    return [f"{place}: {kinds} has {count} entries, {limit}{joint}{remedy}"]


def _contradictions(config: Config) -> list[str]:
    """Return a problem for each prefix that is to be masqueraded and not."""
    masqueraded = dict(config.masquerade_cidrs)
    if not masqueraded:
        return []
    kept = {
        "nonMasqueradeCIDRs": config.non_masquerade_cidrs,
        "nativeRoutingCIDRs": config.native_routing_cidrs,
    }
    return [
        f"{located(origin)}: {prefix} is in {key}, and in masqueradeCIDRs "
        f"({located(masqueraded[prefix])}); remove one of them"
        for key, entries in kept.items()
        for prefix, origin in entries
        if prefix in masqueraded
    ]


def located(reason: ListedReason) -> str:
    """Return ``NAME:LINE:COLUMN`` of an entry, or what stands in for it."""
    if isinstance(reason, Stated):
        return reason.text
    return f"{reason.document}:{reason.line}:{reason.column}"


def overlaps(config: Config, name: str) -> tuple[list[str], int]:
    """Return a warning for each entry that an equal or a larger one makes needless.

    Returns:
        As many warnings as are ever shown, and how many more there are.
    """
    kept = config.non_masquerade_cidrs + config.native_routing_cidrs
    # Between two entries of one list may lie one of the other: only repetitions are sure then.
    mixed = len(config.masquerade_cidrs) > 0
    lists = (kept, config.masquerade_cidrs)
    found = chain.from_iterable(_nested(listed, equal_only=mixed) for listed in lists)
    lines = [
        _overlap(reasons[inner], relation, reasons[outer], name)
        for reasons, inner, outer, relation in islice(found, SHOWN)
    ]
    return lines, sum(1 for _ in found)


def _nested(
    listed: Listed, *, equal_only: bool
) -> Iterator[tuple[Sequence[ListedReason], int, int, str]]:
    """Yield reasons, the positions of an inner and of an outer prefix, and their relation."""
    for family in Family:
        firsts, lasts, lengths, reasons = listed.columns(family)
        if are_apart(firsts, lasts):
            continue
        keys = [first << 8 | length for first, length in zip(firsts, lengths, strict=True)]
        outer, last = -1, -1
        for inner in sorted(range(len(keys)), key=keys.__getitem__):
            equal = outer >= 0 and keys[inner] == keys[outer]
            if firsts[inner] > last or (equal_only and not equal):
                outer, last = inner, lasts[inner]
            else:
                yield reasons, inner, outer, "repeats" if equal else "is covered by"


def _overlap(inner: ListedReason, relation: str, outer: ListedReason, name: str) -> str:
    where, document = name, None
    if isinstance(inner, Origin):
        where, document = located(inner), inner.document
    in_line = ""
    if isinstance(outer, Origin):
        elsewhere = "" if outer.document == document else f" of {outer.document}"
        in_line = f" in line {outer.line}{elsewhere}"
    return f"{where}: {inner.text} {relation} {outer.text}{in_line}"


def _shortened(lines: list[str], unsaid: int = 0) -> list[str]:
    more = len(lines[SHOWN:]) + unsaid
    return [*lines[:SHOWN], f"... and {more} more of the kind"] if more else lines
