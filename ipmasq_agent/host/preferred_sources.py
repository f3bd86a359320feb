"""Which source address the routes of the node prefer, destination by destination."""

from __future__ import annotations

from collections.abc import Iterable

from ipmasq_agent.host.links import DEFAULT_TABLE, MAIN_TABLE
from ipmasq_agent.netlink.rt import Route, list_routes
from ipmasq_agent.policy.addresses import Family, Prefix

PreferredSources = tuple[tuple[Prefix, int | None], ...]


def preferred_sources() -> PreferredSources:
    """Return destination and preferred source of the routes that forwarded packets take.

    The longest prefix decides for an address, as in the kernel. A route that prefers what
    the shorter one around it prefers is left out, as are those of pods on most nodes: it
    changes nothing, and comes and goes with its pod.

    These are the unicast routes of the main table, then those of the default table: what
    decides on a node without rules of its own (`ip rule` shows ``lookup main`` and
    ``lookup default``). Rules that choose another table by source, mark or device of the
    packet are not followed, since an address alone does not tell which packets they take:
    with these, name the addresses in the document.

    Raises:
        KernelReadError: the routes cannot be listed.
    """
    return summarised(route for family in Family for route in list_routes(family))


def summarised(routes: Iterable[Route]) -> PreferredSources:
    """Return the fewest prefixes that say the same as ``routes``, sorted."""
    order = (MAIN_TABLE, DEFAULT_TABLE)
    best: dict[Prefix, tuple[int, int, int | None]] = {}
    for route in routes:
        if route.table not in order:
            continue
        prefix = Prefix(route.family, route.first, route.length)
        rank = order.index(route.table), route.metric
        if prefix not in best or rank < best[prefix][:2]:
            best[prefix] = (*rank, route.source)
    kept: list[tuple[Prefix, int | None]] = []
    around: list[tuple[Prefix, int | None]] = []
    for prefix in sorted(best, key=lambda p: (p.family.value, p.first, p.length)):
        while around and not _covers(around[-1][0], prefix):
            around.pop()
        source = best[prefix][2]
        if source == (around[-1][1] if around else None):
            continue
        around.append((prefix, source))
        kept.append((prefix, source))
    return tuple(kept)


def _covers(outer: Prefix, inner: Prefix) -> bool:
    return outer.family is inner.family and outer.first <= inner.first <= outer.last
