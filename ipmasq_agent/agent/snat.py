"""A source address that the document gives, and whether replies to it find this node."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from ipmasq_agent.config.assemble import named_source
from ipmasq_agent.config.model import Config
from ipmasq_agent.errors import AgentError
from ipmasq_agent.host.routes import Delivery, delivery
from ipmasq_agent.logs import event
from ipmasq_agent.policy.addresses import Family

Deliver = Callable[[Family, int], Delivery]


class Replies(NamedTuple):
    """What there is to say, a line for each family.

    Attributes:
        unanswered: nothing comes back to these addresses.
        doubtful: whether something does is not to be seen from here.
    """

    unanswered: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()


def replies(config: Config, deliver: Deliver = delivery) -> Replies:
    """Ask about the addresses that a configuration names; those of routes are the node's own."""
    unanswered: list[str] = []
    doubtful: list[str] = []
    for family in config.families:
        address = named_source(config, family)
        if address is None:
            continue
        text = family.show(address)
        try:
            found = deliver(family, address)
        except AgentError as error:
            doubtful.append(f"whether replies to snatAddress {text} come back is unknown: {error}")
            continue
        if found is Delivery.NOWHERE:
            unanswered.append(
                f"nobody answers for snatAddress {text} in its subnet, so nothing comes back to "
                "what is masqueraded; give the address to this node's device in that subnet: "
                f"`ip address add {text}/{family.bits} dev DEVICE`"
            )
        elif found is Delivery.BY_ROUTERS:
            doubtful.append(
                f"snatAddress {text} is not an address of this node: replies come back only "
                "where routers outside send them here"
            )
    return Replies(tuple(unanswered), tuple(doubtful))


def tell(before: Replies, now: Replies) -> None:
    """Log what is new."""
    for line in set(now.unanswered) - set(before.unanswered):
        event(logging.ERROR, line)
    for line in set(now.doubtful) - set(before.doubtful):
        event(logging.WARNING, line)
    if before.unanswered and not now.unanswered:
        event(logging.INFO, "replies to snatAddress find this node again")
