"""The connections that go through the node now, whoever tracks them.

What cannot be read is an AgentError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ipmasq_agent.netlink import ct
from ipmasq_agent.netlink.ct import tracked
from ipmasq_agent.netlink.ct_events import NewConnections
from ipmasq_agent.planes.plane import AnyPlane, Beginnings, Translator
from ipmasq_agent.policy.flows import End, Flow
from ipmasq_agent.policy.model import PortRange
from ipmasq_agent.policy.ports import MOST, PortUse, fullest, kernel_pools
from ipmasq_agent.policy.tally import Tally


def live_flows(
    plane: AnyPlane, port: int | None = None, left: Iterable[AnyPlane] = ()
) -> Iterator[Flow]:
    """Yield connections of both families as they are read, each once.

    A plane that translates by itself tells of what leaves the node. Where connections are
    tracked beside it, what is translated there is told too, and where kube-proxy sends a
    connection to a Service, that is the destination. Others know of what connection tracking
    knows: also what comes to the node, and what stays there.

    Args:
        plane: in use.
        port: with which they leave, where only those are meant: that is much faster. Of a
            Service that was asked a plane that translates by itself then does not tell.
        left: those that were in use before, whose flows may go on there.
    """
    if not isinstance(plane, Translator):
        yield from _beside_left(port, [flow for each in left for flow in _translated(each, port)])
        return
    services: dict[tuple[int, End, End], End] = {}
    others: set[tuple[int, End, End]] = set()  # which leave translated before the programs see them
    for flow in tracked(port):
        if flow.translated:
            others.add((flow.protocol, flow.left_as, flow.reached))
            yield flow
        elif flow.destination != flow.reached:
            services[flow.protocol, flow.source, flow.reached] = flow.destination
    for flow in plane.flows(port):
        seen = flow.protocol, flow.source, flow.reached
        if flow.translated or seen not in others:
            yield flow._replace(destination=services.get(seen, flow.destination))


def _translated(left: AnyPlane, port: int | None) -> Iterator[Flow]:
    flows = left.flows(port) if isinstance(left, Translator) else iter(())
    return (flow for flow in flows if flow.translated)


def _beside_left(port: int | None, left: Iterable[Flow]) -> Iterator[Flow]:
    """Yield what is tracked, but for what it knows as it was before others translated it."""
    there = {(flow.protocol, flow.source, flow.reached): flow for flow in left}
    for flow in tracked(port):
        own = (
            None if flow.translated else there.pop((flow.protocol, flow.source, flow.reached), None)
        )
        yield flow if own is None else own._replace(destination=flow.destination)
    yield from there.values()


def beginnings(plane: AnyPlane) -> Beginnings:
    """Listen to connections as they are made."""
    return plane.beginnings() if isinstance(plane, Translator) else NewConnections()


def ports_taken(plane: AnyPlane, ranges: Sequence[PortRange], most: int = MOST) -> Tally[PortUse]:
    """Count the translated connections of both families by what shares ports."""
    translates = isinstance(plane, Translator)
    found = ct.ports_taken(kernel_pools(() if translates else ranges), most)
    if not isinstance(plane, Translator):
        return found
    own = plane.ports_taken(most)
    return Tally(fullest(found.counts + own.counts, most), found.missed + own.missed)
