"""A connection through the node, as everybody here speaks of it."""

from __future__ import annotations

from typing import NamedTuple

from ipmasq_agent.policy.addresses import Family, parse_address

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
"""IANA's numbers, with the names that connection tracking gives them."""
_NUMBERS = {name: number for number, name in PROTOCOLS.items()}
ICMP = frozenset({1, 58})
"""Whose questions have an identifier in the place of ports."""


def protocol_name(number: int) -> str:
    """Return a protocol in words; its number where it has none here."""
    return PROTOCOLS.get(number, str(number))


def protocol_number(name: str) -> int:
    """Return the number that ``protocol_name`` made a name of.

    Raises:
        ValueError: of none.
    """
    return _NUMBERS.get(name) or int(name)


class End(NamedTuple):
    """One end of a connection.

    Attributes:
        port: of TCP, UDP and SCTP; the identifier of an ICMP question at the end that asks;
            otherwise 0.
    """

    address: int
    port: int

    def shown(self, family: Family) -> str:
        """Return address and port as people write them."""
        text = family.show(self.address)
        if not self.port:
            return text
        return f"[{text}]:{self.port}" if family is Family.IPV6 else f"{text}:{self.port}"


def parse_end(text: str) -> tuple[Family, End]:
    """Return the end that ``ADDRESS:PORT``, ``[ADDRESS]:PORT`` or ``ADDRESS`` names.

    Raises:
        ValueError: it is none of these.
    """
    address, port = text, "0"
    if text.startswith("["):
        address, end, port = text[1:].partition("]:")
        address, port = (address, port) if end else (text, port)
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    family, number = parse_address(address)
    if not (port.isascii() and port.isdecimal() and int(port) < 65536):
        raise ValueError(f"{text!r} has no port from 0 to 65535")
    return family, End(number, int(port))


class Flow(NamedTuple):
    """A connection before and after the node translates it.

    Attributes:
        source, destination: as its first packet had them when it came to the node.
        left_as: the source with which it leaves; ``source`` where that is kept.
        reached: the destination with which it leaves; another than ``destination`` where
            somebody translated that, as kube-proxy does for Services.
    """

    family: Family
    protocol: int
    source: End
    destination: End
    left_as: End
    reached: End
    established: bool = False

    @property
    def translated(self) -> bool:
        """Whether it leaves with another source."""
        return self.left_as != self.source

    @property
    def protocol_name(self) -> str:
        """The protocol in words."""
        return protocol_name(self.protocol)

    @property
    def has_ports(self) -> bool:
        """Whether its ends have ports, and not an identifier or nothing."""
        return self.protocol not in ICMP
