"""Whose chain it is: ours and upstream's are taken, nobody else's is without --adopt."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipmasq_agent.cli.options import settings_of
from ipmasq_agent.errors import KernelReadError, UsageError
from ipmasq_agent.planes.iptables.compile import absent, compile_policy
from ipmasq_agent.planes.iptables.plan import plan
from ipmasq_agent.planes.iptables.text import parse_rule
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.rules.table import POSTROUTING, Chain, Table, empty_table
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import DecisionMap
from ipmasq_agent.policy.model import FamilyPolicy
from tests.unit.strategies import policies

V4 = Family.IPV4
PLACEMENT = Placement("NAT-OUT")
NOTHING = FamilyPolicy(DecisionMap(V4, ()))
GUARDED = "-m addrtype ! --dst-type LOCAL -j NAT-OUT"
UPSTREAM_JUMP = (
    '-m comment --comment "ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL '
    f'destination traffic to our custom NAT-OUT chain" {GUARDED}'
)
OURS_LAST = '-m comment --comment "ipmasq-agent: everything else is masqueraded" -j MASQUERADE'
KUBE = ("-m mark ! --mark 0x4000/0x4000 -j RETURN", "-j MARK --xor-mark 0x4000", "-j MASQUERADE")


def table(jumps: tuple[str, ...], rules: tuple[str, ...]) -> Table:
    hook = Chain(POSTROUTING, "ACCEPT", tuple(parse_rule(text, V4) for text in jumps))
    chain = Chain("NAT-OUT", None, tuple(parse_rule(text, V4) for text in rules))
    return Table(V4, {POSTROUTING: hook, "NAT-OUT": chain})


@pytest.mark.parametrize(
    ("jumps", "rules"),
    [
        pytest.param(("-j NAT-OUT",), KUBE, id="kube-proxy's form"),
        pytest.param(("-m comment --comment theirs -j NAT-OUT",), (), id="a jump of somebody"),
        pytest.param((GUARDED, "-s 10.9.0.0/16 -j NAT-OUT"), (), id="one jump of somebody"),
        pytest.param(("-p tcp " + GUARDED,), (), id="a jump that looks at more"),
        pytest.param((GUARDED,), ("-d 10.0.0.0/8 -j ACCEPT", "-j MASQUERADE"), id="accepting"),
        pytest.param((), ("! -d 224.0.0.0/4 -j MASQUERADE",), id="a CNI's form"),
        pytest.param((), ("-s 10.0.0.0/8 -j MASQUERADE",), id="a source"),
        pytest.param((), ("-o eth0 -j MASQUERADE",), id="a device"),
        pytest.param((), ("-d 10.0.0.0/8 -j DNAT --to-destination 10.0.0.1",), id="another target"),
        pytest.param((), ('-m comment --comment "my ipmasq-agent: x" -j ACCEPT',), id="a word"),
    ],
)
def test_a_chain_of_somebody_else_is_neither_taken_nor_removed(
    jumps: tuple[str, ...], rules: tuple[str, ...]
) -> None:
    held = table(jumps, rules)
    for desired in (compile_policy(NOTHING, PLACEMENT), absent(PLACEMENT)):
        with pytest.raises(KernelReadError, match="not ours") as caught:
            plan(held, desired)
        assert "--adopt" in str(caught.value.remedy)
        assert "NAT-OUT" in caught.value.message
    adopted = absent(replace(PLACEMENT, adopt=True))
    assert plan(held, adopted).result.chains == empty_table(V4).chains


@pytest.mark.parametrize(
    ("jumps", "rules"),
    [
        pytest.param((UPSTREAM_JUMP,), KUBE, id="upstream's jump, whatever became of the chain"),
        pytest.param(("-j NAT-OUT",), (OURS_LAST, *KUBE), id="our chain, whatever leads there"),
        pytest.param((), (OURS_LAST,), id="a jump that was lost"),
        pytest.param((GUARDED,), ("-d 10.0.0.0/8 -j RETURN", "-j MASQUERADE"), id="without words"),
        pytest.param((), ("-m set --match-set NAT-OUT-4 dst -j RETURN",), id="a set"),
        pytest.param((), ("-p tcp -j MASQUERADE --to-ports 5-9", "-j MASQUERADE"), id="ports"),
        pytest.param((), (), id="an empty chain"),
    ],
)
def test_ours_and_upstream_s_are_told_by_comments_or_by_holding_nothing_else(
    jumps: tuple[str, ...], rules: tuple[str, ...]
) -> None:
    held = table(jumps, rules)
    desired = compile_policy(NOTHING, PLACEMENT)
    assert not plan(plan(held, desired).result, desired)
    assert plan(held, absent(PLACEMENT)).result.chains == empty_table(V4).chains


@given(st.sampled_from(Family).flatmap(policies))
def test_what_we_write_is_ours_also_without_its_jumps(policy: FamilyPolicy) -> None:
    desired = compile_policy(policy, PLACEMENT)
    written = plan(empty_table(policy.family), desired).result
    assert not plan(written, desired)
    without = {**written.chains, POSTROUTING: Chain(POSTROUTING, "ACCEPT", ())}
    assert plan(replace(written, chains=without), desired).jumps == desired.jumps


@pytest.mark.parametrize(
    "name",
    [
        *("KUBE-POSTROUTING", "KUBE-SERVICES", "DOCKER", "DOCKER-USER", "CNI-HOSTPORT-MASQ"),
        *("cali-POSTROUTING", "FLANNEL-POSTRTG", "CILIUM_POST_nat", "OLD_CILIUM_POST_nat"),
        *("AWS-SNAT-CHAIN-0", "LIBVIRT_PRT", "ts-postrouting", "OVN-KUBE-EGRESS-SVC"),
        *("WEAVE", "f2b-sshd", "NETAVARK-HOSTPORT-MASQ"),
    ],
)
def test_names_of_other_programs_are_refused_with_or_without_adopt(name: str) -> None:
    for adopt in (False, True):
        with pytest.raises(UsageError, match=f"{name} is a name of"):
            settings_of({"masq_chain": name, "adopt": adopt})


@pytest.mark.parametrize("name", ["IP-MASQ", "IP-MASQ-AGENT", "MY-KUBE-CHAIN", "MASQ"])
def test_names_of_nobody_are_taken(name: str) -> None:
    assert settings_of({"masq_chain": name}).placement == Placement(name)
    assert settings_of({"masq_chain": name, "adopt": True}).placement == Placement(name, adopt=True)
