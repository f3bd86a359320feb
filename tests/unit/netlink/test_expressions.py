"""Expressions of nf_tables as typed values: read back as they were packed, and never a crash."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipmasq_agent.netlink.attributes import attribute, nested, u32
from ipmasq_agent.netlink.expressions import (
    Bitwise,
    Compare,
    Conntrack,
    Counter,
    Expression,
    Immediate,
    Info,
    Masquerade,
    Meta,
    Nat,
    NftVerdict,
    ObjectReference,
    Opaque,
    OtherLoad,
    Payload,
    Range,
    SetLookup,
    XtMatch,
    expressions_of,
    kind_of,
    packed_expressions,
)

EACH: list[Expression] = [
    Payload(1, 1, 16, 4),
    Payload(None, 1, 16, 4),
    Meta(1, 7),
    Meta(None, 3, 1),
    Conntrack(1, 8, 1),
    Bitwise(1, 2, 4, b"\xff" * 4, bytes(4)),
    Compare(1, 0, b"eth0\0"),
    Range(1, 1, b"\0\x50", b"\0\x5a"),
    SetLookup("keep", 1, flags=1),
    SetLookup("fixed", 1, into=1),
    Immediate(1, b"\x04\x00"),
    Immediate(0, NftVerdict(-3, "PODS")),
    Immediate(0, NftVerdict(1)),
    Masquerade(16, 1, 2),
    Nat(0, 2, 1, 1),
    ObjectReference(1),
    XtMatch("addrtype", 1, Info(bytes(8))),
    Counter(),
]


def named(name: bytes, data: bytes) -> bytes:
    return nested(1, attribute(1, name), nested(2, data))


@pytest.mark.parametrize("expression", EACH, ids=repr)
def test_what_is_packed_is_read_back(expression: Expression) -> None:
    packed = packed_expressions([expression, expression])
    read = expressions_of(packed)
    assert read == (expression, expression)
    assert [type(one) for one in read] == [type(expression)] * 2


def test_what_is_not_known_is_carried_as_it_is_and_cannot_be_written() -> None:
    (told,) = expressions_of(named(b"inner\0", b"\x05\0\1\0x\0\0\0"))
    assert told == Opaque("inner", b"\x05\0\1\0x\0\0\0")
    (load,) = expressions_of(named(b"socket\0", attribute(1, u32(0)) + attribute(2, u32(9))))
    assert load == OtherLoad("socket", 9)
    assert (kind_of(told), kind_of(load), kind_of(Counter())) == ("inner", "socket", "counter")
    with pytest.raises(ValueError, match="cannot be written"):
        packed_expressions([told])


def test_an_attribute_of_a_newer_kernel_is_passed_over_and_what_counted_is_left_out() -> None:
    meta = attribute(1, u32(1)) + attribute(2, u32(7)) + attribute(99, b"new")
    assert expressions_of(named(b"meta\0", meta)) == (Meta(1, 7),)
    assert expressions_of(named(b"counter\0", attribute(1, bytes(7) + b"\1"))) == (Counter(),)


@given(st.binary(max_size=200), st.sampled_from([b"cmp\0", b"immediate\0", b"nat\0", b"match\0"]))
def test_no_bytes_make_it_crash(data: bytes, name: bytes) -> None:
    expressions_of(data)
    assert len(expressions_of(named(name, data))) == 1
