"""Rules that mean the same are equal however they are spelled, and no others are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipmasq_agent.planes.iptables.text import parse_rule
from ipmasq_agent.planes.rules.rule import find_all, quote, read_prefix
from ipmasq_agent.policy.addresses import Family, Prefix
from tests.unit.strategies import FAMILIES, prefixes

V4, V6 = Family.IPV4, Family.IPV6

SAME = [
    ("-d 0.0.0.0/0 -j RETURN", "-j RETURN"),
    ("-d 10.0.0.0/255.0.0.0 -j RETURN", "-d 10.0.0.0/8 -j RETURN"),
    ("-d 10.1.2.3/8 -j RETURN", "--destination 10.0.0.0/8 --jump RETURN"),
    ("-d 10.1.2.3 -j RETURN", "-d 10.1.2.3/32 -j RETURN"),
    ("-s 10.0.0.0/0.0.0.0 -j RETURN", "-j RETURN"),
    ("-j RETURN -d 10.0.0.0/8 -s 11.0.0.0/8", "-s 11.0.0.0/8 -d 10.0.0.0/8 -j RETURN"),
    ("-p 6 -j RETURN", "-p tcp -j RETURN"),
    ("-p TCP -j RETURN", "--proto tcp -j RETURN"),
    ("-p all -j RETURN", "-p 0 -j RETURN"),
    ("-p 0 -j RETURN", "-j RETURN"),
    ("-p 132 -m sctp --dport 5 -j RETURN", "-p sctp --dport 5:5 -j RETURN"),
    ("-p tcp -m tcp --dport 5:7 -j RETURN", "-p tcp --dport 5:7 -j RETURN"),
    ("-m comment --comment x -j RETURN", "-j RETURN"),
    ('-m comment --comment "-j ACCEPT ! -d 1.2.3.4" -j RETURN', "-j RETURN"),
    ("-m comment --comment -j -j RETURN", "-j RETURN"),
    ('-j RETURN -m comment --comment "a \\" b"', "-j RETURN"),
    ("-p tcp -j MASQUERADE --to-ports 5", "-p tcp -j MASQUERADE --to-ports 5-5"),
    (
        "-j MASQUERADE --random-fully --to-ports 5-6",
        "-j MASQUERADE --to-ports 5-6 --random-fully",
    ),
    (
        "-m statistic --mode random --probability 0.46929256292 -j RETURN",
        "-m statistic --mode random --probability 0.469292562840114 -j RETURN",
    ),
    ("-m addrtype ! --dst-type LOCAL -j X", "-j X -m addrtype ! --dst-type LOCAL"),
    ("-p icmp -m icmp --icmp-type 8 -j X", "-p 1 --icmp-type 8 -j X"),
]

DIFFERENT = [
    ("-d 10.0.0.0/8 -j RETURN", "! -d 10.0.0.0/8 -j RETURN"),
    ("-d 10.0.0.0/8 -j RETURN", "-s 10.0.0.0/8 -j RETURN"),
    ("! -d 0.0.0.0/0 -j RETURN", "-j RETURN"),
    ("-d 10.0.0.0/8 -j RETURN", "-d 10.0.0.0/9 -j RETURN"),
    # A mask with a hole at its top is no inverted mask.
    ("-d 10.0.0.0/0.255.255.255 -j RETURN", "-d 10.0.0.0/8 -j RETURN"),
    ("-d 10.0.0.0/255.0.255.0 -j RETURN", "-d 10.0.0.0/8 -j RETURN"),
    ("-j X", "-g X"),
    ("-j RETURN", "-j ACCEPT"),
    ("-j RETURN", ""),
    ("-j MASQUERADE", "-j MASQUERADE --random-fully"),
    ("-j MASQUERADE --random", "-j MASQUERADE --random-fully"),
    ("-p tcp -j MASQUERADE --to-ports 5", "-p tcp -j MASQUERADE --to-ports 5-6"),
    ("-p tcp -j X", "! -p tcp -j X"),
    ("-p tcp -j X", "-p udp -j X"),
    ("-m addrtype ! --dst-type LOCAL -j X", "-m addrtype --dst-type LOCAL -j X"),
    ("-m addrtype ! --dst-type LOCAL -j X", "-m addrtype ! --src-type LOCAL -j X"),
    ("-m addrtype ! --dst-type LOCAL -j X", "-j X"),
    ("-m mark --mark 0x1 -j X", "-m connmark --mark 0x1 -j X"),
    (
        "-m mark --mark 0x1 -m connmark --mark 0x2 -j X",
        "-m mark --mark 0x2 -m connmark --mark 0x1 -j X",
    ),
    (
        "-m set --match-set a src --return-nomatch -m set --match-set b dst -j X",
        "-m set --match-set a src -m set --match-set b dst --return-nomatch -j X",
    ),
    ("-m physdev -j X", "-j X"),
    ("-m set --match-set a src -j X", "-m set --match-set a dst -j X"),
    ("-p tcp --dport 5: -j X", "-p tcp --dport 5 -j X"),
    ("-p tcp --dport 5 -j X", "-p tcp --sport 5 -j X"),
    (
        "-m statistic --mode random --probability 0.5 -j X",
        "-m statistic --mode random --probability 0.50000001 -j X",
    ),
    ("-o eth0 -j X", "-i eth0 -j X"),
    ("-o eth0 -j X", "-o eth+ -j X"),
]


@pytest.mark.parametrize(("left", "right"), SAME)
def test_rules_that_mean_the_same_are_equal(left: str, right: str) -> None:
    assert parse_rule(left, V4) == parse_rule(right, V4)
    assert hash(parse_rule(left, V4)) == hash(parse_rule(right, V4))


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_rules_that_mean_something_else_are_not_equal(left: str, right: str) -> None:
    assert parse_rule(left, V4) != parse_rule(right, V4)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("-d ::/0 -j RETURN", "-j RETURN"),
        ("-d fd00::/ff00:: -j RETURN", "-d FD00:0::/8 -j RETURN"),
        ("-p 58 -j X", "-p icmpv6 -j X"),
    ],
)
def test_ipv6_spellings_are_equal_too(left: str, right: str) -> None:
    assert parse_rule(left, V6) == parse_rule(right, V6)


def test_a_rule_that_is_not_shown_in_full_equals_no_readable_one() -> None:
    text = "-d 10.0.0.0/8 -j RETURN"
    assert parse_rule(text, V4, readable=False) != parse_rule(text, V4)


@pytest.mark.parametrize(
    ("text", "target", "comment"),
    [
        ('-m string --string "-j" --algo bm -j ACCEPT', "ACCEPT", None),
        ("-m string --string -j --algo bm -j ACCEPT", "ACCEPT", None),
        ("-j LOG --log-prefix -g", "LOG", None),
        ("-m comment --comment only", None, "only"),
        ('-m comment --comment "a\nb \\\\ \\"c\\"" -g X', "X", 'a\nb \\ "c"'),
        ("-j", None, None),
        ("", None, None),
        ("-m", None, None),
        ("-m statistic --probability nonsense -j X", "X", None),
        ("-p tcp -j X --to-ports", "X", None),
    ],
)
def test_free_text_and_broken_rules_are_taken_as_they_are(
    text: str, target: str | None, comment: str | None
) -> None:
    rule = parse_rule(text, V4)
    assert (rule.target, rule.comment) == (target, comment)


@given(st.text(alphabet='-!jmdspg "\\\n.0/x:', max_size=40) | st.text(max_size=20), FAMILIES)
def test_any_text_is_a_rule_that_equals_itself(text: str, family: Family) -> None:
    assert parse_rule(text, family) == parse_rule(text, family)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30))
def test_quoted_text_reads_back_as_one_comment(text: str) -> None:
    rule = parse_rule(f"-m comment --comment {quote(text)} -j X", V4)
    assert (rule.comment, rule.target) == (text, "X")


@given(FAMILIES.flatmap(prefixes))
def test_prefixes_read_back_by_length_and_by_mask(prefix: Prefix) -> None:
    family = prefix.family
    mask = family.last_address >> (family.bits - prefix.length) << (family.bits - prefix.length)
    assert read_prefix(str(prefix), family) == prefix
    assert read_prefix(f"{family.show(prefix.first)}/{family.show(mask)}", family) == prefix


@pytest.mark.parametrize(
    "text", ["", "x", "10.0.0.0/33", "10.0.0.0/", "fd00::/8", "10.0.0.0/x", "10.0.0.0/255.0.255.0"]
)
def test_what_is_no_prefix_of_the_family_is_not_read_as_one(text: str) -> None:
    assert read_prefix(text, V4) is None


def test_rules_are_found_by_their_target() -> None:
    rules = [parse_rule(text, V4) for text in ("-j A", "-g B", "-o eth0 -j B", "")]
    assert find_all(rules, "B") == rules[1:3]
