"""Rules of our nftables chains as the kernel's expressions, and the other way round.

A rule is a little program over registers: load a field of the packet, compare it or look
it up, do something. The expressions are those that nft itself writes for the same text
(observed of 1.0.6), so that it prints them as such. Numbers: include/uapi/linux/netfilter/
nf_tables.h, and nf_nat.h for the flags of a translation.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ipmasq_agent.netlink.core import attribute, attributes, nested
from ipmasq_agent.netlink.core import text as text_of
from ipmasq_agent.netlink.nf import PROTOCOL, Expression, number
from ipmasq_agent.planes.nftables.rules import (
    DestinationIn,
    DeviceOutside,
    Dispatch,
    Ending,
    Match,
    NftRule,
    OfProtocol,
    Share,
    SourceOutside,
    ToThisNode,
    Translate,
    Unreadable,
)
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import PortRange

_NETWORK_HEADER = 1
_SOURCE = {Family.IPV4: 12, Family.IPV6: 8}  # offsets in the header
_DESTINATION = {Family.IPV4: 16, Family.IPV6: 24}
_OIFNAME, _L4PROTO = 7, 16
_EQUAL, _LESS = 0, 2
_HOST_TO_NETWORK = 1
_FIB_TYPE, _FIB_DESTINATION, _LOCAL = 3, 2, 2  # RTN_LOCAL
_INVERTED = 1
_RANDOM = 1
_FULLY_RANDOM, _MAP_ADDRESS, _MAP_PORT = 1 << 4, 1, 2  # NF_NAT_RANGE_...
_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_PROTOCOL_NAMES = {number: name for name, number in _PROTOCOLS.items()}
_VERDICTS = {Ending.RETURN: -5, Ending.ACCEPT: 1}
_ENDINGS = {code: ending for ending, code in _VERDICTS.items()}
JUMP = -3
_EXPRESSION, _NAME, _DETAILS = 1, 1, 2  # NFTA_LIST_ELEM, NFTA_EXPR_NAME, NFTA_EXPR_DATA


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _host_u32(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)


def name_bytes(name: str) -> bytes:
    """Return a name as the kernel takes it: with a zero at its end."""
    return name.encode(errors="surrogateescape") + b"\0"


def verdict_bytes(code: int, chain: str | None = None) -> bytes:
    """Return the attribute of a verdict (NFTA_DATA_VERDICT)."""
    target = b"" if chain is None else attribute(2, name_bytes(chain))
    return nested(2, attribute(1, _u32(code & 0xFFFFFFFF)), target)


def verdict_of(data: bytes) -> tuple[int, str | None]:
    """Return a verdict's code, and the chain that it leads to."""
    parts = dict(attributes(dict(attributes(data)).get(2, b"")))
    code = int.from_bytes(parts.get(1, b""), "big", signed=True)
    return code, text_of(parts[2]) if 2 in parts else None


def packed_rule(rule: NftRule, family: Family) -> bytes:
    """Return the expressions of a rule as the kernel takes them (NFTA_RULE_EXPRESSIONS)."""
    return b"".join(
        nested(_EXPRESSION, attribute(_NAME, name_bytes(kind)), nested(_DETAILS, details))
        for kind, details in _expressions(rule, family)
    )


def _expressions(rule: NftRule, family: Family) -> Iterator[tuple[str, bytes]]:
    for match in rule.matches:
        yield from _matching(match, family)
    action = rule.action
    if isinstance(action, Ending):
        verdict = nested(2, verdict_bytes(_VERDICTS[action]))
        yield "immediate", attribute(1, _u32(0)) + verdict
    elif isinstance(action, Dispatch):
        yield _field(_DESTINATION[family], family)
        yield _lookup(action.name, into=0)
    elif isinstance(action, Translate):
        yield from _translating(action, family)
    else:
        raise ValueError("a rule that cannot be read cannot be written")


def _matching(match: Match, family: Family) -> Iterator[tuple[str, bytes]]:
    register = attribute(1, _u32(1))
    if isinstance(match, ToThisNode):
        yield "fib", register + _numbers({2: _FIB_TYPE, 3: _FIB_DESTINATION})
        yield _compare(_EQUAL, _host_u32(_LOCAL))
    elif isinstance(match, SourceOutside):
        yield _field(_SOURCE[family], family)
        yield _lookup(match.name, inverted=True)
    elif isinstance(match, DestinationIn):
        yield _field(_DESTINATION[family], family)
        yield _lookup(match.name)
    elif isinstance(match, DeviceOutside):
        yield "meta", register + _numbers({2: _OIFNAME})
        yield _lookup(match.name, inverted=True)
    elif isinstance(match, OfProtocol):
        yield "meta", register + _numbers({2: _L4PROTO})
        yield _compare(_EQUAL, bytes([_PROTOCOLS[match.protocol]]))
    else:
        yield "numgen", register + _numbers({2: match.of, 3: _RANDOM})
        yield "byteorder", _numbers({1: 1, 2: 1, 3: _HOST_TO_NETWORK, 4: 4, 5: 4})
        yield _compare(_LESS, _u32(match.size))


def _translating(action: Translate, family: Family) -> Iterator[tuple[str, bytes]]:
    flags = _FULLY_RANDOM if action.random_fully else 0
    free = 1  # the next register that holds nothing
    source = b""
    if action.fixed is not None:
        yield _field(_DESTINATION[family], family)
        yield _lookup(action.fixed, into=1)
        source = _numbers({3: 1, 4: 1})
        flags |= _MAP_ADDRESS
        free = 2
    ports = b""
    if action.ports is not None:
        low, high = (5, 6) if action.fixed is not None else (2, 3)
        flags |= _MAP_PORT
        for position, port in enumerate(sorted({action.ports.first, action.ports.last})):
            value = nested(2, attribute(1, port.to_bytes(2, "big")))
            yield "immediate", attribute(1, _u32(free + position)) + value
            ports += _numbers({(low, high)[position]: free + position})
    if action.fixed is not None:
        kind = _numbers({1: 0, 2: PROTOCOL[family]})
        yield "nat", kind + source + ports + _numbers({7: flags})
    else:
        yield "masq", (_numbers({1: flags}) if flags else b"") + ports


def _numbers(values: Mapping[int, int]) -> bytes:
    return b"".join(attribute(kind, _u32(value)) for kind, value in values.items())


def _field(offset: int, family: Family) -> tuple[str, bytes]:
    length = family.bits // 8
    return "payload", _numbers({1: 1, 2: _NETWORK_HEADER, 3: offset, 4: length})


def _lookup(name: str, *, into: int | None = None, inverted: bool = False) -> tuple[str, bytes]:
    details = attribute(1, name_bytes(name)) + _numbers({2: 1})
    details += b"" if into is None else _numbers({3: into})
    return "lookup", details + _numbers({5: _INVERTED if inverted else 0})


def _compare(operation: int, value: bytes) -> tuple[str, bytes]:
    return "cmp", _numbers({1: 1, 2: operation}) + nested(3, attribute(1, value))


def rule_of(expressions: Sequence[Expression], family: Family) -> NftRule:
    """Return the rule that these expressions are, readable or not."""
    telling = _Telling(family)
    for kind, data in expressions:
        if kind != "counter" and not telling.takes(kind, dict(attributes(data))):
            break
    else:
        if telling.action is not None and not telling.loaded:
            return NftRule(tuple(telling.matches), telling.action)
    data = b"".join(expression.data for expression in expressions)
    return NftRule((), Unreadable(tuple(kind for kind, _ in expressions), data))


@dataclass
class _Telling:
    """A rule being told: what the registers hold, and what was found so far."""

    family: Family
    loaded: dict[int, str | tuple[str, int]] = field(default_factory=dict)
    matches: list[Match] = field(default_factory=list)
    action: Ending | Dispatch | Translate | None = None

    def takes(self, kind: str, parts: Mapping[int, bytes]) -> bool:
        """Take in one expression; false where it is not one of ours."""
        if self.action is not None:
            return False
        numbers = {key: number(value) for key, value in parts.items()}
        if kind == "payload":
            return self._load(1, self._header_field(numbers), numbers.get(1))
        if kind == "meta":
            names = {_OIFNAME: "device", _L4PROTO: "protocol"}
            return self._load(1, names.get(numbers.get(2, 0)), numbers.get(1))
        if kind == "fib":
            known = (numbers.get(2), numbers.get(3)) == (_FIB_TYPE, _FIB_DESTINATION)
            return self._load(1, "type" if known else None, numbers.get(1))
        if kind == "numgen":
            known = numbers.get(3) == _RANDOM and not numbers.get(4)
            self.loaded[1] = ("lot", numbers.get(2, 0))
            return known and numbers.get(1) == 1
        if kind == "byteorder":
            lot = self.loaded.pop(1, None)
            self.loaded[1] = ("ordered lot", lot[1]) if isinstance(lot, tuple) else "nothing"
            return [numbers.get(n) for n in range(1, 6)] == [1, 1, _HOST_TO_NETWORK, 4, 4]
        if kind == "cmp":
            return self._compare(numbers, dict(attributes(parts.get(3, b""))).get(1, b""))
        if kind == "lookup":
            return self._look_up(text_of(parts.get(1)), numbers)
        if kind == "immediate":
            return self._immediate(numbers.get(1, -1), parts.get(2, b""))
        if kind in ("masq", "nat"):
            return self._translate(kind, numbers)
        return False

    def _load(self, register: int, what: str | None, target: int | None) -> bool:
        if what is None or target != register or register in self.loaded:
            return False
        self.loaded[register] = what
        return True

    def _header_field(self, numbers: Mapping[int, int]) -> str | None:
        if (numbers.get(2), numbers.get(4)) != (_NETWORK_HEADER, self.family.bits // 8):
            return None
        names = {_SOURCE[self.family]: "source", _DESTINATION[self.family]: "destination"}
        return names.get(numbers.get(3, -1))

    def _compare(self, numbers: Mapping[int, int], value: bytes) -> bool:
        held = self.loaded.pop(1, None)
        operation = numbers.get(2, -1)
        if numbers.get(1) != 1:
            return False
        if held == "type" and operation == _EQUAL and value == _host_u32(_LOCAL):
            self.matches.append(ToThisNode())
        elif held == "protocol" and operation == _EQUAL and number(value) in _PROTOCOL_NAMES:
            self.matches.append(OfProtocol(_PROTOCOL_NAMES[number(value)]))
        elif isinstance(held, tuple) and held[0] == "ordered lot" and operation == _LESS:
            self.matches.append(Share(number(value), held[1]))
        else:
            return False
        return True

    def _look_up(self, name: str, numbers: Mapping[int, int]) -> bool:
        held = self.loaded.pop(1, None)
        inverted, into = numbers.get(5, 0) == _INVERTED, numbers.get(3)
        if numbers.get(2) != 1 or numbers.get(5, 0) not in (0, _INVERTED):
            return False
        if into is not None:
            if held != "destination" or inverted or into not in (0, 1):
                return False
            if into == 0:
                self.action = Dispatch(name)
            else:
                self.loaded[1] = f"map {name}"
        elif held == "source" and inverted:
            self.matches.append(SourceOutside(name))
        elif held == "device" and inverted:
            self.matches.append(DeviceOutside(name))
        elif held == "destination" and not inverted:
            self.matches.append(DestinationIn(name))
        else:
            return False
        return True

    def _immediate(self, register: int, data: bytes) -> bool:
        if register == 0:
            code, _ = verdict_of(data)
            self.action = _ENDINGS.get(code)
            return self.action is not None
        value = dict(attributes(data)).get(1, b"")
        if register in self.loaded or len(value) != 2:
            return False
        self.loaded[register] = ("port", number(value))
        return True

    def _translate(self, kind: str, numbers: Mapping[int, int]) -> bool:
        address, low, high, flagged = (3, 5, 6, 7) if kind == "nat" else (0, 2, 3, 1)
        fixed: str | None = None
        if kind == "nat":
            held = self.loaded.pop(numbers.get(address, 0), "")
            same = numbers.get(4, numbers.get(address)) == numbers.get(address)
            family = numbers.get(2) == PROTOCOL[self.family]
            if not (isinstance(held, str) and held.startswith("map ") and same and family):
                return False
            if numbers.get(1, -1) != 0:  # NFT_NAT_SNAT
                return False
            fixed = held.removeprefix("map ")
        flags = numbers.get(flagged, 0) & ~(_MAP_ADDRESS | _MAP_PORT)
        ports: PortRange | None = None
        if low in numbers:
            ends = [
                self.loaded.pop(register, None)
                for register in sorted({numbers[low], numbers.get(high, numbers[low])})
            ]
            found = [end[1] for end in ends if isinstance(end, tuple) and end[0] == "port"]
            if len(found) != len(ends):
                return False
            ports = PortRange(found[0], found[-1])
        self.action = Translate(fixed, ports, bool(flags & _FULLY_RANDOM))
        return flags in (0, _FULLY_RANDOM)
