"""CIDRs read from text: strictly what users write, and leniently what programs print.

``parse_cidr`` takes what Go's net.ParseCIDR does, aligned, and says of anything else what to
write. ``parse_listed`` takes any address and mask that rules, sets and maps are listed with.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from ipmasq_agent.policy.addresses import Family, Prefix, parse_address, prefix_around

# An octet as Go writes it → its value, shifted to each of the four places.
_OCTETS = [{str(octet): octet << shift for octet in range(256)} for shift in (24, 16, 8, 0)]
# A length as Go writes it → itself, and the bits that must be 0 in an aligned address.
_LENGTHS = {
    family: {
        str(length): (length, (1 << family.bits - length) - 1) for length in range(family.bits + 1)
    }
    for family in Family
}
_IPV4_LENGTHS, _IPV6_LENGTHS = _LENGTHS[Family.IPV4], _LENGTHS[Family.IPV6]
_HIGHEST, _HIGH, _LOW, _LOWEST = _OCTETS
_IPV6_START = re.compile(r"[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{1,4}){0,6}")


class UnalignedError(ValueError):
    """A CIDR whose address has host bits set.

    Attributes:
        aligned: the prefix that it lies in.
    """

    def __init__(self, aligned: Prefix) -> None:
        super().__init__(f"has host bits set; did you mean {aligned}?")
        self.aligned = aligned


def parse_cidr(text: str) -> Prefix:
    """Return the prefix that ``text`` names.

    Raises:
        ValueError: it does not name one; the message completes the sentence
            "TEXT …" and says what to write where that can be guessed.
        UnalignedError: it names one but for the host bits.
    """
    found = common_form(text)
    return Prefix(*found) if found else _parse_carefully(text)


def parse_listed(text: str) -> Prefix:
    """Return what an address with any mask, or none, stands for; bits past it are dropped.

    The mask is a length, or contiguous from the top: ``0.255.255.255`` has a hole there to
    iptables, and only elsewhere is it read as the inverse of a mask.

    Raises:
        ValueError: it stands for no prefix; the message goes on from the text.
    """
    found = common_form(text)
    if found:
        return Prefix(*found)
    address, slash, mask = text.partition("/")
    try:
        family, number = parse_address(address)
        length = family.bits
        if slash and mask.isascii() and mask.isdigit() and len(mask) <= 3:
            length = int(mask)
        elif slash:
            mask_family, bits = parse_address(mask)
            holes = bits ^ family.last_address
            if mask_family is not family or holes & (holes + 1):
                raise ValueError("a mask with holes")
            length = family.bits - holes.bit_length()
        if length > family.bits or "%" in text:
            raise ValueError("too long, or within a zone")
    except ValueError as cause:
        raise ValueError("is not a prefix like 10.0.0.0/8") from cause
    return prefix_around(family, number, length)


def parse_common(texts: Sequence[str]) -> tuple[list[Family], list[int], list[int]] | None:
    """Return family, first address and length of each, or None if one has no common form.

    What has none may be wrong, or just rare: ``parse_cidr`` tells.
    """
    families: list[Family] = []
    firsts: list[int] = []
    lengths: list[int] = []
    # One at a time: a hundred thousand tuples alive would each be looked at by the garbage
    # collector, over and over.
    for text in texts:
        found = common_form(text)
        if found is None:
            return None
        family, first, length = found
        families.append(family)
        firsts.append(first)
        lengths.append(length)
    return families, firsts, lengths


def common_form(text: str) -> tuple[Family, int, int] | None:
    """Read 10.0.0.0/8 or fd00::/8, as nearly all CIDRs are; None for what is not aligned, or rare.

    It serves those who have a hundred thousand to read.
    """
    if ":" in text:
        return _common_ipv6(text)
    try:
        one, two, three, rest = text.split(".")
        four, length_text = rest.split("/")
        number = _HIGHEST[one] | _HIGH[two] | _LOW[three] | _LOWEST[four]
        length, host_bits = _IPV4_LENGTHS[length_text]
    except (ValueError, KeyError):
        return None
    return None if number & host_bits else (Family.IPV4, number, length)


def _common_ipv6(text: str) -> tuple[Family, int, int] | None:
    address, _, length_text = text.partition("::/")
    if length_text not in _IPV6_LENGTHS or not _IPV6_START.fullmatch(address):
        return None
    number, bits_left = 0, 128
    for group in address.split(":"):
        number = number << 16 | int(group, 16)
        bits_left -= 16
    number <<= bits_left
    length, host_bits = _IPV6_LENGTHS[length_text]
    if number & host_bits or number >> 32 == 0xFFFF:  # the latter is IPv4 inside IPv6
        return None
    return Family.IPV6, number, length


def _parse_carefully(text: str) -> Prefix:
    """Take everything but the common form, or explain what is wrong with it."""
    if text != text.strip():
        raise ValueError(f"has blanks around it{_meant(text.strip())}")
    address, slash, length_text = text.partition("/")
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise ValueError(_not_an_address(address, length_text)) from None
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.scope_id is not None:
            raise ValueError(f"has a zone, %{parsed.scope_id}; leave it out")
        if parsed.ipv4_mapped is not None:
            raise ValueError(_mapped(parsed.ipv4_mapped, length_text))
    family = Family.IPV4 if parsed.version == 4 else Family.IPV6
    if not slash:
        raise ValueError(f"has no prefix length; did you mean {parsed}/{family.bits}?")
    length = _length(length_text)
    if length is None:
        raise ValueError(_not_a_length(family, int(parsed), length_text))
    if length > family.bits:
        raise ValueError(f"has a prefix length over {family.bits}, the bits of {family.value}")
    if str(length) != length_text:
        # 010 is ten to Go, and eight to iptables, which upstream hands the text to.
        raise ValueError(f"has leading zeros in its prefix length{_meant(f'{address}/{length}')}")
    aligned = prefix_around(family, int(parsed), length)
    if aligned.first != int(parsed):
        raise UnalignedError(aligned)
    return aligned


def _length(text: str) -> int | None:
    """Read a decimal number, leading zeros or not."""
    if not (text.isascii() and text.isdigit()):
        return None
    digits = text.lstrip("0")
    return int(digits or 0) if len(digits) < 4 else 1000  # too long, whatever it is


def _meant(text: str) -> str:
    """Return the question whether ``text`` was meant, if it is something we would take."""
    try:
        parse_cidr(text)
    except ValueError:
        return ""
    return f"; did you mean {text}?"


def _mapped(inner: ipaddress.IPv4Address, length_text: str) -> str:
    length = _length(length_text)
    meant = ""
    if length is not None and 96 <= length <= 128:
        meant = f"; did you mean {prefix_around(Family.IPV4, int(inner), length - 96)}?"
    return f"is IPv4 inside IPv6, which decides about no packet{meant}"


def _not_an_address(address: str, length: str) -> str:
    octets = address.split(".")
    if len(octets) == 4 and all(o.isascii() and o.isdigit() for o in octets):
        digits = [o.lstrip("0") or "0" for o in octets]
        if all(len(o) <= 3 and int(o) < 256 for o in digits):
            number = int(ipaddress.IPv4Address(".".join(digits)))
            meant = _length(length) if length else 32
            if meant is None or meant > 32:
                return "has leading zeros; write its numbers without them"
            return f"has leading zeros; did you mean {prefix_around(Family.IPV4, number, meant)}?"
        return "has an octet over 255"
    return "is not a CIDR; write an address and a prefix length, as in 10.0.0.0/8 or fd00::/8"


def _not_a_length(family: Family, number: int, text: str) -> str:
    if family is Family.IPV4:
        try:
            length = ipaddress.IPv4Network(f"0.0.0.0/{text}", strict=False).prefixlen
        except ValueError:
            return f"has {text!r} for a prefix length; write a number from 0 to 32"
        return f"has a netmask; did you mean {prefix_around(family, number, length)}?"
    return f"has {text!r} for a prefix length; write a number from 0 to 128"
