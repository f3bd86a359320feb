"""Rules of nf_tables as the kernel has them: expressions, as typed values and as bytes.

A rule is a little program over registers: load a field of the packet, compare it or look it
up, do something. An expression of a kind that is not known here is carried as it is
(``Opaque``); an attribute that is not known is passed over, as newer kernels list more of
them. The fields of each kind are its attributes in the kernel's order, numbered from 1: see
enum nft_KIND_attributes of include/uapi/linux/netfilter/nf_tables.h. A register is named
``into`` where it is filled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NewType, get_type_hints

from ipmasq_agent.netlink import nft_numbers as nft
from ipmasq_agent.netlink.attributes import (
    attribute,
    attributes,
    fields,
    name_bytes,
    nested,
    number,
    text,
    u32,
)

Info = NewType("Info", bytes)
"""A struct of xtables, as the kernel has it."""


class NftVerdict(NamedTuple):
    """What becomes of the packet (NF_..., NFT_...), and the chain that it goes on in."""

    code: int
    chain: str | None = None


class Payload(NamedTuple):
    """Loads a field of a header into a register; without one, it writes it."""

    into: int | None
    base: int
    offset: int
    length: int


class Meta(NamedTuple):
    """Loads what the kernel knows of the packet (NFT_META_...), or sets it from a register."""

    into: int | None
    key: int
    source: int | None = None


class Conntrack(NamedTuple):
    """Loads what is known of the packet's connection (NFT_CT_...), or sets it."""

    into: int | None
    key: int
    direction: int | None = None


class Fib(NamedTuple):
    """Loads what routing says (NFT_FIB_RESULT_...) of what ``flags`` name (NFTA_FIB_F_...)."""

    into: int
    result: int
    flags: int


class NumberGenerator(NamedTuple):
    """Loads a number below ``modulus``, above ``offset``."""

    into: int
    modulus: int
    type: int
    offset: int = 0


class OtherLoad(NamedTuple):
    """Loads something else; of what kind is all that is told."""

    kind: str
    into: int | None


class Bitwise(NamedTuple):
    """Lays a mask over a register, and ``xor`` over that; another ``operation`` shifts."""

    register: int
    into: int
    length: int
    mask: bytes = b""
    xor: bytes = b""
    operation: int = 0


class ByteOrder(NamedTuple):
    """Turns the bytes of a register round, in words of ``size``."""

    register: int
    into: int
    operation: int
    length: int
    size: int


class Compare(NamedTuple):
    """Ends the rule unless a register compares so with a value (NFT_CMP_...)."""

    register: int
    operation: int
    data: bytes


class Range(NamedTuple):
    """Ends the rule unless a register is within a range, or not."""

    register: int
    operation: int
    first: bytes
    last: bytes


class SetLookup(NamedTuple):
    """Looks a register up in a set, or in a map, which gives something ``into`` another."""

    set: str
    register: int
    into: int | None = None
    set_id: int | None = None
    flags: int = 0


class Immediate(NamedTuple):
    """Puts a value into a register; a verdict into that of verdicts."""

    into: int
    data: bytes | NftVerdict


class Masquerade(NamedTuple):
    """Translates to the address of the device; ports from registers, or None."""

    flags: int = 0
    first_port: int | None = None
    last_port: int | None = None


class Nat(NamedTuple):
    """Translates to what registers hold (NFT_NAT_...); None where that stays as it is."""

    type: int
    family: int
    first_address: int | None
    last_address: int | None
    first_port: int | None = None
    last_port: int | None = None
    flags: int = 0


class ObjectReference(NamedTuple):
    """Hands the packet to an object of the table (NFT_OBJECT_...)."""

    type: int | None


class XtMatch(NamedTuple):
    """A match of xtables, in its binary form."""

    name: str
    revision: int
    info: Info


class XtTarget(NamedTuple):
    """A target of xtables, in its binary form."""

    name: str
    revision: int
    info: Info


class Counter(NamedTuple):
    """Counts, which decides nothing. What it counted is left out: a rule equals itself later."""


class Opaque(NamedTuple):
    """An expression of another kind, as the kernel packs it."""

    kind: str
    data: bytes = b""


Expression = (
    Payload
    | Meta
    | Conntrack
    | Fib
    | NumberGenerator
    | OtherLoad
    | Bitwise
    | ByteOrder
    | Compare
    | Range
    | SetLookup
    | Immediate
    | Masquerade
    | Nat
    | ObjectReference
    | XtMatch
    | XtTarget
    | Counter
    | Opaque
)


def packed_data(kind: int, value: bytes | NftVerdict) -> bytes:
    """Return an attribute that holds a value or a verdict."""
    if not isinstance(value, NftVerdict):
        return nested(kind, attribute(nft.NFTA_DATA_VALUE, value))
    code, chain = value
    target = b"" if chain is None else attribute(nft.NFTA_VERDICT_CHAIN, name_bytes(chain))
    packed = attribute(nft.NFTA_VERDICT_CODE, u32(code & 0xFFFFFFFF))
    return nested(kind, nested(nft.NFTA_DATA_VERDICT, packed, target))


def data_of(data: bytes) -> bytes | NftVerdict:
    """Return the value or the verdict in such an attribute."""
    found = fields(data)
    if nft.NFTA_DATA_VERDICT not in found:
        return found.get(nft.NFTA_DATA_VALUE, b"")
    parts = fields(found[nft.NFTA_DATA_VERDICT])
    code = int.from_bytes(parts.get(nft.NFTA_VERDICT_CODE, b""), "big", signed=True)
    chain = parts.get(nft.NFTA_VERDICT_CHAIN)
    return NftVerdict(code, None if chain is None else text(chain))


def _value(data: bytes) -> bytes:
    return fields(data).get(nft.NFTA_DATA_VALUE, b"")


def _packed_number(kind: int, value: int) -> bytes:
    return attribute(kind, u32(value))


def _packed_name(kind: int, value: str) -> bytes:
    return attribute(kind, name_bytes(value))


_Codec = tuple[Callable[[bytes], Any], Callable[[int, Any], bytes], Any]
# How attributes are read, how they are packed, and what there is where they are missing.
_CODECS: dict[Any, _Codec] = {
    int: (number, _packed_number, 0),
    int | None: (number, _packed_number, None),
    str: (text, _packed_name, ""),
    bytes: (_value, packed_data, b""),
    bytes | NftVerdict: (data_of, packed_data, b""),
    Info: (bytes, attribute, b""),
}


class _Form:
    """A kind of expression, with the number and the codec of each of its attributes."""

    def __init__(self, make: Callable[..., Expression]) -> None:
        self._make = make
        hints = get_type_hints(make).values()
        self._codecs = [(kind, *_CODECS[hint]) for kind, hint in enumerate(hints, start=1)]

    def read(self, data: bytes) -> Expression:
        found = fields(data) if self._codecs else {}
        return self._make(
            *[read(found[n]) if n in found else missing for n, read, _, missing in self._codecs]
        )

    def pack(self, expression: Expression) -> bytes:
        values = zip(self._codecs, expression, strict=True)
        return b"".join([pack(n, value) for (n, _, pack, _), value in values if value is not None])


_KINDS: dict[Callable[..., Expression], str] = {
    Payload: "payload",
    Meta: "meta",
    Conntrack: "ct",
    Fib: "fib",
    NumberGenerator: "numgen",
    Bitwise: "bitwise",
    ByteOrder: "byteorder",
    Compare: "cmp",
    Range: "range",
    SetLookup: "lookup",
    Immediate: "immediate",
    Masquerade: "masq",
    Nat: "nat",
    ObjectReference: "objref",
    XtMatch: "match",
    XtTarget: "target",
    Counter: "counter",
}
_FORMS = {name_bytes(kind): _Form(make) for make, kind in _KINDS.items()}
_OTHER_LOADS = {"exthdr": 1, "osf": 1, "rt": 1, "xfrm": 1, "socket": 2, "tunnel": 2}  # their DREG


def kind_of(expression: Expression) -> str:
    """Return the kernel's name for a kind of expression."""
    if isinstance(expression, Opaque | OtherLoad):
        return expression.kind
    return _KINDS[type(expression)]


def expressions_of(packed: bytes) -> tuple[Expression, ...]:
    """Return the expressions of a rule, as the kernel lists them."""
    return tuple([_expression(fields(element)) for _, element in attributes(packed)])


def _expression(found: dict[int, bytes]) -> Expression:
    name, data = found.get(nft.NFTA_EXPR_NAME, b""), found.get(nft.NFTA_EXPR_DATA, b"")
    if name in _FORMS:
        return _FORMS[name].read(data)
    kind = text(name)
    if kind in _OTHER_LOADS:
        register = fields(data).get(_OTHER_LOADS[kind])
        return OtherLoad(kind, None if register is None else number(register))
    return Opaque(kind, data)


def packed_expressions(expressions: Iterable[Expression]) -> bytes:
    """Return the expressions of a rule as the kernel takes them.

    Raises:
        ValueError: one is of a kind that is not known.
    """
    return b"".join([_packed(expression) for expression in expressions])


def _packed(expression: Expression) -> bytes:
    if isinstance(expression, Opaque | OtherLoad):
        raise ValueError("an expression that cannot be read cannot be written")
    name = name_bytes(_KINDS[type(expression)])
    data = nested(nft.NFTA_EXPR_DATA, _FORMS[name].pack(expression))
    return nested(nft.NFTA_LIST_ELEM, attribute(nft.NFTA_EXPR_NAME, name), data)
