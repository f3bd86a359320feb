"""What iptables-nft embeds in nf_tables: matches and targets of xtables, by their binary form.

Layouts: include/uapi/linux/netfilter/xt_*.h and nf_nat.h. Returned are the words that stand
for one, and its options as rules of iptables have them.
"""

from __future__ import annotations

import ipaddress
import struct
import sys
from collections.abc import Callable

from ipmasq_agent.planes.rules.rule import Option

Told = tuple[str, tuple[Option, ...]]

_MARK = struct.Struct("=IIB")  # xt_mark_mtinfo1: mark, mask, invert
_ADDRTYPE = struct.Struct("=HHI")  # xt_addrtype_info_v1: source, destination, flags
_SET = struct.Struct("=HBB")  # xt_set_info: index, dimensions, flags
_LOCAL = 1 << 2  # RTN_LOCAL as a bit
_INVERT_SOURCE, _INVERT_DESTINATION = 1, 2  # XT_ADDRTYPE_INVERT_...
_CONNTRACK_FLAGS = 146  # where xt_conntrack_mtinfo1 to 3 have match_flags
_ORIGINAL_DESTINATION, _REPLY_SOURCE = 1 << 3, 1 << 4
_MAP_ADDRESS = 1  # NF_NAT_RANGE_MAP_IPS
_NO_TRACKING = 1  # XT_CT_NOTRACK


def match_of(name: str, revision: int, info: bytes) -> Told:
    """Return what a match asks. Of those that are not known here its name alone is told."""
    reader = _MATCHES.get(name)
    return (reader and reader(revision, info)) or (name, (Option("match", (name,)),))


def target_of(name: str, revision: int, info: bytes) -> Told:
    """Return what a target does."""
    if name in ("MASQUERADE", "SNAT", "NETMAP"):
        address = _address(revision, info) if name == "SNAT" else None
        if name == "MASQUERADE":
            return "masquerade", (Option("jump", (name,)),)
        shown = address or "several"
        return f"{name.lower()} to {shown}", (
            Option("jump", (name,)),
            Option("to-source", (shown,)),
        )
    if name == "NOTRACK" or (name == "CT" and _number(info[:2]) & _NO_TRACKING):
        return "notrack", (Option("jump", ("NOTRACK",)),)
    return name, (Option("jump", (name,)),)


def _address(revision: int, info: bytes) -> str | None:
    """Return the one address to which SNAT translates; None where there are several."""
    if revision == 0:  # struct nf_nat_ipv4_multi_range_compat: count, flags, first, last, ports
        flags, first, last = _number(info[4:8]), info[8:12], info[12:16]
    else:  # struct nf_nat_range: flags, first, last, ports
        flags, first, last = _number(info[:4]), info[4:20], info[20:36]
    if not flags & _MAP_ADDRESS or first != last or len(first) not in (4, 16):
        return None
    return str(ipaddress.ip_address(first))


def _mark(revision: int, info: bytes) -> Told | None:
    if revision != 1 or len(info) < _MARK.size:
        return None
    mark, mask, inverted = _MARK.unpack_from(info)
    words = f"mark {'!= ' if inverted else ''}{mark:#x}/{mask:#x}"
    return words, (Option("mark", (f"{mark:#x}/{mask:#x}",), bool(inverted)),)


def _addrtype(revision: int, info: bytes) -> Told | None:
    if revision != 1 or len(info) < _ADDRTYPE.size:
        return None
    source, destination, flags = _ADDRTYPE.unpack_from(info)
    options: list[Option] = []
    if source:
        options.append(Option("src-type", (str(source),), bool(flags & _INVERT_SOURCE)))
    if destination:
        kind = "LOCAL" if destination == _LOCAL else str(destination)
        options.append(Option("dst-type", (kind,), bool(flags & _INVERT_DESTINATION)))
    if flags & ~(_INVERT_SOURCE | _INVERT_DESTINATION):
        options.append(Option("limit-iface-out"))
    words = ("addrtype" if source else "") or "fib daddr type"
    if len(options) == 1 and destination:
        words += f" {'!= ' if options[0].negated else ''}{options[0].values[0].lower()}"
    return words, tuple(options)


def _conntrack(revision: int, info: bytes) -> Told | None:
    if revision not in (1, 2, 3) or len(info) < _CONNTRACK_FLAGS + 2:
        return None
    flags = _number(info[_CONNTRACK_FLAGS : _CONNTRACK_FLAGS + 2])
    if flags & (_ORIGINAL_DESTINATION | _REPLY_SOURCE):
        return None
    return "conntrack", (Option("narrowing", ("conntrack",)),)


def _set(revision: int, info: bytes) -> Told | None:
    if revision < 1 or len(info) < _SET.size:
        return None
    index, dimensions, flags = _SET.unpack_from(info)
    sides = ["src" if flags >> place & 1 else "dst" for place in range(1, dimensions + 1)]
    option = Option("match-set", (f"#{index}", ",".join(sides)), bool(flags & 1))
    words = f"set {'!= ' if option.negated else ''}#{index} {','.join(sides)}"
    return words, (option,)


def _comment(revision: int, info: bytes) -> Told | None:
    said = info.split(b"\0")[0].decode(errors="replace")
    return f"/* {said} */", ()


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)


_MATCHES: dict[str, Callable[[int, bytes], Told | None]] = {
    "mark": _mark,
    "addrtype": _addrtype,
    "conntrack": _conntrack,
    "set": _set,
    "comment": _comment,
}
