"""Where one packet would leave the node, as tests ask."""

from __future__ import annotations

from ipmasq_agent.host.routes import WaysOut
from ipmasq_agent.policy.addresses import Family, parse_address
from ipmasq_agent.policy.facts import WayOut


def look_up(family: Family, destination: str, source: str | None) -> WayOut:
    to = parse_address(destination)[1]
    return WaysOut().look_up(family, to, None if source is None else parse_address(source)[1])
