"""The keys that upstream does not have: off by default, each with its own meaning."""

from __future__ import annotations

import json

import pytest

from ipmasq_agent.config.assemble import assemble_family
from ipmasq_agent.config.document import oversize, parse_document, parse_documents
from ipmasq_agent.config.keys import (
    EGRESS_INTERFACES,
    EXEMPT_NODE_IPS,
    MASQ_LINK_LOCAL,
    NATIVE_ROUTING_CIDRS,
    NON_MASQUERADE_CIDRS,
    POD_CIDRS,
    SNAT_ADDRESS,
    view,
)
from ipmasq_agent.config.model import AUTO, Config, Flags
from ipmasq_agent.errors import ConfigError
from ipmasq_agent.policy.addresses import Family, parse_address
from ipmasq_agent.policy.decisions import Verdict
from ipmasq_agent.policy.facts import (
    LINKS,
    NO_FACTS,
    NODE_ADDRESSES,
    OWN_POD_CIDRS,
    ROUTES,
    Facts,
    Links,
)
from ipmasq_agent.policy.model import Capabilities, FamilyPolicy, FixedSource, Guards

V4, V6 = Family.IPV4, Family.IPV6
DUAL = Flags(enable_ipv6=True)
KEEP, MASQ = Verdict.NON_MASQUERADE, Verdict.MASQUERADE
RFC_1918 = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]


def read(text: str, flags: Flags = DUAL) -> Config:
    return parse_document(text.encode(), "cm", flags).config


def problems(text: str, flags: Flags = DUAL) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_document(text.encode(), "cm", flags)
    return caught.value.problems


def policy(text: str, family: Family = V4, facts: Facts | None = None) -> FamilyPolicy:
    return assemble_family(read(text), family, Capabilities(), facts or Facts())


def decided(text: str, destination: str, facts: Facts | None = None) -> tuple[Verdict, str]:
    family, address = parse_address(destination)
    entry = policy(text, family, facts).decisions.decide(address)
    return entry.verdict, str(entry.reason)


# -- masqueradeCIDRs and defaultAction --------------------------------------------------


def test_the_longest_prefix_wins_whichever_list_it_is_in() -> None:
    text = (
        "nonMasqueradeCIDRs: [10.0.0.0/8, 10.1.2.0/24]\n"
        "masqueradeCIDRs: [10.1.0.0/16, 10.1.2.3/32]\n"
    )
    assert decided(text, "10.9.9.9") == (KEEP, "10.0.0.0/8 (cm:1)")
    assert decided(text, "10.1.9.9") == (MASQ, "10.1.0.0/16 (cm:2)")
    assert decided(text, "10.1.2.9") == (KEEP, "10.1.2.0/24 (cm:1)")
    assert decided(text, "10.1.2.3") == (MASQ, "10.1.2.3/32 (cm:2)")
    assert decided(text, "8.8.8.8")[0] is MASQ


def test_only_what_is_listed_is_masqueraded_where_the_default_is_to_keep() -> None:
    text = "defaultAction: keep\nmasqueradeCIDRs: [10.0.0.0/8]\n"
    assert decided(text, "10.1.2.3") == (MASQ, "10.0.0.0/8 (cm:2)")
    assert decided(text, "8.8.8.8") == (KEEP, "defaultAction: keep")
    assert decided(text, "172.16.0.1")[0] is KEEP
    assert view(read(text))["nonMasqueradeCIDRs"] == []


def test_a_default_yields_to_what_the_user_says_of_the_same_prefix() -> None:
    text = "masqueradeCIDRs: [10.0.0.0/8, 169.254.0.0/16]"
    assert decided(text, "10.1.2.3")[0] is MASQ
    assert decided(text, "169.254.169.254")[0] is MASQ
    assert decided(text, "172.16.0.1")[0] is KEEP
    assert decided("masqueradeCIDRs: [169.254.169.254/32]", "169.254.169.254")[0] is MASQ


@pytest.mark.parametrize("key", ["nonMasqueradeCIDRs", "nativeRoutingCIDRs"])
def test_the_same_prefix_on_both_sides_is_an_error_that_names_both(key: str) -> None:
    (problem,) = problems(f"{key}: [10.0.0.0/8]\nmasqueradeCIDRs: [10.0.0.0/8]\n")
    column = len(key) + 4
    assert problem.startswith(f"cm:1:{column}: 10.0.0.0/8 is in {key}, and in masqueradeCIDRs")
    assert "(cm:2:19)" in problem


def test_a_word_that_is_no_action_is_refused() -> None:
    assert problems("defaultAction: drop") == (
        'cm:1:16: defaultAction: "drop" is not masquerade or keep',
    )


def test_an_exception_between_two_entries_is_not_called_needless() -> None:
    text = "nonMasqueradeCIDRs: [10.0.0.0/8, 10.1.2.0/24]\nmasqueradeCIDRs: [10.1.0.0/16]\n"
    assert parse_document(text.encode(), "cm", DUAL).warnings == ()
    repeated = text.replace("10.1.2.0/24", "10.0.0.0/8")
    (warning,) = parse_document(repeated.encode(), "cm", DUAL).warnings
    assert "repeats" in warning


# -- native routing and node addresses --------------------------------------------------


def test_what_is_routed_natively_and_nodes_keep_the_pods_address() -> None:
    nodes = NO_FACTS.with_(NODE_ADDRESSES, frozenset({(V4, 0x01020304), (V6, 7)}))
    text = "nativeRoutingCIDRs: [9.0.0.0/8]\nexemptNodeIPs: true\nmasqueradeCIDRs: [1.2.3.4/32]\n"
    assert decided(text, "9.1.1.1", nodes) == (KEEP, "9.0.0.0/8 (cm:1)")
    assert decided(text, "1.2.3.4", nodes) == (KEEP, "exemptNodeIPs: address of a node")
    assert decided(text, "::7", nodes)[0] is KEEP
    assert decided(text, "1.2.3.5", nodes)[0] is MASQ
    with pytest.raises(ValueError, match="addresses of the cluster's nodes"):
        policy(text)


# -- podCIDRs and egressInterfaces ------------------------------------------------------


def test_sources_are_the_fewest_prefixes_of_each_family() -> None:
    text = "podCIDRs: [172.20.1.0/24, 172.20.0.0/24, 172.20.0.0/28, 'fd00:1::/64']"
    assert policy(text).guards.sources == (read("podCIDRs: [172.20.0.0/23]")[POD_CIDRS])
    assert policy(text, V6).guards.sources is not None
    assert policy("podCIDRs: ['fd00:1::/64']").masquerades is False
    assert policy("podCIDRs: [0.0.0.0/0]").guards == Guards()


def test_the_nodes_own_pod_cidrs_are_a_fact() -> None:
    own = read("podCIDRs: [172.20.7.0/24]")[POD_CIDRS]
    assert isinstance(own, tuple)
    assert policy("podCIDRs: auto", facts=NO_FACTS.with_(OWN_POD_CIDRS, own)).guards.sources == own
    assert policy("podCIDRs: auto", facts=NO_FACTS.with_(OWN_POD_CIDRS, ())).masquerades is False


@pytest.mark.parametrize(
    ("patterns", "taken"),
    [
        ("[eth0]", ("eth0",)),
        ("[eth*, bond0]", ("bond0", "eth0", "eth1")),
        ("[eth*, '!eth1']", ("eth0",)),
        ("['!eth*']", ("bond0", "lo")),
        ("auto", ("eth1",)),
        ("['eth[01]', 'nothing*']", ("eth0", "eth1")),
    ],
)
def test_devices_are_taken_by_patterns(patterns: str, taken: tuple[str, ...]) -> None:
    links = NO_FACTS.with_(LINKS, Links(("lo", "eth0", "eth1", "bond0"), ("eth1",)))
    assert policy(f"egressInterfaces: {patterns}", facts=links).guards.devices == taken


def test_where_no_device_matches_nothing_is_masqueraded_and_the_reason_is_said() -> None:
    made = policy("egressInterfaces: [wlan*]", facts=NO_FACTS.with_(LINKS, Links(("lo",), ())))
    assert made.masquerades is False
    assert "egressInterfaces" in str(made.decisions.decide(1).reason)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("podCIDRs: []", "the list is empty; remove the key to mean every source"),
        ("egressInterfaces: []", "the list is empty; remove the key to mean every device"),
        ("podCIDRs: 5", "5 is not a list nor auto"),
        ("podCIDRs: [172.20.0.1/24]", "has host bits set"),
        ("egressInterfaces: eth0", '"eth0" is not a list nor auto'),
        ("egressInterfaces: [!eth0 ]", "is a tag to YAML; quote it"),
        ("egressInterfaces: ['a b']", "is not a device or a pattern"),
        ("egressInterfaces: ['!']", "is not a device or a pattern"),
        ("snatAddress: eth0", "is not an address nor auto-route"),
        ("snatAddress: 224.0.0.1", "cannot be the source"),
        ("snatAddress: {ipv5: 1.2.3.4}", "is not a family"),
        ("snatAddress: {ipv4: 'fd00::1'}", "is not an address of ipv4"),
        ("snatAddress: [1.2.3.4]", "is not an address, auto-route or a mapping"),
        ("exemptNodeIPs: maybe", "is not a boolean"),
        ("profile: calico", '"calico" is not cilium'),
        ("profile: {cilium: vxlan}", 'cilium: "vxlan" is not native or tunnel'),
        ("profile: {calico: native}", "the mapping is not {cilium: ...}"),
        ("profile: {}", "the mapping is not {cilium: ...}"),
        ("masqueradeCIDRs: 10.0.0.0/8", "is not a list; write [10.0.0.0/8]"),
        ("nativeRoutingCIDRs: [10.0.0.0]", "did you mean 10.0.0.0/32?"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_place(text: str, part: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith("cm:1:")
    assert part in problem


def test_ipv6_is_refused_where_it_is_off() -> None:
    for text in ("snatAddress: 'fd00::1'", "masqueradeCIDRs: ['fd00::/8']"):
        (problem,) = problems(text, Flags())
        assert "IPv6, which is off" in problem


# -- snatAddress ------------------------------------------------------------------------


def test_a_fixed_address_is_used_for_every_destination_of_its_family() -> None:
    address = parse_address("192.0.2.7")[1]
    whole = (FixedSource(0, V4.last_address, address),)
    assert policy("snatAddress: 192.0.2.7").action.fixed == whole
    assert policy("snatAddress: 192.0.2.7", V6).action.fixed == ()
    both = "snatAddress: {ipv4: 192.0.2.7, ipv6: 'fd00::7'}"
    assert policy(both).action.fixed == whole
    assert policy(both, V6).action.fixed[0].address == (0xFD << 120) + 7


def test_routes_tell_the_preferred_source_by_their_longest_prefix() -> None:
    routes = read("nativeRoutingCIDRs: [0.0.0.0/0, 10.0.0.0/8, 10.1.0.0/16]")[NATIVE_ROUTING_CIDRS]
    facts = NO_FACTS.with_(ROUTES, tuple(zip((p for p, _ in routes), (1, None, 2), strict=True)))
    assert policy("snatAddress: auto-route", facts=facts).action.fixed == (
        FixedSource(0, (10 << 24) - 1, 1),
        FixedSource(0x0A010000, 0x0A01FFFF, 2),
        FixedSource(11 << 24, V4.last_address, 1),
    )


# -- several documents ------------------------------------------------------------------


def merged(*texts: str) -> Config:
    parts = [(f"dir/{number}", text.encode()) for number, text in enumerate(texts)]
    return parse_documents(parts, "dir", DUAL).config


def test_lists_of_several_documents_are_joined_and_know_where_they_come_from() -> None:
    config = merged(
        "nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqLinkLocal: true\nresyncInterval: 5s\n",
        "# a comment\nnonMasqueradeCIDRs:\n- 172.20.0.0/16\nresyncInterval: 7s\n",
        "snatAddress: 192.0.2.7\n",
    )
    assert [str(origin) for _, origin in config[NON_MASQUERADE_CIDRS]] == [
        "10.0.0.0/8 (dir/0:1)",
        "172.20.0.0/16 (dir/1:3)",
    ]
    assert config[MASQ_LINK_LOCAL] is True
    assert view(config)["resyncInterval"] == "7s"
    assert merged("masqLinkLocal: true", "masqLinkLocal: false")[MASQ_LINK_LOCAL] is False
    assert merged("snatAddress: 1.2.3.4", "snatAddress: 'fd00::1'")[SNAT_ADDRESS].keys() == {V4, V6}


def test_problems_and_overlaps_name_the_document_they_are_in() -> None:
    with pytest.raises(ConfigError) as caught:
        merged("cidrLimit: x", "\nmasqLinkLocal: 5", "masqueradeCIDRs: [1.0.0.0/8]\n",
               "nonMasqueradeCIDRs: [1.0.0.0/8]\n")  # fmt: skip
    assert [line.partition(": ")[0] for line in caught.value.problems] == [
        "dir/0:1:12",
        "dir/1:2:16",
        "dir/3:1:22",
    ]
    parts = [
        ("a", b"nonMasqueradeCIDRs: [10.0.0.0/8]"),
        ("b", b"nonMasqueradeCIDRs: [10.1.0.0/16]"),
    ]
    assert parse_documents(parts, "dir", DUAL).warnings == (
        "b:1:22: 10.1.0.0/16 is covered by 10.0.0.0/8 in line 1 of a",
    )


def test_the_limit_counts_what_all_documents_list() -> None:
    with pytest.raises(ConfigError, match="the document has 3 entries, cidrLimit allows 2"):
        merged(
            "nonMasqueradeCIDRs: [1.0.0.0/8]\ncidrLimit: 2",
            "masqueradeCIDRs: [2.0.0.0/8, 3.0.0.0/8]",
        )
    many = "nonMasqueradeCIDRs: [" + ", ".join(f"10.0.{n}.0/24" for n in range(65)) + "]"
    (problem,) = problems(many)
    assert "has 65 entries, cidrLimit allows 64, which is what plain iptables takes" in problem
    assert "--backend ipset or nftables" in problem
    assert len(read(many, Flags(cidr_limit=None))[NON_MASQUERADE_CIDRS]) == 65


def test_a_document_beyond_one_configmap_is_told_how_to_be_split() -> None:
    text = "# " + "x" * (1 << 20) + "\n"
    (warning,) = oversize([("small", b""), ("cm", text.encode())])
    assert warning.startswith("cm: has 1,048,")
    assert "one ConfigMap holds 1,048,576; split it into several" in warning


# -- profile: cilium --------------------------------------------------------------------


def test_the_profile_has_ciliums_defaults_and_restrictions() -> None:
    config = read("profile: cilium")
    assert len(config[NON_MASQUERADE_CIDRS]) == 11
    assert (config[POD_CIDRS], config[EGRESS_INTERFACES], config[EXEMPT_NODE_IPS]) == (
        AUTO,
        AUTO,
        True,
    )
    stated = read("profile: cilium\npodCIDRs: [172.20.0.0/16]\nexemptNodeIPs: false\n"
                  "egressInterfaces: [eth0]\n")  # fmt: skip
    assert len(stated[NON_MASQUERADE_CIDRS]) == 11
    assert stated[EGRESS_INTERFACES] == ("eth0",)
    assert stated[EXEMPT_NODE_IPS] is False
    assert read("profile: cilium\nmasqLinkLocal: true")[NON_MASQUERADE_CIDRS] == ()


def test_with_a_tunnel_the_profile_masquerades_packets_to_nodes() -> None:
    tunnelled = read("profile: {cilium: tunnel}")
    assert tunnelled[EXEMPT_NODE_IPS] is False
    assert tunnelled[POD_CIDRS] is AUTO
    assert len(tunnelled[NON_MASQUERADE_CIDRS]) == 11
    assert view(tunnelled)["profile"] == {"cilium": "tunnel"}
    assert view(read("profile: {cilium: native}")) == view(read("profile: cilium"))


def test_the_profile_masks_what_is_not_aligned_and_says_so() -> None:
    text = b"profile: cilium\nnonMasqueradeCIDRs: [10.1.2.3/8]\n"
    understood = parse_document(text, "cm", DUAL)
    assert [str(prefix) for prefix, _ in understood.config[NON_MASQUERADE_CIDRS]] == ["10.0.0.0/8"]
    (warning,) = understood.warnings
    assert "is read as 10.0.0.0/8, as Cilium does" in warning
    (problem,) = problems("profile: cilium\nnonMasqueradeCIDRs: [10.1.2.3]\n")
    assert "no prefix length" in problem


def test_what_a_view_shows_is_read_as_the_same() -> None:
    text = (
        "nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqueradeCIDRs: [10.1.0.0/16]\ndefaultAction: keep\n"
        "podCIDRs: [172.20.0.0/16]\nnativeRoutingCIDRs: [9.0.0.0/8]\nexemptNodeIPs: true\n"
        "egressInterfaces: [eth*, '!eth1']\nsnatAddress: {ipv4: auto-route, ipv6: 'fd00::1'}\n"
        "profile: cilium\ncidrLimit: 7\n"
    )
    shown = view(read(text))
    assert view(read(json.dumps(shown))) == shown
    assert len(shown) == 13
