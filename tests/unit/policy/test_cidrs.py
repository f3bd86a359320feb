"""CIDRs: what Go's net.ParseCIDR takes, aligned; anything else with its remedy."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.cidrs import parse_cidr, parse_common
from tests.unit.strategies import FAMILIES, prefixes


@given(FAMILIES.flatmap(prefixes))
def test_every_prefix_that_is_shown_reads_back(prefix: Prefix) -> None:
    assert parse_cidr(str(prefix)) == prefix


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("255.255.255.255/32", "255.255.255.255/32"),
        ("FD00:0:0::/8", "fd00::/8"),
        ("fd00:0000::0/8", "fd00::/8"),
        ("::/0", "::/0"),
        ("1:2:3:4:5:6:7::/112", "1:2:3:4:5:6:7:0/112"),
        ("64:ff9b::192.0.2.1/128", "64:ff9b::c000:201/128"),
    ],
)
def test_spellings_that_go_takes_are_taken(text: str, meant: str) -> None:
    assert str(parse_cidr(text)) == meant


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("10.0.0.0/08", "has leading zeros in its prefix length; did you mean 10.0.0.0/8?"),
        ("10.0.0.0/010", "has leading zeros in its prefix length"),
        ("fd00::/0000000000008", "in its prefix length; did you mean fd00::/8?"),
        ("10.0.0.1/8", "has host bits set; did you mean 10.0.0.0/8?"),
        ("fd00::1/8", "has host bits set; did you mean fd00::/8?"),
        ("10.0.0.0/255.0.0.0", "has a netmask; did you mean 10.0.0.0/8?"),
        ("10.0.0.1/255.0.0.0", "has a netmask; did you mean 10.0.0.0/8?"),
        ("10.0.0.0/0.255.255.255", "has a netmask; did you mean 10.0.0.0/8?"),
        ("10.0.0.1", "has no prefix length; did you mean 10.0.0.1/32?"),
        ("fd00::1", "has no prefix length; did you mean fd00::1/128?"),
        ("010.0.0.0/8", "has leading zeros; did you mean 10.0.0.0/8?"),
        ("010.0.0.1/8", "has leading zeros; did you mean 10.0.0.0/8?"),
        ("10.000.0.1", "has leading zeros; did you mean 10.0.0.1/32?"),
        ("010.0.0.0/33", "has leading zeros; write its numbers without them"),
        (" 10.0.0.0/8", "has blanks around it; did you mean 10.0.0.0/8?"),
        ("10.0.0.0/8\n", "has blanks around it; did you mean 10.0.0.0/8?"),
        (" nonsense ", "has blanks around it"),
        ("10.0.0.0/33", "has a prefix length over 32, the bits of ipv4"),
        ("fd00::/129", "has a prefix length over 128, the bits of ipv6"),
        ("fd00::/" + "9" * 5_000, "has a prefix length over 128, the bits of ipv6"),
        ("10.0.0.0/", "has '' for a prefix length; write a number from 0 to 32"),
        ("10.0.0.0/+8", "has '+8' for a prefix length; write a number from 0 to 32"),
        ("10.0.0.0/255.0.255.0", "has '255.0.255.0' for a prefix length; write a number from 0"),
        ("10.0.0.0/8/8", "has '8/8' for a prefix length; write a number from 0 to 32"),
        ("fd00::/x", "has 'x' for a prefix length; write a number from 0 to 128"),
        ("10.0.0.256/32", "has an octet over 255"),
        ("10.0.0." + "9" * 5_000 + "/32", "has an octet over 255"),
        ("fe80::%eth0/64", "has a zone, %eth0; leave it out"),
        ("::ffff:10.0.0.1/104", "is IPv4 inside IPv6, which decides about no packet; did you mean"),
        ("0:0:0:0:0:ffff::/96", "is IPv4 inside IPv6, which decides about no packet; did you mean"),
        ("::ffff:10.0.0.0/64", "is IPv4 inside IPv6, which decides about no packet"),
        ("", "is not a CIDR; write an address and a prefix length"),
        ("example.com", "is not a CIDR; write an address and a prefix length"),
        ("10.0.0/8", "is not a CIDR; write an address and a prefix length"),
        ("10/8", "is not a CIDR; write an address and a prefix length"),
        ("10.0.0.0-10.0.0.9", "is not a CIDR; write an address and a prefix length"),
        ("\N{ARABIC-INDIC DIGIT ONE}0.0.0.0/8", "is not a CIDR; write an address"),
    ],
)
def test_what_go_refuses_is_refused_with_what_to_write(text: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=re.escape(remedy)):
        parse_cidr(text)


ODD = st.builds(
    lambda parts, tail: ".".join(parts) + tail,
    st.lists(st.sampled_from(["0", "10", "010", "255", "256", "00"]), min_size=4, max_size=4),
    st.sampled_from(["", "/0", "/8", "/08", "/33", "/255.0.0.0", "/255.255.255.255", " ", "/8 "])
    | st.integers(0, 40).map("/{}".format),
)
ODD_V6 = st.builds(
    lambda address, tail: address + tail,
    st.ip_addresses(v=6).map(str)
    | st.ip_addresses(v=4).map("::ffff:{}".format)
    | st.sampled_from(["::", "fe80::1%x", "::ffff:0:0"]),
    st.sampled_from(["", "/", " "]) | st.integers(0, 140).map("/{}".format),
)


@given(ODD | ODD_V6 | st.text(max_size=20) | st.text(alphabet="0123456789./:f %", max_size=24))
def test_any_text_is_a_prefix_or_a_refusal_whose_suggestion_is_accepted(text: str) -> None:
    try:
        prefix = parse_cidr(text)
    except ValueError as refusal:
        suggested = re.search(r"did you mean (\S+)\?", str(refusal))
        if suggested:
            parse_cidr(suggested[1])
    else:
        assert prefix.first % (1 << prefix.family.bits - prefix.length) == 0
        assert prefix.family is (Family.IPV6 if ":" in text else Family.IPV4)


@given(st.lists(FAMILIES.flatmap(prefixes).map(str) | ODD | ODD_V6, max_size=4))
def test_many_are_read_as_each_or_left_to_be_read_one_by_one(texts: list[str]) -> None:
    columns = parse_common(texts)
    if columns is not None:
        assert [Prefix(*one) for one in zip(*columns, strict=True)] == list(map(parse_cidr, texts))


def test_common_forms_are_read_many_at_a_time() -> None:
    assert parse_common(["10.0.0.0/8", "fd00::/8", "FD00:1:2::/48", "0.0.0.0/0"]) is not None
