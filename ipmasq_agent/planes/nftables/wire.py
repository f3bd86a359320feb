"""Our rules and sets as nf_tables has them, and the other way round.

The expressions of a rule are those that nft itself writes for the same text (observed of
1.0.6), so that it prints them as such.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from ipmasq_agent.netlink import nft_numbers as nft
from ipmasq_agent.netlink.attributes import name_bytes, text
from ipmasq_agent.netlink.expressions import (
    ByteOrder,
    Compare,
    Counter,
    Expression,
    Fib,
    Immediate,
    Masquerade,
    Meta,
    Nat,
    NftVerdict,
    NumberGenerator,
    Payload,
    SetLookup,
    kind_of,
)
from ipmasq_agent.netlink.nft_elements import Intervals, SetForm
from ipmasq_agent.planes.nftables.rules import (
    Dispatch,
    Ending,
    Field,
    InSet,
    NftAction,
    NftMatch,
    NftRule,
    OfProtocol,
    Share,
    ToThisNode,
    Translate,
    Unreadable,
)
from ipmasq_agent.planes.nftables.state import NftSet, SetKind, addresses
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import PortRange

_FREE = 1  # the register that nft fills first
_OFFSETS = {  # in the header
    (Field.SOURCE, Family.IPV4): 12,
    (Field.DESTINATION, Family.IPV4): 16,
    (Field.SOURCE, Family.IPV6): 8,
    (Field.DESTINATION, Family.IPV6): 24,
}
_LOCAL = (2).to_bytes(4, sys.byteorder)  # RTN_LOCAL
_PROTOCOLS = {"tcp": b"\x06", "udp": b"\x11", "sctp": b"\x84"}
_PROTOCOL_NAMES = {number: name for name, number in _PROTOCOLS.items()}
_ENDINGS = {Ending.RETURN: NftVerdict(nft.NFT_RETURN), Ending.ACCEPT: NftVerdict(nft.NF_ACCEPT)}
_ADDRESS_TYPE = {Family.IPV4: nft.TYPE_IPADDR, Family.IPV6: nft.TYPE_IP6ADDR}
_NAME_LENGTH = 16  # IFNAMSIZ


def expressions_for(rule: NftRule, family: Family) -> list[Expression]:
    """Return what a rule is made of.

    Raises:
        ValueError: it is one that could not be read.
    """
    found: list[Expression] = []
    for match in rule.matches:
        found += _matching(match, family)
    action = rule.action
    if isinstance(action, Ending):
        return [*found, Immediate(nft.NFT_REG_VERDICT, _ENDINGS[action])]
    if isinstance(action, Dispatch):
        lookup = SetLookup(action.name, _FREE, into=nft.NFT_REG_VERDICT)
        return [*found, _load(Field.DESTINATION, family), lookup]
    if isinstance(action, Translate):
        return found + _translating(action, family)
    raise ValueError("a rule that cannot be read cannot be written")


def _load(field: Field, family: Family) -> Payload | Meta:
    if field is Field.DEVICE:
        return Meta(_FREE, nft.NFT_META_OIFNAME)
    offset = _OFFSETS[field, family]
    return Payload(_FREE, nft.NFT_PAYLOAD_NETWORK_HEADER, offset, family.bits // 8)


def _matching(match: NftMatch, family: Family) -> list[Expression]:
    if isinstance(match, ToThisNode):
        fib = Fib(_FREE, nft.NFT_FIB_RESULT_ADDRTYPE, nft.NFTA_FIB_F_DADDR)
        return [fib, Compare(_FREE, nft.NFT_CMP_EQ, _LOCAL)]
    if isinstance(match, InSet):
        flags = 0 if match.field is Field.DESTINATION else nft.NFT_LOOKUP_F_INV
        return [_load(match.field, family), SetLookup(match.name, _FREE, flags=flags)]
    if isinstance(match, OfProtocol):
        protocol = Compare(_FREE, nft.NFT_CMP_EQ, _PROTOCOLS[match.protocol])
        return [Meta(_FREE, nft.NFT_META_L4PROTO), protocol]
    return [
        NumberGenerator(_FREE, match.of, nft.NFT_NG_RANDOM),
        ByteOrder(_FREE, _FREE, nft.NFT_BYTEORDER_HTON, 4, 4),
        Compare(_FREE, nft.NFT_CMP_LT, match.size.to_bytes(4, "big")),
    ]


def _translating(action: Translate, family: Family) -> list[Expression]:
    flags = nft.NF_NAT_RANGE_PROTO_RANDOM_FULLY if action.random_fully else 0
    found: list[Expression] = []
    free = _FREE
    if action.fixed is not None:
        found = [_load(Field.DESTINATION, family), SetLookup(action.fixed, _FREE, into=_FREE)]
        flags |= nft.NF_NAT_RANGE_MAP_IPS
        free += 1
    first = last = None
    if action.ports is not None:
        ends = sorted({action.ports.first, action.ports.last})
        found += [Immediate(free + n, end.to_bytes(2, "big")) for n, end in enumerate(ends)]
        flags |= nft.NF_NAT_RANGE_PROTO_SPECIFIED
        first, last = free, free + len(ends) - 1
    if action.fixed is None:
        return [*found, Masquerade(flags, first, last)]
    nat = Nat(nft.NFT_NAT_SNAT, nft.PROTOCOL[family], _FREE, _FREE, first, last, flags)
    return [*found, nat]


def rule_of(expressions: Iterable[Expression], family: Family) -> NftRule:
    """Return the rule that these expressions are, readable or not.

    It is guessed, and taken for read where it would be written just so.
    """
    told = [one for one in expressions if not isinstance(one, Counter)]
    rule = _guessed(told, family)
    if rule is not None and expressions_for(rule, family) == told:
        return rule
    return NftRule((), Unreadable(tuple(map(kind_of, told)), tuple(told)))


def _guessed(told: Sequence[Expression], family: Family) -> NftRule | None:
    matches: list[NftMatch] = []
    while (found := _match(told, family)) is not None:
        match, size = found
        matches.append(match)
        told = told[size:]
    action = _action(told)
    return None if action is None else NftRule(tuple(matches), action)


def _match(told: Sequence[Expression], family: Family) -> tuple[NftMatch, int] | None:
    """Return the match that a rule may begin with, and how many expressions it takes."""
    match told:
        case [Fib(), Compare(), *_]:
            return ToThisNode(), 2
        case [Payload() | Meta() as load, SetLookup(set=name, into=None), *_]:
            for field in Field:
                if _load(field, family) == load:
                    return InSet(field, name), 2
        case [Meta(), Compare(data=value), *_] if value in _PROTOCOL_NAMES:
            return OfProtocol(_PROTOCOL_NAMES[value]), 2
        case [NumberGenerator(modulus=of), ByteOrder(), Compare(data=size), *_] if len(size) == 4:
            return Share(int.from_bytes(size, "big"), of), 3
    return None


def _action(told: Sequence[Expression]) -> NftAction | None:
    match told:
        case [Immediate(data=NftVerdict() as verdict)]:
            return next((end for end, found in _ENDINGS.items() if found == verdict), None)
        case [Payload(), SetLookup(set=name)]:
            return Dispatch(name)
        case [Payload(), SetLookup(set=name), *ports, Nat(flags=flags)]:
            return Translate(name, _ports(ports), _is_random(flags))
        case [*ports, Masquerade(flags=flags)]:
            return Translate(None, _ports(ports), _is_random(flags))
    return None


def _ports(told: Sequence[Expression]) -> PortRange | None:
    ends = [
        int.from_bytes(one.data, "big")
        for one in told
        if isinstance(one, Immediate) and isinstance(one.data, bytes) and len(one.data) == 2
    ]
    return PortRange(ends[0], ends[-1]) if ends else None


def _is_random(flags: int) -> bool:
    return bool(flags & nft.NF_NAT_RANGE_PROTO_RANDOM_FULLY)


def set_form(kind: SetKind, family: Family) -> SetForm:
    """Return the form of a set of ours."""
    return _forms(family)[kind]


def kind_of_set(form: SetForm, family: Family) -> SetKind:
    """Return what a set is to us."""
    return next((kind for kind, ours in _forms(family).items() if ours == form), SetKind.UNKNOWN)


def _forms(family: Family) -> dict[SetKind, SetForm]:
    address = (_ADDRESS_TYPE[family], family.bits // 8)
    to = nft.NFT_SET_INTERVAL | nft.NFT_SET_MAP
    return {
        SetKind.ADDRESSES: SetForm(nft.NFT_SET_INTERVAL, address),
        SetKind.TRANSLATIONS: SetForm(to, address, _ADDRESS_TYPE[family]),
        SetKind.PARTS: SetForm(to, address, nft.NFT_DATA_VERDICT),
        SetKind.DEVICES: SetForm(0, (nft.TYPE_IFNAME, _NAME_LENGTH)),
    }


def elements_for(held: NftSet, family: Family, positions: Sequence[int]) -> Intervals | list[bytes]:
    """Return the elements of a set, or those at some positions: intervals, or keys."""
    if held.kind is SetKind.DEVICES:
        return [name_bytes(held.names[n]).ljust(_NAME_LENGTH, b"\0") for n in positions]
    firsts, lasts, values = held.firsts, held.lasts, held.values
    if len(positions) != len(held):
        firsts, lasts = [firsts[n] for n in positions], [lasts[n] for n in positions]
        values = tuple(values[n] for n in positions) if values else ()
    size = family.bits // 8
    given = [
        NftVerdict(nft.NFT_JUMP, value) if isinstance(value, str) else value.to_bytes(size, "big")
        for value in values
    ]
    return Intervals(firsts, lasts, given)


def devices_of(keys: Iterable[bytes]) -> NftSet:
    """Return the set of devices that has these keys."""
    names = tuple(text(key) for key in sorted(key.rstrip(b"\0") for key in keys))
    return NftSet(SetKind.DEVICES, names=names)


def set_of(kind: SetKind, family: Family, held: Intervals) -> NftSet:
    """Return the set or the map of addresses that has these intervals."""
    ranges = addresses(family, held.firsts, held.lasts)
    if kind is SetKind.ADDRESSES:
        return ranges
    return NftSet(kind, ranges.firsts, ranges.lasts, tuple(map(_given, held.values)))


def _given(value: bytes | NftVerdict) -> int | str:
    if isinstance(value, NftVerdict):
        return value.chain or f"verdict {value.code}"
    return int.from_bytes(value, "big")
