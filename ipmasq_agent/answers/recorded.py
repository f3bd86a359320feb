"""Connections that somebody wrote down, read back: as JSON lines, by conntrack, or captured."""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from ipmasq_agent.answers import pcap
from ipmasq_agent.errors import MALFORMED, UsageError
from ipmasq_agent.policy.addresses import Family, parse_address
from ipmasq_agent.policy.flows import ICMP, End, Flow, protocol_number

# A line of `conntrack -L` or of its events, also with -o extended, timestamp or id.
_TRACKED = re.compile(r"(?:\[.*?\]\s*)*(?:ipv[46]\s+\d+\s+)?\S+\s+(?P<protocol>\d+)\s.*?(?=\bsrc=)")
_FIELD = re.compile(r"\b(src|dst|sport|dport|id)=(\S+)")
_REMARK = re.compile(r"conntrack v\S+ .*shown\.?$")
# What Hubble says beside flows, and what tells a flow of it that is not of IP.
_ABOUT_FLOWS = frozenset({"lost_events", "node_status", "agent_event", "debug_event"})
_OF_HUBBLE = frozenset({"verdict", "Type", "event_type"})
_LONGEST = 1 << 20  # bytes of a line: what has more has no lines
_REMEDY = (
    "what can be read are the lines of `observe -o json` or of Hubble, those of `conntrack -L`, "
    "and captures (pcap, pcapng)"
)


def recorded(file: io.BufferedReader, name: str) -> Iterator[Flow]:
    """Yield each connection of a record once.

    Args:
        file: the record.
        name: what it is called in errors.

    Raises:
        UsageError: it is of no form that is known; says where.
    """
    if file.peek(4)[:4] in pcap.MAGICS:
        try:
            yield from pcap.connections(file)
        except (pcap.NotACapture, struct.error) as cause:
            raise UsageError(f"{name}: {cause}", remedy=_REMEDY) from cause
        return
    found: dict[tuple[Family, int, End, End], Flow] = {}
    for number, line in enumerate(iter(lambda: file.readline(_LONGEST), b""), start=1):
        text = line.decode(errors="replace").strip()
        if not text or _REMARK.match(text):
            continue
        try:
            flow = _of_json(json.loads(text)) if text.startswith("{") else _tracked(text)
        except MALFORMED as cause:
            raise UsageError(
                f"{name}:{number}: {text[:60]!r} is no connection", remedy=_REMEDY
            ) from cause
        if flow is not None:
            key = flow.family, flow.protocol, flow.source, flow.destination
            known = found.get(key)
            if known is None or flow.established:
                found[key] = flow
    yield from found.values()


def _tracked(text: str) -> Flow:
    """Return the connection of a line of conntrack's.

    Raises:
        ValueError, KeyError: it is none.
    """
    head = _TRACKED.match(text)
    if head is None:
        raise ValueError("no protocol before its addresses")
    protocol = int(head["protocol"])
    first, *answers = text[head.end() + len("src=") :].split("src=")
    family, source, destination = _ends(protocol, first)
    left_as, reached = source, destination
    if answers:
        its, reached, left_as = _ends(protocol, answers[0])
        _same(family, its)
        if protocol in ICMP:
            reached, left_as = reached._replace(port=0), left_as._replace(port=reached.port)
    established = "[UNREPLIED]" not in text
    return Flow(family, protocol, source, destination, left_as, reached, established)


def _ends(protocol: int, text: str) -> tuple[Family, End, End]:
    """Return both ends of one direction, from behind its ``src=``."""
    found: dict[str, str] = dict(reversed(_FIELD.findall(f"src={text}")))  # first ones count
    port = found["id"] if protocol in ICMP else found.get("sport", "0")
    family, source = _end(found["src"], port)
    its, destination = _end(found["dst"], found.get("dport", "0"))
    _same(family, its)
    return family, source, destination


def _end(address: str, port: Any) -> tuple[Family, End]:
    family, number = parse_address(address)
    if not 0 <= int(port) < 1 << 16:
        raise ValueError("no port")
    return family, End(number, int(port))


def _same(*families: Family) -> None:
    if len(set(families)) > 1:
        raise ValueError("of two families")


def _of_json(data: Mapping[str, Any]) -> Flow | None:
    """Return the connection of an object as ``observe`` and Hubble write them.

    Returns:
        None where it is one that answers, or speaks of something else.

    Raises:
        one of MALFORMED: it is of no form that is known.
    """
    data = data.get("flow", data)
    if data.get("is_reply") or not _ABOUT_FLOWS.isdisjoint(data):
        return None
    if "IP" not in data and not _OF_HUBBLE.isdisjoint(data):
        return None
    ip = data["IP"]
    l4: dict[str, dict[str, Any]] = data.get("l4") or {"0": {}}
    ((name, ports),) = l4.items()
    family, first = _end(ip["source"], ports.get("source_port", ports.get("id", 0)))
    its, there = _end(ip["destination"], ports.get("destination_port", 0))
    # What ``observe`` tells beside what Hubble does.
    (of_source, left_as), (of_destination, reached) = (
        _end(end["address"], end["port"]) if (end := data.get(key)) else (family, otherwise)
        for key, otherwise in (("left_as", first), ("reached", there))
    )
    _same(family, its, of_source, of_destination)
    protocol = protocol_number(name.lower().replace("icmpv4", "icmp"))
    return Flow(family, protocol, first, there, left_as, reached)
