"""Rules of nf_tables, whoever wrote them and however, told by the kernel's own expressions.

A rule is a little program over registers: load a field of the packet, compare it or look it
up, do something. What comes of it are the options that rules of iptables are read into, so
that one interpretation answers for all: what a packet's destination, source, device or mark
decides is told exactly; what narrows a rule to some packets in another way is told as such;
and what cannot be read is an option that no reader knows, which makes the rule unreadable
for the packets that the rest of it matches.

Numbers: include/uapi/linux/netfilter/nf_tables.h; of what iptables-nft embeds, the xt_*.h
beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ipmasq_agent.netlink.core import attributes, text
from ipmasq_agent.netlink.nf import PROTOCOL, Expression, number
from ipmasq_agent.planes.hook.xtables import match_of, target_of
from ipmasq_agent.planes.prefixset import AddressSet
from ipmasq_agent.planes.rules.rule import Option, Rule
from ipmasq_agent.policy.addresses import Family, range_text

Devices = tuple[str, ...]
Held = AddressSet | Devices
"""What is known of a set: addresses, or names of devices."""

_ACCEPT, _DROP, _JUMP, _GOTO, _RETURN = 1, 0, -3, -4, -5
_ENDINGS = {_ACCEPT: "ACCEPT", _DROP: "DROP", _RETURN: "RETURN"}
_EQUAL, _UNEQUAL, _LESS, _AT_MOST, _MORE, _AT_LEAST = range(6)
_SIGNS = ("", "!= ", "< ", "<= ", "> ", ">= ")
_NETWORK = {  # offset in the header → field
    Family.IPV4: {12: "source", 16: "destination", 9: "protocol"},
    Family.IPV6: {8: "source", 24: "destination", 6: "protocol"},
}
_PORTS = {(0, 2): "sport", (2, 2): "dport"}
_META = {1: "ethertype", 3: "mark", 4: "iif", 5: "oif", 6: "in-interface", 7: "out-interface"}
_META |= {15: "nfproto", 16: "protocol"}
_CT_STATE, _CT_LOOKS_AT_DESTINATION = 0, frozenset({9, 10, 20, 22})  # enum nft_ct_keys
_STATES = {1: "INVALID", 2: "ESTABLISHED", 4: "RELATED", 8: "NEW", 64: "UNTRACKED"}
_FIB_TYPE, _FIB_SOURCE, _FIB_DESTINATION = 3, 1, 2
_TYPES = {1: "UNICAST", 2: "LOCAL", 3: "BROADCAST", 4: "ANYCAST", 5: "MULTICAST"}
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}
_FAMILIES = {2: "ipv4", 10: "ipv6"}
_ETHERTYPES = {0x0800: "ipv4", 0x86DD: "ipv6"}
_NAMES = {"out-interface": "oifname", "in-interface": "iifname", "mark": "meta mark"}
_NAMES |= {"nfproto": "meta nfproto", "protocol": "meta l4proto", "ctstate": "ct state"}
_NAMES |= {"dst-type": "fib daddr type"}
_DEVICES = ("in-interface", "out-interface")
_NETMAP = 1 << 6  # NF_NAT_RANGE_NETMAP

# What loads something that is not the destination, so that comparing it narrows a rule.
_NARROW_LOADS = frozenset({"numgen", "socket", "osf", "rt", "exthdr", "xfrm", "tunnel"})
_NARROWING = frozenset({"limit", "quota", "connlimit"})
_SILENT = frozenset({"counter", "log", "last"})


class References(NamedTuple):
    """What rules lead to, and which sets they ask."""

    chains: frozenset[str] = frozenset()
    sets: frozenset[str] = frozenset()


def references(rules: Iterable[Sequence[Expression]]) -> References:
    """Return the chains that rules jump or go to, and the sets that they look things up in."""
    chains: set[str] = set()
    sets: set[str] = set()
    for kind, data in (expression for rule in rules for expression in rule):
        if kind == "lookup":
            sets.add(text(dict(attributes(data)).get(1)))
        elif kind == "immediate":
            _, chain = verdict_of(dict(attributes(data)).get(2, b""))
            if chain is not None:
                chains.add(chain)
    return References(frozenset(chains), frozenset(sets))


def verdict_of(data: bytes) -> tuple[int, str | None]:
    """Return a verdict's code, and the chain that it leads to."""
    parts = dict(attributes(dict(attributes(data)).get(2, b"")))
    code = int.from_bytes(parts.get(1, b""), "big", signed=True)
    return code, text(parts[2]) if 2 in parts else None


def told(
    expressions: Sequence[Expression],
    family: Family,
    sets: Mapping[str, Held],
    device: Callable[[int], str],
) -> Rule:
    """Return the rule that expressions are, for packets of one family.

    Args:
        expressions: as the kernel lists them.
        family: whose packets; a table of the family inet has rules for both.
        sets: what is known of the sets that the rule asks; the rest cannot be read.
        device: the name of the device with a number.
    """
    program = _Program(family, sets, device)
    for kind, data in expressions:
        if kind not in _SILENT:
            program.step(kind, data)
    return Rule(" ".join(program.words), tuple(sorted(program.options)))


def as_iptables(rule: Rule) -> Rule:
    """Return a rule as iptables would write it, where it has words for all of it."""
    if any(option.name not in _ORDER for option in rule.meaning):
        return rule
    return replace(rule, written=tuple(sorted(rule.meaning, key=lambda o: _ORDER.index(o.name))))


_ORDER = ["source", "destination", "in-interface", "out-interface", "protocol", "mark"]
_ORDER += ["dst-type", "jump", "goto", "to-source"]


@dataclass(slots=True)
class _Field:
    """What a register holds: which field, the mask laid over it, or plain data."""

    subject: str
    shown: str
    mask: bytes | None = None
    data: bytes = b""


_NOTHING = _Field("unreadable", "(unknown)")


@dataclass(slots=True)
class _Program:
    """A rule on its way from expressions to options."""

    family: Family
    sets: Mapping[str, Held]
    device: Callable[[int], str]
    options: list[Option] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    registers: dict[int, _Field] = field(default_factory=dict)

    def step(self, kind: str, data: bytes) -> None:
        parts = dict(attributes(data))
        numbers = {key: number(value) for key, value in parts.items() if len(value) <= 4}
        if kind == "payload" and 1 in parts:
            self._load(numbers, self._header_field(numbers))
        elif kind == "meta":
            self._meta(numbers)
        elif kind == "ct":
            self._conntrack(numbers)
        elif kind == "fib":
            self._load(numbers, _fib(numbers))
        elif kind in _NARROW_LOADS and 1 in parts:
            self._load(numbers, _Field("narrowing", kind))
        elif kind == "bitwise":
            self._mask(numbers, parts)
        elif kind == "byteorder":
            held = self.registers.get(numbers.get(1, 0), _NOTHING)
            self.registers[numbers.get(2, 0)] = held
        elif kind == "cmp":
            value = dict(attributes(parts.get(3, b""))).get(1, b"")
            self._compare(numbers.get(1, 0), numbers.get(2, -1), value)
        elif kind == "range":
            ends = [dict(attributes(parts.get(n, b""))).get(1, b"") for n in (3, 4)]
            self._range(numbers.get(1, 0), ends, negated=numbers.get(2) == _UNEQUAL)
        elif kind == "lookup":
            self._look_up(text(parts.get(1)), numbers)
        elif kind == "immediate":
            self._immediate(numbers.get(1, 0), parts.get(2, b""))
        else:
            self._act(kind, numbers, parts)

    def _act(self, kind: str, numbers: Mapping[int, int], parts: Mapping[int, bytes]) -> None:
        """Take in what is no question of a register."""
        if kind == "masq":
            self._to("masquerade", "MASQUERADE")
        elif kind == "notrack":
            self._to("notrack", "NOTRACK")
        elif kind == "nat":
            self._translate(numbers)
        elif kind == "match":
            self._take(*match_of(text(parts.get(1)), numbers.get(2, 0), parts.get(3, b"")))
        elif kind == "target":
            self._take(*target_of(text(parts.get(1)), numbers.get(2, 0), parts.get(3, b"")))
        elif kind in _NARROWING:
            self._take(kind, (Option("narrowing", (kind,)),))
        elif kind == "objref" and numbers.get(1) == 1:  # NFT_OBJECT_COUNTER
            return
        else:
            self._take(f"({kind})", (Option("expression", (kind,)),))

    def _take(self, words: str, options: Iterable[Option]) -> None:
        self.words.append(words)
        self.options += options

    def _to(self, words: str, target: str, *options: Option) -> None:
        self._take(words, (Option("jump", (target,)), *options))

    # -- loads ------------------------------------------------------------------------------

    def _load(self, numbers: Mapping[int, int], found: _Field) -> None:
        self.registers[numbers.get(1, 0)] = found

    def _header_field(self, numbers: Mapping[int, int]) -> _Field:
        base, offset, length = (numbers.get(n, -1) for n in (2, 3, 4))
        if base == 1:
            subject = _NETWORK[self.family].get(offset)
            ip = "ip" if self.family is Family.IPV4 else "ip6"
            shown = {"source": f"{ip} saddr", "destination": f"{ip} daddr"}
            if subject is not None:
                return _Field(subject, shown.get(subject, _NAMES["protocol"]))
            start = 16 if self.family is Family.IPV4 else 24
            if offset < start + self.family.bits // 8 and offset + length > start:
                return _Field("unreadable", f"@nh,{offset * 8},{length * 8}")
            return _Field("narrowing", f"@nh,{offset * 8},{length * 8}")
        if base == 2 and (offset, length) in _PORTS:
            return _Field("narrowing", f"th {_PORTS[offset, length]}")
        header = {0: "@ll", 2: "@th"}.get(base)
        if header is None:
            return _NOTHING
        return _Field("narrowing", f"{header},{offset * 8},{length * 8}")

    def _meta(self, numbers: Mapping[int, int]) -> None:
        key = numbers.get(2, -1)
        if 3 in numbers:  # NFTA_META_SREG: something is set
            mark = _META.get(key) == "mark"
            self._take(f"meta {'mark' if mark else key} set", (Option("marks"),) if mark else ())
        elif key in _META:
            subject = _META[key]
            shown = {"iif": "iifname", "oif": "oifname", "ethertype": "meta nfproto"}
            self._load(numbers, _Field(subject, shown.get(subject) or _NAMES[subject]))
        else:
            self._load(numbers, _Field("narrowing", f"meta {key}"))

    def _conntrack(self, numbers: Mapping[int, int]) -> None:
        key = numbers.get(2, -1)
        if 1 not in numbers:
            self.words.append(f"ct {key} set")
        elif key == _CT_STATE:
            self._load(numbers, _Field("ctstate", "ct state"))
        elif key in _CT_LOOKS_AT_DESTINATION:
            self._load(numbers, _NOTHING)
        else:
            self._load(numbers, _Field("narrowing", f"ct {key}"))

    # -- comparisons ------------------------------------------------------------------------

    def _mask(self, numbers: Mapping[int, int], parts: Mapping[int, bytes]) -> None:
        held = self.registers.get(numbers.get(1, 0), _NOTHING)
        mask, xor = (dict(attributes(parts.get(n, b""))).get(1, b"") for n in (4, 5))
        plain = numbers.get(6, 0) == 0 and not any(xor) and held.mask is None
        if not plain and held.subject != "narrowing":
            held = _Field("unreadable", held.shown)
        self.registers[numbers.get(2, 0)] = _Field(held.subject, held.shown, mask)

    def _compare(self, register: int, operation: int, value: bytes) -> None:
        held = self.registers.get(register, _NOTHING)
        sign = _SIGNS[operation] if 0 <= operation < len(_SIGNS) else "? "
        negated, exact = operation == _UNEQUAL, operation in (_EQUAL, _UNEQUAL)
        subject = held.subject
        if subject in ("source", "destination"):
            shown, option = self._address(subject, held.mask, operation, value)
        elif subject in ("iif", "oif", "in-interface", "out-interface") and exact:
            name = self.device(_host(value)) if subject in ("iif", "oif") else _device(value)
            kind = {"iif": "in-interface", "oif": "out-interface"}.get(subject, subject)
            shown, option = f'"{name.replace("+", "*")}"', Option(kind, (name,), negated)
        elif subject == "mark" and exact:
            mask = _host(held.mask) if held.mask else 0xFFFFFFFF
            shown = f"{_host(value):#x}" + (f"/{mask:#x}" if held.mask else "")
            option = Option("mark", (shown,), negated)
        elif subject == "ctstate" and exact:
            shown, option = _state(held.mask, _host(value), negated)
            sign = ""
        elif subject in ("nfproto", "ethertype") and exact:
            names = _FAMILIES if subject == "nfproto" else _ETHERTYPES
            shown = names.get(number(value), "other")
            option = Option("nfproto", (shown,), negated)
        elif subject == "dst-type" and exact:
            shown = _TYPES.get(_host(value), str(_host(value))).lower()
            option = Option(subject, (shown.upper(),), negated)
        elif subject == "protocol" and exact:
            shown = _PROTOCOLS.get(number(value), str(number(value)))
            option = Option(subject, (shown,), negated)
        elif subject == "narrowing":
            shown = str(number(value))
            option = Option("narrowing", (held.shown,))
        else:
            shown, option = f"0x{value.hex()}", Option("expression", (held.shown,))
        self._take(f"{held.shown} {sign}{shown}", (option,))

    def _address(
        self, subject: str, mask: bytes | None, operation: int, value: bytes
    ) -> tuple[str, Option]:
        """Return how an address is compared. A prefix may be loaded by its whole bytes only."""
        family, width = self.family, self.family.bits // 8
        bits = mask if mask is not None else b"\xff" * len(value)
        holes = int.from_bytes(bits.ljust(width, b"\0"), "big") ^ family.last_address
        first = int.from_bytes(value.ljust(width, b"\0"), "big")
        if len(value) > width or holes & (holes + 1) or first & holes:
            shown = f"0x{value.hex()}/0x{bits.hex()}"
            return shown, Option(subject, (shown,), operation == _UNEQUAL)
        last = first | holes
        if operation in (_EQUAL, _UNEQUAL):
            shown = range_text(family, first, last)
            prefix = f"{family.show(first)}/{family.bits - holes.bit_length()}"
            return shown, Option(subject, (prefix,), operation == _UNEQUAL)
        below = operation in (_LESS, _AT_LEAST)  # what is below `first`, or all but that
        edge = first if below else last + 1
        negated = operation in (_AT_LEAST, _MORE)
        return family.show(first), self._between(subject, 0, edge - 1, negated=negated)

    def _between(self, subject: str, first: int, last: int, *, negated: bool) -> Option:
        name = "dst-range" if subject == "destination" else "src-range"
        if first > last:  # nothing at all is in it
            return Option(name, (), negated)
        ends = f"{self.family.show(first)}-{self.family.show(last)}"
        return Option(name, (ends,), negated)

    def _range(self, register: int, ends: Sequence[bytes], *, negated: bool) -> None:
        held = self.registers.get(register, _NOTHING)
        option = Option("expression", (held.shown,))
        low, high = (int.from_bytes(end, "big") for end in ends)
        shown = f"{low}-{high}"
        if held.subject in ("source", "destination") and held.mask is None:
            option = self._between(held.subject, low, high, negated=negated)
            shown = f"{self.family.show(low)}-{self.family.show(high)}"
        elif held.subject in ("narrowing", "protocol"):
            option = Option("narrowing", (held.shown,))
        self._take(f"{held.shown} {'!= ' if negated else ''}{shown}", (option,))

    def _look_up(self, name: str, numbers: Mapping[int, int]) -> None:
        held = self.registers.get(numbers.get(2, 0), _NOTHING)
        negated, into, known = bool(numbers.get(5, 0) & 1), numbers.get(3), self.sets.get(name)
        devices = known if held.subject in _DEVICES and isinstance(known, tuple) else None
        if into == 0:
            where = () if devices is None else (Option(held.subject, devices),)
            self._take(f"{held.shown} vmap @{name}", (*where, Option("jump", (f"vmap @{name}",))))
            return
        if into is not None:
            self.registers[into] = _Field("unreadable", f"map @{name}")
            return
        option = Option("expression", (f"@{name}",))
        if held.subject in ("source", "destination") and held.mask is None:
            side = "dst" if held.subject == "destination" else "src"
            if isinstance(known, AddressSet) or side == "src":
                option = Option("match-set", (name, side), negated)
        elif devices is not None:
            option = Option(held.subject, devices, negated)
        elif held.subject in ("narrowing", "protocol", "ctstate"):
            option = Option("narrowing", (held.shown,))
        self._take(f"{held.shown} {'!= ' if negated else ''}@{name}", (option,))

    # -- what is done -----------------------------------------------------------------------

    def _immediate(self, register: int, data: bytes) -> None:
        if register:
            value = dict(attributes(data)).get(1, b"")
            self.registers[register] = _Field("data", "", data=value)
            return
        code, chain = verdict_of(data)
        if code in (_JUMP, _GOTO) and chain is not None:
            verb = "jump" if code == _JUMP else "goto"
            self._take(f"{verb} {chain}", (Option(verb, (chain,)),))
        else:
            ending = _ENDINGS.get(code, f"verdict {code}")
            self._to(ending.lower(), ending)

    def _translate(self, numbers: Mapping[int, int]) -> None:
        if numbers.get(2, PROTOCOL[self.family]) != PROTOCOL[self.family]:
            self._take("snat (of the other family)", (Option("nfproto", ("other",)),))
            return
        low, high = (self.registers.get(numbers.get(n, 0), _NOTHING) for n in (3, 4))
        one = 4 not in numbers or numbers[4] == numbers.get(3) or low.data == high.data
        if len(low.data) * 8 == self.family.bits and one and not numbers.get(7, 0) & _NETMAP:
            address = self.family.show(int.from_bytes(low.data, "big"))
            self._to(f"snat to {address}", "SNAT", Option("to-source", (address,)))
        elif 3 in numbers:
            self._to("snat to an address of several", "SNAT", Option("to-source", ("several",)))
        else:
            self._to("snat", "SNAT")


def _fib(numbers: Mapping[int, int]) -> _Field:
    result, flags = numbers.get(2), numbers.get(3, 0)
    if result == _FIB_TYPE and flags == _FIB_DESTINATION:
        return _Field("dst-type", "fib daddr type")
    return _Field("narrowing", "fib saddr") if flags & _FIB_SOURCE else _NOTHING


def _state(mask: bytes | None, value: int, negated: bool) -> tuple[str, Option]:
    """Return a comparison of the connection's state: ``& mask != 0``, or ``== state``."""
    bits = value if mask is None else _host(mask)
    if mask is not None:
        negated = not negated
        if value:
            return f"{bits:#x} {value:#x}", Option("expression", ("ct state",))
    names = ",".join(_states(bits))
    return f"{'!= ' if negated else ''}{names.lower()}", Option("ctstate", (names,), negated)


def _states(bits: int) -> Iterator[str]:
    for bit, name in _STATES.items():
        if bits & bit:
            yield name


def _host(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)


def _device(value: bytes) -> str:
    """Return a device's name. Compared without its terminating zero it stands for many."""
    name = value.rstrip(b"\0").decode(errors="surrogateescape")
    return name if value.endswith(b"\0") else f"{name}+"
