"""The lab in IPv6: every IPv4 address of it has a mirror image.

The story, its documents, routes and expectations are written in IPv4 alone. 172.20.1.10 is
fd00:172:20:1::10 in IPv6, 172.20.0.0/16 is fd00:172:20::/48: the decimal digits stay.
"""

from __future__ import annotations

import ipaddress
import re

_IPV4 = re.compile(r"\b(\d+)\.(\d+)\.(\d+)\.(\d+)(?:/(\d+))?\b")
# One group of the IPv6 address for each number of the IPv4 one, after fd00.
_LENGTHS = {"0": 0, "8": 32, "16": 48, "24": 64, "32": 128}


def mirrored(text: str) -> str:
    """Return ``text`` with its IPv4 addresses and prefixes in IPv6.

    Raises:
        KeyError: a prefix length has no mirror image; 0, 8, 16, 24 and 32 have.
    """
    return _IPV4.sub(_mirrored, text)


def _mirrored(match: re.Match[str]) -> str:
    a, b, c, d, length = match.groups()
    if match[0] == "0.0.0.0/0":
        return "::/0"
    address = str(ipaddress.IPv6Address(f"fd00:{a}:{b}:{c}::{d}"))
    return address if length is None else f"{address}/{_LENGTHS[length]}"
