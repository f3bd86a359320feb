"""What a nat table decides, with the rules of others around ours."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipmasq_agent.planes.interpretation import Decider, Interpretation
from ipmasq_agent.planes.iptables.interpret import interpret
from ipmasq_agent.planes.iptables.text import parse_rule
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.rules.table import Chain, Table
from ipmasq_agent.policy.addresses import Family, Prefix, parse_address
from ipmasq_agent.policy.decisions import DecisionMap, Entry, Stated, Verdict
from ipmasq_agent.policy.model import (
    Action,
    FamilyPolicy,
    FixedSource,
    Guards,
    PortRange,
)

V4 = Family.IPV4
PLACEMENT = Placement("IP-MASQ")
JUMP = "-m addrtype ! --dst-type LOCAL -j IP-MASQ"
OURS = ["-d 169.254.0.0/16 -j RETURN", "-d 10.0.0.0/8 -j RETURN", "-j MASQUERADE --random-fully"]
INSIDE, OUTSIDE, METADATA = "10.1.2.3", "192.0.2.1", "169.254.169.254"
KUBE = ["-m mark ! --mark 0x4000/0x4000 -j RETURN"]
KUBE += ["-j MARK --set-xmark 0x4000/0x0", "-j MASQUERADE --random-fully"]


def table(post: list[str], ours: list[str] | None = OURS, **chains: list[str]) -> Table:
    every = {"POSTROUTING": post, **{name.replace("_", "-"): r for name, r in chains.items()}}
    if ours is not None:
        every["IP-MASQ"] = ours
    policy = {"POSTROUTING": "ACCEPT"}
    return Table(
        V4,
        {
            name: Chain(name, policy.get(name), tuple(parse_rule(rule, V4) for rule in rules))
            for name, rules in every.items()
        },
    )


def reading(made: Table, source: str | None = None) -> Interpretation:
    return interpret(made, PLACEMENT, None if source is None else parse_address(source)[1])


def verdict(made: Table, destination: str, source: str | None = None) -> Verdict:
    decisions = reading(made, source).policy.decisions
    return decisions.decide(parse_address(destination)[1]).verdict


def reason(
    made: Table, destination: str, source: str | None = None
) -> tuple[str | None, int | None]:
    decisions = reading(made, source).policy.decisions
    found = decisions.decide(parse_address(destination)[1]).reason
    return found[:2] if isinstance(found, Decider) else (None, None)


def listed(made: Table, source: str | None = None) -> list[tuple[str, int, Verdict]]:
    return [
        (e.rule.where, e.rule.position or 0, e.verdict) for e in reading(made, source).exceptions
    ]


MASQ, KEEP, UNKNOWN = Verdict.MASQUERADE, Verdict.NON_MASQUERADE, Verdict.UNKNOWN
ALONE = reading(table([JUMP])).policy


# -- our chain by itself ----------------------------------------------------------------


def test_our_chain_decides_and_each_reason_is_the_rule_that_does() -> None:
    made = table([JUMP])
    assert [verdict(made, d) for d in (INSIDE, METADATA, OUTSIDE)] == [KEEP, KEEP, MASQ]
    assert [reason(made, d) for d in (METADATA, INSIDE, OUTSIDE)] == [
        ("IP-MASQ", 1),
        ("IP-MASQ", 2),
        ("IP-MASQ", 3),
    ]
    assert listed(made) == []
    assert ALONE.action == Action((), random_fully=True)
    assert ALONE.guards == Guards(local_destinations=False)


@pytest.mark.parametrize(
    ("post", "ours"),
    [
        pytest.param([], OURS, id="no jump"),
        pytest.param(["-d 10.0.0.0/8 -j RETURN"], None, id="no chain"),
        pytest.param([JUMP], OURS[:-1], id="no masquerade at its end"),
        pytest.param([JUMP], [], id="empty chain"),
        pytest.param([], None, id="nothing"),
        pytest.param(["-m addrtype --dst-type LOCAL -j IP-MASQ"], OURS, id="jump for us only"),
        pytest.param(["-j RETURN", JUMP], OURS, id="return before"),
        pytest.param(["-j ACCEPT", JUMP], OURS, id="accept before"),
    ],
)
def test_where_no_rule_masquerades_nothing_is_masqueraded(
    post: list[str], ours: list[str] | None
) -> None:
    assert reading(table(post, ours)).policy.decisions == DecisionMap(V4, (), KEEP)


def test_a_jump_to_a_chain_that_is_not_in_the_text_is_unknown() -> None:
    assert verdict(table([JUMP], None), OUTSIDE) is UNKNOWN


def test_a_jump_without_the_guard_speaks_of_local_destinations_too() -> None:
    assert reading(table(["-j IP-MASQ"])).policy == dataclasses.replace(ALONE, guards=Guards(True))
    assert reading(table([JUMP, "-j IP-MASQ"])).policy.guards == Guards(True)


def test_a_second_jump_changes_no_decision() -> None:
    assert reading(table([JUMP, JUMP])).policy == ALONE


def test_a_goto_decides_alike() -> None:
    made = table([JUMP.replace("-j", "-g"), "-j MASQUERADE"])
    assert verdict(made, INSIDE) is KEEP  # its RETURN leaves POSTROUTING, too
    assert verdict(made, OUTSIDE) is MASQ


SOURCES = tuple(Prefix(V4, (172 << 24) + (20 << 16) + (n << 8), 24) for n in (0, 1))


def test_one_jump_for_each_source_and_device_are_the_guards() -> None:
    made = table([f"-s {s} -o {d} {JUMP}" for s in SOURCES for d in ("eth1", "eth0")])
    assert reading(made).policy.guards == Guards(False, SOURCES, ("eth0", "eth1"))
    assert reading(made).exceptions == ()
    assert verdict(made, OUTSIDE) is MASQ
    assert verdict(made, OUTSIDE, "172.20.1.9") is MASQ
    assert verdict(made, OUTSIDE, "172.20.2.9") is KEEP


@pytest.mark.parametrize(
    "jumps",
    [
        pytest.param([f"-s {SOURCES[0]} -o eth0 ", f"-s {SOURCES[1]} -o eth1 "], id="two pairs"),
        pytest.param([f"-s {SOURCES[0]} ", "-o eth0 "], id="either"),
        pytest.param(["! -o eth0 "], id="negated"),
        pytest.param(["-o eth+ "], id="a pattern"),
        pytest.param(["-p tcp "], id="a protocol"),
    ],
)
def test_jumps_that_no_guards_express_are_exceptions(jumps: list[str]) -> None:
    made = table([jump + JUMP for jump in jumps])
    assert verdict(made, OUTSIDE) is KEEP
    assert listed(made) == [("POSTROUTING", n, MASQ) for n in range(1, len(jumps) + 1)]


def test_fixed_sources_are_told_by_the_rules_that_translate_to_them() -> None:
    fixed = "-j SNAT --to-source 192.0.2.7"
    made = table(
        [JUMP], [OURS[1], f"-d 10.0.0.0/7 {fixed}", f"-d 20.0.0.0/8 {fixed}", "-j MASQUERADE"]
    )
    address = parse_address("192.0.2.7")[1]
    assert reading(made).policy.action == Action(
        (),
        False,
        (
            FixedSource(10 << 24, (12 << 24) - 1, address),
            FixedSource(20 << 24, (21 << 24) - 1, address),
        ),
    )
    assert verdict(made, INSIDE) is KEEP
    assert verdict(made, "11.0.0.1") is MASQ


def test_negated_and_nested_rules_are_followed() -> None:
    made = table(["-d 10.0.0.0/8 -j A", JUMP], A=["! -d 10.1.0.0/16 -g B"], B=["-j MASQUERADE"])
    assert verdict(made, INSIDE) is KEEP
    assert reason(made, INSIDE) == ("IP-MASQ", 2)
    assert verdict(made, "10.2.0.1") is MASQ
    assert reason(made, "10.2.0.1") == ("B", 1)


def test_a_loop_of_chains_is_unknown_and_not_endless() -> None:
    assert verdict(table(["-j A", JUMP], A=["-j B"], B=["-j A"]), OUTSIDE) is UNKNOWN
    deep = {f"C{n}": [f"-j C{n + 1}"] for n in range(500)}
    assert verdict(table(["-j C0"], **deep), OUTSIDE) is UNKNOWN


# -- action -----------------------------------------------------------------------------


def test_port_ranges_count_only_where_they_are_whole() -> None:
    ports = [f"-p {p} -j MASQUERADE --to-ports 5-9" for p in ("tcp", "udp", "sctp")]
    whole = reading(table([JUMP], [*ports, "-j MASQUERADE"]))
    assert whole.policy.action == Action((PortRange(5, 9),), random_fully=False)
    assert whole.exceptions == ()
    odd = reading(table([JUMP], [*ports[1:], "-j MASQUERADE"]))
    assert odd.policy.action == Action((), random_fully=False)


def test_a_deleted_final_rule_leaves_the_protocols_as_exceptions() -> None:
    made = table([JUMP], ["-d 10.0.0.0/8 -j RETURN", "-p tcp -j MASQUERADE --to-ports 5-9"])
    assert verdict(made, OUTSIDE) is KEEP
    assert listed(made) == [("IP-MASQ", 2, MASQ)]


# -- others -----------------------------------------------------------------------------


def test_kube_proxy_before_our_jump_leaves_the_map_as_ours() -> None:
    made = reading(table(["-j KUBE-POSTROUTING", JUMP], KUBE_POSTROUTING=KUBE))
    assert made.policy == ALONE
    assert made.exceptions == ()


def test_a_masquerade_rule_after_our_jump_overrides_what_we_return() -> None:
    made = table([JUMP, "-d 10.1.0.0/16 -j MASQUERADE"])
    assert verdict(made, INSIDE) is MASQ
    assert reason(made, INSIDE) == ("POSTROUTING", 2)
    assert verdict(made, "10.2.0.1") is KEEP


DOCKER = "-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"


def test_dockers_rule_is_an_exception_for_its_source() -> None:
    made = table([DOCKER, JUMP])
    assert reading(made).policy == ALONE
    assert listed(made) == [("POSTROUTING", 1, MASQ)]
    assert listed(made, "10.9.9.9") == []
    assert listed(made, "172.17.0.2") == [("POSTROUTING", 1, MASQ)]  # the device decides


def test_a_rule_on_the_source_alone_is_answered_when_the_source_is_given() -> None:
    made = table(["-s 172.17.0.0/16 -j MASQUERADE", "! -s 172.16.0.0/12 -j ACCEPT", JUMP])
    assert verdict(made, INSIDE, "172.17.0.2") is MASQ
    assert verdict(made, OUTSIDE, "10.9.9.9") is KEEP
    assert verdict(made, OUTSIDE, "172.18.0.2") is MASQ
    assert listed(made, "172.18.0.2") == []
    assert listed(made) == [("POSTROUTING", 1, MASQ), ("POSTROUTING", 2, KEEP)]


def test_a_return_for_some_sources_before_our_jump_is_an_exception() -> None:
    assert listed(table(["-s 10.9.0.0/16 -j RETURN", JUMP])) == [("POSTROUTING", 1, KEEP)]


@pytest.mark.parametrize(
    "rule",
    [
        "-m set --match-set x dst -j MASQUERADE",
        "-m iprange --dst-range 10.0.0.1-10.0.0.9 -j SNAT --to-source 192.0.2.9",
        "-d 10.0.0.0/255.0.255.0 -j MASQUERADE",
        "-d 10.0.0.0/0.255.255.255 -j MASQUERADE",
        "-m u32 --u32 0x0 -j ACCEPT",
        "-j SOMETHING-NEW",
        "-m mark --mark nonsense -j ACCEPT",
        "-m addrtype --dst-type MULTICAST -j ACCEPT",
    ],
)
def test_a_rule_that_may_look_at_the_destination_makes_it_unknown_and_is_named(rule: str) -> None:
    made = table([rule, JUMP])
    assert verdict(made, INSIDE) is UNKNOWN
    assert reason(made, INSIDE) == ("POSTROUTING", 1)


@pytest.mark.parametrize("text", ["-d 10.0.0.9/32 -j ACCEPT", "", "-j MARK --set-mark 1"])
def test_a_rule_that_is_not_shown_in_full_makes_everything_unknown(text: str) -> None:
    rule = parse_rule(text, V4, readable=False)
    made = Table(V4, {"POSTROUTING": Chain("POSTROUTING", "ACCEPT", (rule,))})
    assert verdict(made, OUTSIDE) is UNKNOWN
    assert reason(made, OUTSIDE) == ("POSTROUTING", 1)


def test_an_unreadable_rule_after_a_decision_does_not_unmake_it() -> None:
    made = table(["-d 10.0.0.0/8 -j ACCEPT", "-m set --match-set x dst -j MASQUERADE", JUMP])
    assert verdict(made, INSIDE) is KEEP
    assert verdict(made, OUTSIDE) is UNKNOWN


def test_a_set_match_for_some_sources_is_an_exception_and_not_the_end_of_knowledge() -> None:
    made = table(["-s 10.9.0.0/16 -m set --match-set x dst -j ACCEPT", JUMP])
    assert reading(made).policy == ALONE
    assert listed(made) == [("POSTROUTING", 1, KEEP)]
    assert verdict(made, OUTSIDE, "10.9.0.1") is UNKNOWN
    assert verdict(made, OUTSIDE, "10.8.0.1") is MASQ


def test_a_set_of_more_than_addresses_holds_for_some_packets() -> None:
    """kube-proxy's first rule in mode IPVS: a pod that reaches itself by its service."""
    loop = "-m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE"
    made = table(["-j KUBE-POSTROUTING", JUMP], KUBE_POSTROUTING=[loop, *KUBE])
    assert reading(made).policy == ALONE
    assert listed(made) == [("KUBE-POSTROUTING", 1, MASQ)]


def test_a_return_that_cannot_be_read_counts_where_the_rest_of_the_chain_decides() -> None:
    early = "-m set --match-set x dst -j RETURN"
    made = table(["-j WEAVE", JUMP], WEAVE=[early, "-d 10.32.0.0/12 -j MASQUERADE"])
    assert [verdict(made, to) for to in (INSIDE, OUTSIDE, "10.33.0.1")] == [KEEP, MASQ, UNKNOWN]
    assert reason(made, "10.33.0.1") == ("WEAVE", 1)
    assert verdict(table([early, JUMP]), OUTSIDE) is UNKNOWN
    assert reading(table([JUMP, "-j WEAVE"], WEAVE=[early])).policy == ALONE
    some = table(["-j WEAVE", JUMP], WEAVE=[early, "-s 10.32.0.0/12 -j MASQUERADE"])
    assert listed(some) == [("WEAVE", 2, MASQ)]


def test_a_mark_set_on_the_way_makes_later_mark_matches_unknown() -> None:
    made = table(["-d 10.1.0.0/16 -j MARK --set-mark 1", "-m mark --mark 1 -j ACCEPT", JUMP])
    assert verdict(made, OUTSIDE) is UNKNOWN
    assert verdict(table(["-m mark --mark 1 -j ACCEPT", JUMP]), OUTSIDE) is MASQ
    assert verdict(table(["-m mark --mark 0x0/0xff -j ACCEPT", JUMP]), OUTSIDE) is KEEP
    assert verdict(table(["-m mark ! --mark 0x1 -j ACCEPT", JUMP]), OUTSIDE) is KEEP


def test_logging_decides_nothing() -> None:
    assert reading(table(["-j LOG --log-prefix -j", "-j NFLOG", JUMP])).policy == ALONE


def test_an_exception_that_no_packet_reaches_is_not_listed() -> None:
    shadowed = "-d 10.0.0.0/8 -o eth1 -j MASQUERADE"
    assert listed(table(["-d 10.0.0.0/8 -j ACCEPT", shadowed, JUMP])) == []
    assert listed(table(["-d 10.0.0.0/8 -j ACCEPT", "-j A", JUMP], A=[shadowed])) == []
    assert listed(table(["-d 11.0.0.0/8 -j A", JUMP], A=[shadowed])) == []
    assert listed(table(["-j A", JUMP], A=[shadowed])) == [("A", 1, MASQ)]
    assert listed(table(["-j ACCEPT", DOCKER])) == []


def test_an_early_return_is_listed_only_where_the_rest_of_its_chain_decides() -> None:
    leave = "-s 10.9.0.0/16 -j RETURN"
    assert listed(table(["-j A", JUMP], A=[leave, "-d 10.0.0.0/8 -j MASQUERADE"])) == [
        ("A", 1, UNKNOWN)
    ]
    assert listed(table(["-j A", JUMP], A=[leave, "-o x -j ACCEPT"])) == [("A", 2, KEEP)]


FLANNEL = [
    "-m mark --mark 0x4000/0x4000 -j RETURN",
    "-s 10.244.1.0/24 -d 10.244.0.0/16 -j RETURN",
    "-s 10.244.0.0/16 -d 10.244.1.0/24 -j RETURN",
    "! -s 10.244.0.0/16 -d 10.244.1.0/24 -j RETURN",
    "-s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
    "! -s 10.244.0.0/16 -d 10.244.0.0/16 -j MASQUERADE --random-fully",
]


def test_flannel_is_told_exactly_for_a_pod_and_listed_for_everyone() -> None:
    made = table([JUMP, "-j FLANNEL-POSTRTG"], FLANNEL_POSTRTG=FLANNEL)
    assert reading(made).policy == ALONE
    assert [(c, p) for c, p, _ in listed(made)] == [("FLANNEL-POSTRTG", 5), ("FLANNEL-POSTRTG", 6)]
    pod = "10.244.1.7"
    assert verdict(made, INSIDE, pod) is MASQ
    assert verdict(made, "10.244.2.9", pod) is KEEP
    assert reason(made, INSIDE, pod) == ("FLANNEL-POSTRTG", 5)
    assert listed(made, pod) == []


def test_calico_and_cilium_are_exceptions_by_source() -> None:
    calico = table(
        ["-j cali-POSTROUTING", JUMP],
        cali_POSTROUTING=["-j cali-fip-snat", "-j cali-nat-outgoing"],
        cali_fip_snat=[],
        cali_nat_outgoing=[
            "-m set --match-set cali40masq-ipam-pools src "
            "-m set ! --match-set cali40all-ipam-pools dst -j MASQUERADE --random-fully"
        ],
    )
    assert reading(calico).policy == ALONE
    assert listed(calico) == [("cali-nat-outgoing", 1, MASQ)]
    cilium = table(
        ["-j CILIUM-POST-nat", JUMP],
        CILIUM_POST_nat=[
            "-s 10.244.0.0/24 -m set --match-set cilium_node_set_v4 dst -j ACCEPT",
            "-s 10.244.0.0/24 ! -d 10.244.0.0/24 ! -o cilium_+ -j MASQUERADE",
            "-m mark --mark 0xa00/0xe00 -j ACCEPT",
            "-s 127.0.0.1/32 -o cilium_host -j SNAT --to-source 10.244.0.5",
            "-o cilium_host -m mark --mark 0xf00/0xf00 -m conntrack --ctstate DNAT -j SNAT",
        ],
    )
    assert reading(cilium).policy == ALONE
    assert [position for _, position, _ in listed(cilium)] == [1, 2, 4]


# -- any table --------------------------------------------------------------------------

RULES = st.builds(
    " ".join,
    st.tuples(
        st.sampled_from(["", "-d 10.0.0.0/8", "! -d 10.1.0.0/16", "-d 10.1.2.3", "-d 0.0.0.0/1"]),
        st.sampled_from(["-j MASQUERADE", "-j ACCEPT", "-j RETURN", "-j A", "-g B", "-j LOG"]),
    ),
)
PROBES = [
    parse_address(a)[1] for a in (INSIDE, "10.1.2.4", "10.9.0.1", OUTSIDE, METADATA, "1.1.1.1")
]


def walk(made: Table, chain: str, destination: int) -> Verdict | None:
    """The reference: take one packet through the rules; None where the chain returns."""
    for rule in made.rules(chain):
        option = rule.option("destination")
        if option:
            base, _, length = option.values[0].partition("/")
            shift = 32 - int(length)
            inside = parse_address(base)[1] >> shift == destination >> shift
            if inside is option.negated:
                continue
        if rule.target == "RETURN":
            return None
        if rule.target in ("MASQUERADE", "ACCEPT"):
            return MASQ if rule.target == "MASQUERADE" else KEEP
        if rule.target is not None and rule.target in made.chains:
            decided = walk(made, rule.target, destination)
            if decided or rule.option("goto"):
                return decided
    return None


@given(*[st.lists(RULES, max_size=6) for _ in range(3)])
def test_the_map_agrees_with_a_packet_that_walks_the_rules(
    post: list[str], first: list[str], second: list[str]
) -> None:
    flat = [rule for rule in second if not rule.endswith((" A", " B"))]
    inner = [rule for rule in first if not rule.endswith(" A")]
    made = table(post, None, A=inner, B=flat)
    found = reading(made)
    for destination in PROBES:
        expected = walk(made, "POSTROUTING", destination) or KEEP
        assert found.policy.decisions.decide(destination).verdict is expected
    assert found.exceptions == ()


@given(st.lists(st.text(alphabet="-!jmdsg /.0189ABx", max_size=30), max_size=5))
def test_any_rules_are_interpreted_without_an_error(rules: list[str]) -> None:
    assert reading(table([*rules, "-j A"], A=rules)).policy.family is V4


def test_a_policy_that_was_read_has_the_shape_of_one_that_is_made() -> None:
    made = FamilyPolicy(
        DecisionMap(
            V4,
            [
                Entry(0xA9FE0000, 0xA9FEFFFF, KEEP, Stated("x")),
                Entry(10 << 24, (11 << 24) - 1, KEEP, Stated("y")),
            ],
        )
    )
    assert made == ALONE
