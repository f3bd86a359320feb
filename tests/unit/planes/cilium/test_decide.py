from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipmasq_agent.errors import ConfigError
from ipmasq_agent.planes.cilium import decide as cilium
from ipmasq_agent.policy.addresses import Family, Prefix, parse_address
from ipmasq_agent.policy.cidrs import parse_listed
from ipmasq_agent.policy.decisions import Verdict
from tests.unit import strategies

PREFIXES = ["10.0.0.0/8", "169.254.0.0/16", "fd00::/8", "fe80::/10"]
TEXT = "".join(f"{line:20}\n" for line in ("IP PREFIX/ADDRESS", *PREFIXES))


def parsed(text: str) -> list[str]:
    return [str(prefix) for prefix in cilium.parse_listing(text, "listing")]


def decide(prefixes: list[str], destination: str, native: str = "") -> tuple[Verdict, str]:
    family, address = parse_address(destination)
    policy = cilium.policy_of(
        family,
        [parse_listed(text) for text in prefixes],
        cilium.Exempt(tuple(parse_listed(text) for text in native.split())),
        "cilium_ipmasq_v4",
    )
    entry = policy.decisions.decide(address)
    return entry.verdict, str(entry.reason)


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        'Defaulted container "cilium-agent" out of: cilium-agent, config (init)\n' + TEXT,
        '["10.0.0.0/8", "169.254.0.0/16", "fd00::/8", "fe80::/10"]',
        '[{"IP":"10.0.0.0","Mask":"/wAAAA=="},{"IP":"169.254.0.0","Mask":"//8AAA=="},'
        '{"IP":"fd00::","Mask":"/wAAAAAAAAAAAAAAAAAAAA=="},"fe80::/10"]',
        '{"10.0.0.0/8":[""],"169.254.0.0/16":[""],"fd00::/8":[""],"fe80::/10":[""]}',
    ],
    ids=["text", "kubectl", "json", "older json", "object"],
)
def test_every_form_of_a_listing_is_read(text: str) -> None:
    assert parsed(text) == PREFIXES


@pytest.mark.parametrize("text", ["", "\n", "IP PREFIX/ADDRESS\n", "No entries found.\n", "[]"])
def test_an_empty_listing_has_no_entries(text: str) -> None:
    assert parsed(text) == []


def test_a_bare_address_and_bits_past_the_length_are_read_as_the_map_matches_them() -> None:
    assert parsed("192.0.2.1\n10.1.2.3/8\n") == ["192.0.2.1/32", "10.0.0.0/8"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("10.0.0.0/8\nerror dumping contents\n", "listing:2: 'error' is not a prefix"),
        ("[12]", "listing:entry 1: '12' is not a prefix"),
        ("[", "not the JSON of a listing"),
        ('[{"IP":"10.0.0.0","Mask":"/wD/AA=="}]', "a mask with holes"),
        ('[{"IP":"10.0.0.0","Mask":"?"}]', "not base64"),
    ],
)
def test_what_is_no_listing_is_refused_with_its_place(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint.replace("[", r"\[")):
        parsed(text)


def test_a_file_of_nonsense_does_not_print_all_of_it() -> None:
    with pytest.raises(ConfigError) as caught:
        parsed("nonsense\n" * 1000)
    assert len(caught.value.problems) == 21
    assert "980 more" in caught.value.problems[-1]


def test_an_entry_keeps_the_pods_address_and_all_else_is_masqueraded() -> None:
    keep, masquerade = Verdict.NON_MASQUERADE, Verdict.MASQUERADE
    assert decide(["10.0.0.0/8"], "10.1.1.1") == (keep, "10.0.0.0/8 (cilium_ipmasq_v4)")
    assert decide(["10.0.0.0/8"], "8.8.8.8")[0] is masquerade
    assert decide(["10.0.0.0/8"], "169.254.1.1")[0] is masquerade, "link-local is an entry too"
    assert decide([], "fd00::1")[0] is masquerade


def test_the_native_routing_cidr_keeps_the_pods_address_too() -> None:
    assert decide([], "10.1.1.1", "10.0.0.0/8") == (
        Verdict.NON_MASQUERADE,
        "ipv4-native-routing-cidr: 10.0.0.0/8",
    )
    assert decide([], "fd00::1", "10.0.0.0/8 fd00::/8")[1] == "ipv6-native-routing-cidr: fd00::/8"


def test_nodes_of_the_cluster_keep_the_pods_address_and_entries_are_named_before_them() -> None:
    nodes = cilium.Exempt(nodes=frozenset({parse_address("10.0.0.1"), parse_address("fd00::1")}))
    prefixes = [parse_listed("10.0.0.0/30")]
    decisions = cilium.policy_of(Family.IPV6, prefixes, nodes, "map").decisions
    kept = decisions.decide(parse_address("fd00::1")[1])
    assert (kept.verdict, str(kept.reason)) == (
        Verdict.NON_MASQUERADE,
        "address of a node of the cluster",
    )
    assert decisions.decide(parse_address("fd00::2")[1]).verdict is Verdict.MASQUERADE
    decisions = cilium.policy_of(Family.IPV4, prefixes, nodes, "map").decisions
    assert str(decisions.decide(parse_address("10.0.0.1")[1]).reason) == "10.0.0.0/30 (map)"


@pytest.mark.parametrize(("text", "masquerades"), [("true", True), ("false", False), ("", False)])
def test_packets_to_nodes_are_masqueraded_only_if_cilium_config_says_so(
    text: str, masquerades: bool
) -> None:
    settings = {"enable-remote-node-masquerade": text}
    assert cilium.masquerades_to_nodes(settings) is masquerades
    assert not cilium.masquerades_to_nodes({})


def test_the_longest_prefix_is_the_one_that_is_named() -> None:
    origin = decide(["10.0.0.0/8", "10.1.0.0/16"], "10.1.1.1")[1]
    assert origin == "10.1.0.0/16 (cilium_ipmasq_v4)"


@given(st.data(), strategies.FAMILIES)
def test_a_destination_is_kept_exactly_where_a_prefix_holds_it(
    data: st.DataObject, family: Family
) -> None:
    prefixes: list[Prefix] = data.draw(st.lists(strategies.prefixes(family)))
    address = data.draw(strategies.addresses(family))
    decisions = cilium.policy_of(family, prefixes, cilium.NOTHING, "map").decisions
    held = any(
        ipaddress.ip_address(family.show(address)) in ipaddress.ip_network(str(prefix))
        for prefix in prefixes
    )
    expected = Verdict.NON_MASQUERADE if held else Verdict.MASQUERADE
    assert decisions.decide(address).verdict is expected


def test_native_routing_cidrs_are_taken_from_cilium_config() -> None:
    settings = {"ipv4-native-routing-cidr": "10.0.0.0/8", "ipv6-native-routing-cidr": ""}
    assert [str(p) for p in cilium.prefixes_at(settings, cilium.native_routing_key)] == [
        "10.0.0.0/8"
    ]
    with pytest.raises(ConfigError, match="ipv6-native-routing-cidr: 'x' is not a prefix"):
        cilium.prefixes_at({"ipv6-native-routing-cidr": "x"}, cilium.native_routing_key)


def test_a_cilium_that_does_not_use_its_map_is_odd() -> None:
    on = {"enable-bpf-masquerade": "true", "enable-ip-masq-agent": "true"}
    assert list(cilium.oddities(on, list(Family))) == []
    off = {"enable-ip-masq-agent": "false", "enable-ipv6-masquerade": "false"}
    assert len(list(cilium.oddities(off, list(Family)))) == 2
    assert len(list(cilium.oddities(off, [Family.IPV4]))) == 1


@pytest.mark.parametrize(
    ("settings", "tunnels"),
    [
        ({}, True),
        ({"routing-mode": "tunnel"}, True),
        ({"routing-mode": "native"}, False),
        ({"tunnel": "vxlan"}, True),
        ({"tunnel": "disabled"}, False),
        ({"tunnel": "disabled", "routing-mode": "tunnel"}, True),
    ],
    ids=str,
)
def test_it_routes_through_a_tunnel_unless_it_is_told_otherwise(
    settings: dict[str, str], tunnels: bool
) -> None:
    assert cilium.tunnels(settings) is tunnels
