"""Bytes of documents → ``Config``, with every fault named by line, column and remedy.

The meaning of each of upstream's keys, present, absent or null, is that of ip-masq-agent,
whose parser is Go's encoding/json behind a YAML converter: that is why keys match without
regard to case, why a null list is an empty list while a null number keeps its default, and
why a document that begins with ``{`` must be strict JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from ipmasq_agent.config.keys import (
    CIDR_LIMIT,
    KEYS,
    MASQUERADE_CIDRS,
    NATIVE_ROUTING_CIDRS,
    NON_MASQUERADE_CIDRS,
    PROFILE,
    listed,
)
from ipmasq_agent.config.model import Config, Flags, Key
from ipmasq_agent.config.reading import SHOWN, Reading
from ipmasq_agent.config.tree import NodeTree
from ipmasq_agent.errors import ConfigError
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import Origin, Stated
from ipmasq_agent.policy.prefixes import Listed, ListedReason
from ipmasq_agent.policy.ranges import are_apart

# What etcd, and so one ConfigMap, holds; counted over all of its keys.
_CONFIGMAP_HOLDS = 1 << 20


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
    readings = [
        reading for title, content in parts for reading in _opened(title, content, flags, notes)
    ]
    config = _joined(readings, flags)
    problems = [problem for reading in readings for problem in reading.problems]
    warnings = [warning for reading in readings for warning in reading.warnings]
    problems += _contradictions(config)
    if not problems:
        problems += _over_limit(config, readings, name)
    if problems:
        raise ConfigError(_shortened(problems))
    needless, unsaid = _overlaps(config, name)
    return Understood(
        config, tuple(_shortened(warnings + needless, unsaid)), tuple(_shortened(notes))
    )


def oversize(parts: Iterable[tuple[str, bytes]]) -> list[str]:
    """Return a warning for each document that no ConfigMap can hold."""
    return [
        f"{name}: has {len(content):,} bytes, and one ConfigMap holds {_CONFIGMAP_HOLDS:,}; "
        "split it into several (they are merged in the order of their names)"
        for name, content in parts
        if len(content) > _CONFIGMAP_HOLDS
    ]


def _opened(
    name: str,
    content: bytes | str,
    flags: Flags,
    notes: list[str],
    *,
    nested: bool = False,
) -> list[Reading]:
    """Return a document, or those that are in it if it is made of manifests.

    Raises:
        ConfigError: it says something, and nothing that we know.
    """
    tree = NodeTree(content, name)
    reading = Reading(name, tree, flags, KEYS)
    if reading.nodes or not (reading.unknown or tree.more):
        return [reading]
    if not nested:
        from ipmasq_agent.config.manifests import Manifests  # which few agents ever need

        manifests = Manifests(tree, name)
        inner = manifests.documents()
        notes += manifests.notes
        if inner:
            return [
                reading
                for title, text in inner
                for reading in _opened(title, text, flags, notes, nested=True)
            ]
    if reading.unknown:
        reading.refuse_unknown()
    if tree.roots():
        raise ConfigError(
            [f"{name}: its first YAML document is empty; remove the --- before the second"]
        )
    return [reading]


def _joined(readings: Sequence[Reading], flags: Flags) -> Config:
    """Return what all documents say as one."""
    written: dict[Key[Any], Any] = {}
    for key in sorted(KEYS, key=lambda key: key is not PROFILE):  # it bears on how others are read
        documents = []
        for reading in readings:
            # All are read, for their problems.
            values = [key.kind.read(reading, n, key.name) for n in reading.nodes.get(key, ())]
            documents.append([value for value in values if value is not None])
        if any(documents):
            written[key] = key.kind.joined([values for values in documents if values])
        if key is PROFILE:
            for reading in readings:
                reading.profile = written.get(key)
    return Config(flags, written, frozenset(chain.from_iterable(r.nodes for r in readings)))


def _over_limit(config: Config, readings: Sequence[Reading], name: str) -> list[str]:
    count, limit = listed(config), config[CIDR_LIMIT]
    if limit is None or count <= limit:
        return []
    # The first of these that is set, where it stands last.
    places = (
        reading.place(node)
        for key in (CIDR_LIMIT, NON_MASQUERADE_CIDRS, MASQUERADE_CIDRS)
        for reading in reversed(readings)
        for node in reversed(reading.nodes.get(key, ()))
    )
    its_own = CIDR_LIMIT in config.written
    remedy = "; raise cidrLimit or merge entries"
    if not its_own:
        remedy = (
            ", which is what plain iptables takes unless the document sets it; write cidrLimit: "
            f"{count}, or run the agent with --backend ipset or nftables, which have no such limit"
        )
    kinds = "nonMasqueradeCIDRs" if count == len(config[NON_MASQUERADE_CIDRS]) else "the document"
    return [f"{next(places, name)}: {kinds} has {count} entries, cidrLimit allows {limit}{remedy}"]


def _contradictions(config: Config) -> list[str]:
    """Return a problem for each prefix that is to be masqueraded and not."""
    masquerade = config[MASQUERADE_CIDRS]
    masqueraded = dict(masquerade)
    if not masqueraded:
        return []
    return [
        f"{_located(reason)}: {prefix} is in {key.name}, and in masqueradeCIDRs "
        f"({_located(masqueraded[prefix])}); remove one of them"
        for key in (NON_MASQUERADE_CIDRS, NATIVE_ROUTING_CIDRS)
        for prefix, reason in config[key]
        if prefix in masqueraded
    ]


def _located(reason: ListedReason) -> str:
    """Return ``NAME:LINE:COLUMN`` of an entry, or what stands in for it."""
    if isinstance(reason, Stated):
        return reason.text
    return f"{reason.document}:{reason.line}:{reason.column}"


def _overlaps(config: Config, name: str) -> tuple[list[str], int]:
    """Return a warning for each entry that an equal or a larger one makes needless.

    Returns:
        As many warnings as are ever shown, and how many more there are.
    """
    masquerade = config[MASQUERADE_CIDRS]
    both = config[NON_MASQUERADE_CIDRS], config[NATIVE_ROUTING_CIDRS]
    kept = Listed.chained(both)
    # Between two entries of one list may lie one of the other: only repetitions are sure then.
    mixed = len(masquerade) > 0
    found = chain.from_iterable(_nested(one, equal_only=mixed) for one in (kept, masquerade))
    lines = [
        _overlap(reasons[inner], relation, reasons[outer], name)
        for reasons, inner, outer, relation in islice(found, SHOWN)
    ]
    return lines, sum(1 for _ in found)


def _nested(
    prefixes: Listed, *, equal_only: bool
) -> Iterator[tuple[Sequence[ListedReason], int, int, str]]:
    """Yield reasons, the positions of an inner and of an outer prefix, and their relation."""
    for family in Family:
        firsts, lasts, lengths, reasons = prefixes.columns(family)
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
        where, document = _located(inner), inner.document
    in_line = ""
    if isinstance(outer, Origin):
        elsewhere = "" if outer.document == document else f" of {outer.document}"
        in_line = f" in line {outer.line}{elsewhere}"
    return f"{where}: {inner.text} {relation} {outer.text}{in_line}"


def _shortened(lines: list[str], unsaid: int = 0) -> list[str]:
    more = len(lines[SHOWN:]) + unsaid
    return [*lines[:SHOWN], f"... and {more} more of the kind"] if more else lines
