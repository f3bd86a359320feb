"""A set as ipset's text, written and read back."""

from __future__ import annotations

import pytest
from hypothesis import given

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.planes.iptables.set_text import fill_text, parse_saved
from ipmasq_agent.planes.prefixset import compile_set, parts
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import DecisionMap
from tests.unit.strategies import FAMILIES, maps

V4, V6 = Family.IPV4, Family.IPV6


@given(FAMILIES.flatmap(maps))
def test_what_is_written_is_read_as_the_same(decisions: DecisionMap) -> None:
    made = compile_set(decisions, "IP-MASQ-4")
    text = fill_text(made).replace(" maxelem", " bucketsize 12 maxelem", 1)
    assert parse_saved(text, made.family) == made


def test_ipset_leaves_the_length_of_a_single_address_out() -> None:
    text = (
        "create x hash:net family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x1\n"
        "add x 10.1.2.3 nomatch\nadd x 10.0.0.0/8\nadd x 10.1.2.4\n"
    )
    assert [parts(code) for code in parse_saved(text, V4).elements] == [
        (10 << 24, 8, False),
        (0x0A010203, 32, True),
        (0x0A010204, 32, False),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ipset v7.17: The set with the given name does not exist",
        "create x hash:net family inet maxelem 5\nadd x 10.0.0.0/x\n",
        "create x hash:net family inet maxelem 5\nadd x nonsense/8\n",
    ],
)
def test_output_that_cannot_be_used_is_an_error(text: str) -> None:
    with pytest.raises(KernelReadError, match="cannot be used"):
        parse_saved(text, V4)


@pytest.mark.parametrize(
    "header", ["hash:ip family inet maxelem 5", "hash:net family inet6 maxelem 5"]
)
def test_a_set_of_another_kind_is_an_error_with_a_way_out(header: str) -> None:
    with pytest.raises(KernelReadError, match="not our hash:net of ipv4") as caught:
        parse_saved(f"create x {header}\n", V4)
    assert "--masq-chain" in str(caught.value)
