"""The eBPF dialect: plans between tables, and what tables mean."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipmasq_agent.bpf import lpm
from ipmasq_agent.errors import HostError, KernelReadError
from ipmasq_agent.planes.bpf import layout
from ipmasq_agent.planes.bpf.compile import compile_policy
from ipmasq_agent.planes.bpf.interpret import interpret
from ipmasq_agent.planes.bpf.layout import SettingsFlag, SlotSettings
from ipmasq_agent.planes.bpf.plan import plan
from ipmasq_agent.planes.bpf.state import BpfState, describe
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import DecisionMap, Entry, Stated, Verdict
from ipmasq_agent.policy.facts import EgressDevice
from ipmasq_agent.policy.model import Action, FamilyPolicy, Guards, PortRange
from tests.unit.planes.bpf.node import PRESENT, empty, on_a_node, without
from tests.unit.strategies import ANY_POLICY, FAMILIES, addresses, policies, prefixes

V4 = Family.IPV4


def policy(*kept: tuple[int, int], **guards: tuple[str, ...]) -> FamilyPolicy:
    entries = [Entry(first, last, Verdict.NON_MASQUERADE, Stated("x")) for first, last in kept]
    return FamilyPolicy(DecisionMap(V4, entries), Guards(devices=guards.get("devices")))


@settings(max_examples=200)
@given(FAMILIES.flatmap(lambda f: st.tuples(policies(f), policies(f))))
def test_a_plan_is_empty_where_nothing_differs_and_says_all_that_does(
    pair: tuple[FamilyPolicy, FamilyPolicy],
) -> None:
    before, desired = on_a_node(pair[0]), compile_policy(pair[1])
    change = plan(before, desired)
    then = plan(before, desired).result
    assert not plan(then, desired)
    assert bool(change) == (before.rules != desired or before.hooks != then.hooks)
    assert change.counts == (len(change.added), len(change.removed))
    lines = set(describe(before)) - set(change.removed) | set(change.added)
    assert lines == set(describe(then))


@given(ANY_POLICY)
def test_to_leave_is_to_remove_all_that_is_described(wanted: FamilyPolicy) -> None:
    table = on_a_node(wanted)
    change = plan(table, None)
    assert sorted(change.removed) == sorted(describe(table))
    assert change.added == []
    assert not plan(plan(table, None).result, None)


def test_what_is_left_without_being_in_force_is_removed_too() -> None:
    change = plan(replace(empty(V4), remains=True), None)
    assert change
    assert change.removed == ["ipv4 maps and programs that are not in force"]


def test_one_prefix_more_is_one_edit_in_place() -> None:
    before = on_a_node(policy((10 << 24, 10 << 24 | 0xFFFFFF)))
    wanted = compile_policy(policy((10 << 24, 10 << 24 | 0xFFFFFF), (11 << 24, 11 << 24 | 0xFFFF)))
    change = plan(before, wanted)
    assert change.added == ["ipv4 decisions 11.0.0.0/16 non-masquerade"]
    assert change.removed == []
    assert change.steps is not None
    assert not change.switches


def test_a_guard_more_switches_to_another_generation() -> None:
    before = on_a_node(policy((1, 1)))
    change = plan(before, compile_policy(policy((1, 1), devices=("eth1",))))
    assert change.switches
    assert (change.attach, change.detach) == (("eth1",), ("bond0.100", "eth0"))


def test_a_device_without_its_programs_gets_them_again() -> None:
    table = without(on_a_node(policy((1, 1))), "eth0")
    change = plan(table, compile_policy(policy((1, 1))))
    assert (change.attach, change.update, change.switches) == (("eth0",), (), False)
    assert change.added == ["ipv4 programs eth0 source 0.0.0.102"]


def test_another_address_of_a_device_is_told() -> None:
    table = on_a_node(policy((1, 1)))
    moved = {**PRESENT, "eth0": PRESENT["eth0"]._replace(sources={V4: 7})}
    change = plan(replace(table, present=moved), compile_policy(policy((1, 1))))
    assert (change.attach, change.update) == ((), ("eth0",))
    assert change.removed == ["ipv4 programs eth0 source 0.0.0.102"]
    assert change.added == ["ipv4 programs eth0 source 0.0.0.7"]


def test_an_address_of_the_node_that_comes_or_goes_is_a_line() -> None:
    table = replace(on_a_node(policy((1, 1))), own=frozenset({1, 2}), addresses=frozenset({2, 3}))
    change = plan(table, compile_policy(policy((1, 1))))
    assert change
    assert (change.attach, change.update, change.switches) == ((), (), False)
    assert (change.added, change.removed) == (
        ["ipv4 addresses 0.0.0.3"],
        ["ipv4 addresses 0.0.0.1"],
    )
    assert change.counts == (1, 1)
    assert change.result.own == {2, 3}


def test_devices_that_lead_out_have_the_programs_for_replies_beside_those_of_the_policy() -> None:
    table = on_a_node(policy((1, 1), devices=("eth1",)))
    assert (list(table.hooks), list(table.beside)) == (["eth1"], ["bond0.100", "eth0"])
    assert interpret(table).policy.guards.devices == ("eth1",)
    broken = replace(table.beside["eth0"], complete=False)
    table = replace(table, beside={**table.beside, "eth0": broken})
    change = plan(table, compile_policy(policy((1, 1), devices=("eth1",))))
    assert (change.attach, change.removed) == (("eth0",), [])
    assert change.added == ["ipv4 programs eth0 source 0.0.0.102 for replies"]
    # One that had the programs keeps them, also where it does not lead out: flows began there.
    change = plan(table, compile_policy(policy((1, 1), devices=("eth0",))))
    assert list(change.result.beside) == ["bond0.100", "eth1"]


def test_devices_that_come_to_lead_out_take_part() -> None:
    table = replace(on_a_node(policy((1, 1))), leading_out=("eth0", "eth1"))
    change = plan(table, compile_policy(policy((1, 1))))
    assert (change.attach, change.detach) == (("eth1",), ("bond0.100",))


def test_a_device_that_the_host_lacks_is_not_waited_for() -> None:
    table = on_a_node(policy((1, 1), devices=("eth0", "eth9")))
    assert list(table.hooks) == ["eth0"]
    assert not plan(table, compile_policy(policy((1, 1), devices=("eth0", "eth9"))))


@given(ANY_POLICY)
def test_without_programs_nothing_is_masqueraded(wanted: FamilyPolicy) -> None:
    table = on_a_node(wanted)
    idle = interpret(without(table, *table.hooks)).policy
    assert idle.decisions.verdicts == {Verdict.NON_MASQUERADE}


def test_a_program_that_is_missing_on_one_device_shows_as_a_guard() -> None:
    table = without(on_a_node(policy((1, 1))), "eth0")
    assert interpret(table).policy.guards.devices == ("bond0.100",)


def test_a_source_outside_of_the_guard_keeps_its_address() -> None:
    pods = Guards(sources=(Prefix(V4, 10 << 24, 8),))
    table = on_a_node(FamilyPolicy(DecisionMap(V4, ()), pods))
    outside = interpret(table, source=11 << 24).policy.decisions
    inside = interpret(table, source=10 << 24).policy.decisions
    assert outside.verdicts == {Verdict.NON_MASQUERADE}
    assert inside.verdicts == {Verdict.MASQUERADE}


def test_more_port_ranges_than_there_is_room_for_are_refused() -> None:
    ports = tuple(PortRange(1000 + 10 * n, 1001 + 10 * n) for n in range(16))
    with pytest.raises(HostError, match="up to 15 port ranges, not 16"):
        compile_policy(FamilyPolicy(DecisionMap(V4, ()), action=Action(ports)))


# -- the layout -----------------------------------------------------------------------------


@given(FAMILIES.flatmap(lambda f: st.tuples(st.just(f), prefixes(f))))
def test_a_prefix_comes_back_from_its_key(drawn: tuple[Family, Prefix]) -> None:
    family, prefix = drawn
    key = lpm.pack_keys(family, [(prefix.first, prefix.length)], layout.ADDRESS_SIZE)
    assert list(lpm.unpack_keys(family, [(key, 1)])) == [(prefix.first, prefix.length, 1)]


def test_a_length_that_the_family_has_not_is_an_error() -> None:
    key = lpm.pack_keys(Family.IPV6, [(0, 64)], layout.ADDRESS_SIZE)
    with pytest.raises(KernelReadError, match="one of length 64"):
        list(lpm.unpack_keys(V4, [(key, 1)]))


def test_settings_come_back() -> None:
    ports = (PortRange(1, 2), PortRange(1024, 65535))
    told = SlotSettings(1 << 60, SettingsFlag.MANAGED | SettingsFlag.RANDOM_FULLY, ports)
    assert layout.unpack_settings(layout.pack_settings(told)) == told


@given(addresses(V4) | st.none(), addresses(Family.IPV6) | st.none(), st.booleans())
def test_a_device_comes_back(four: int | None, six: int | None, loopback: bool) -> None:
    pairs = (Family.IPV4, four), (Family.IPV6, six)
    sources = {family: address for family, address in pairs if address is not None}
    device = EgressDevice(2, sources, 14, loopback)
    told = layout.DeviceEntry(device, dict(zip(Family, (1, 2), strict=True)))
    assert layout.unpack_device(2, layout.pack_device(told)) == told


def test_a_table_without_devices_masquerades_nothing() -> None:
    wanted = compile_policy(policy((1, 1)))
    table = plan(BpfState(V4, present={"eth0": EgressDevice(2, {})}), wanted).result
    assert interpret(table).policy.decisions.verdicts == {Verdict.NON_MASQUERADE}
