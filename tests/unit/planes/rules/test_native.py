"""Rules of nf_tables as options, by expressions that the kernel of this machine may not give."""

from __future__ import annotations

import pytest

from ipmasq_agent.netlink import nft_numbers as nft
from ipmasq_agent.netlink.expressions import (
    Compare,
    Conntrack,
    Expression,
    Masquerade,
    Opaque,
    OtherLoad,
)
from ipmasq_agent.planes.rules.matching import ANY, Match, matches_of
from ipmasq_agent.planes.rules.native import told
from ipmasq_agent.planes.rules.table import Table
from ipmasq_agent.policy.addresses import Family

V4 = Family.IPV4
ORIGINAL, REPLY = 0, 1
PROTOCOL, PROTO_DST = 10, 12  # NFT_CT_...


@pytest.mark.parametrize(
    ("load", "match"),
    [
        # The source of a reply is where the packet was sent to.
        (Conntrack(1, nft.NFT_CT_SRC_IP, REPLY), Match.UNREADABLE),
        (Conntrack(1, nft.NFT_CT_DST_IP, ORIGINAL), Match.UNREADABLE),
        (Conntrack(1, nft.NFT_CT_SRC_IP, ORIGINAL), Match.SOMETIMES),
        (Conntrack(1, PROTOCOL), Match.SOMETIMES),
        (Conntrack(1, PROTO_DST, ORIGINAL), Match.SOMETIMES),
        (OtherLoad("socket", 1), Match.SOMETIMES),
        (OtherLoad("exthdr", None), Match.UNREADABLE),
        (Opaque("inner"), Match.UNREADABLE),
    ],
)
def test_what_looks_at_the_destination_is_unreadable_and_anything_else_narrows(
    load: Expression, match: Match
) -> None:
    rule = told([load, Compare(1, nft.NFT_CMP_EQ, b"\x0a\0\0\1"), Masquerade()], V4, {}, str)
    assert rule.target == "MASQUERADE"
    assert matches_of(rule, Table(V4, {}), ANY, marked=False) is match
