"""A CIDR as Go's net.ParseCIDR takes it, aligned; and for anything else, what to write."""

from __future__ import annotations

import ipaddress
import re

from ipmasq_agent.policy.addresses import Family, Prefix

_IPV4 = re.compile(r"(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})/(\d{1,3})", re.ASCII)


def parse_cidr(text: str) -> Prefix:
    """Return the prefix that ``text`` names.

    Raises:
        ValueError: it does not name one; the message completes the sentence
            "TEXT …" and says what to write where that can be guessed.
    """
    plain = _IPV4.fullmatch(text)
    if plain:
        octets = plain.groups()[:4]
        length = int(plain[5])
        if all(int(o) < 256 and (o == "0" or o[0] != "0") for o in octets) and length <= 32:
            number = 0
            for octet in octets:
                number = number << 8 | int(octet)
            return _aligned(Family.IPV4, number, length)
    return _parse_carefully(text)


def _parse_carefully(text: str) -> Prefix:
    """Take everything but the common form, or explain what is wrong with it."""
    if text != text.strip():
        raise ValueError(f"has blanks around it; write {text.strip()}")
    address, slash, length_text = text.partition("/")
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise ValueError(_not_an_address(address, length_text)) from None
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.scope_id is not None:
            raise ValueError(f"has a zone; write it without %{parsed.scope_id}")
        if parsed.ipv4_mapped is not None:
            raise ValueError(f"is IPv4 inside IPv6; write the IPv4 form, {parsed.ipv4_mapped}/…")
    family = Family.IPV4 if parsed.version == 4 else Family.IPV6
    if not slash:
        raise ValueError(f"has no prefix length; did you mean {parsed}/{family.bits}?")
    if not (length_text.isascii() and length_text.isdigit()):
        raise ValueError(_not_a_length(parsed, length_text))
    length = int(length_text)
    if length > family.bits:
        raise ValueError(f"has a prefix length over {family.bits}, the bits of {family.value}")
    return _aligned(family, int(parsed), length)


def _aligned(family: Family, number: int, length: int) -> Prefix:
    host_bits = family.bits - length
    aligned = number >> host_bits << host_bits
    if aligned != number:
        raise ValueError(f"has host bits set; did you mean {Prefix(family, aligned, length)}?")
    return Prefix(family, number, length)


def _not_an_address(address: str, length: str) -> str:
    octets = address.split(".")
    if len(octets) == 4 and all(o.isascii() and o.isdigit() for o in octets):
        without_zeros = ".".join(str(int(o)) for o in octets)
        if all(int(o) < 256 for o in octets):
            return f"has leading zeros; did you mean {without_zeros}/{length or 32}?"
        return "has an octet over 255"
    return "is not a CIDR; write an address and a prefix length, as in 10.0.0.0/8 or fd00::/8"


def _not_a_length(address: ipaddress.IPv4Address | ipaddress.IPv6Address, length_text: str) -> str:
    if address.version == 4:
        try:
            length = ipaddress.IPv4Network(f"0.0.0.0/{length_text}", strict=False).prefixlen
        except ValueError:
            return f"has {length_text!r} for a prefix length; write a number from 0 to 32"
        return f"has a netmask; did you mean {address}/{length}?"
    return f"has {length_text!r} for a prefix length; write a number from 0 to 128"
