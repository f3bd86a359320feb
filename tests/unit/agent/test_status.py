"""What the agent says of itself."""

from __future__ import annotations

import json
from dataclasses import replace

from ipmasq_agent.agent.status import ConfigStatus, Look, Sighting, Status
from ipmasq_agent.planes.usage import Exhausted, FlowTable, Usage
from ipmasq_agent.policy.addresses import Family

ACCEPTED = ConfigStatus("/etc/config/ip-masq-agent", Sighting("abc", "d", 0), accepted=True)


def test_the_first_line_is_the_one_that_operators_know() -> None:
    status = Status(
        ACCEPTED,
        Look("iptables-nft", devices=("eth0", "eth1"), families=(Family.IPV4,)),
        in_sync=True,
    )
    first = status.as_text().splitlines()[0]
    assert first == "Masquerading: iptables-nft [eth0, eth1] - [IPv4: Enabled, IPv6: Disabled]"


def test_json_has_the_keys_of_the_contract() -> None:
    data = json.loads(json.dumps(Status(ACCEPTED, Look("iptables-nft"), in_sync=True).as_data()))
    assert set(data) >= {"mode", "devices", "inSync", "config", "ipv4", "ipv6"}
    assert set(data["config"]) >= {"source", "revision", "accepted", "error"}
    assert data["ipv4"]["enabled"] is False


def test_ready_needs_the_newest_document_in_force_and_the_kernel_in_step() -> None:
    assert Status(ACCEPTED, in_sync=True).ready
    assert not Status(ACCEPTED, in_sync=False).ready
    assert not Status(
        ConfigStatus("x", Sighting("2", "d2", 0), accepted=False, error="bad"), in_sync=True
    ).ready
    gone = ConfigStatus("x", Sighting("2", "d2", 0), accepted=True, error="the API is unreachable")
    assert not Status(gone, in_sync=True).ready


def test_why_not_ready_names_what_is_waited_for() -> None:
    assert Status(ConfigStatus("x")).why_not_ready() == "waiting for x"
    failed = Status(ACCEPTED, Look(errors={Family.IPV6: "no nat table"}))
    assert failed.why_not_ready() == "ipv6: no nat table"


def test_a_policy_is_not_in_force_beside_a_plane_that_was_left() -> None:
    status = Status(ConfigStatus("x", Sighting("1", "d1", 0), accepted=True), in_sync=True)
    assert (status.in_force, status.ready) == (True, True)
    left = replace(status, look=Look(left_behind=("bpf holds rules of ours that decide too",)))
    assert (left.in_force, left.ready) == (False, False)


def _with_flows(held: int, *exhausted: Exhausted) -> Status:
    tables = (
        FlowTable("flows", 100, {Family.IPV4: held - 1, Family.IPV6: 1}),
        FlowTable("kept", 50, {}),
    )
    return Status(ACCEPTED, Look("bpf"), in_sync=True, usage=Usage(tables, exhausted))


def test_how_full_the_tables_are_is_told() -> None:
    status = _with_flows(79)
    assert status.as_data()["tables"] == [
        {"name": "flows", "capacity": 100, "ipv4": 78, "ipv6": 1},
        {"name": "kept", "capacity": 50},
    ]
    lines = status.as_text().splitlines()
    assert "Table:        flows 79 of 100 (79%)" in lines
    assert "Table:        kept 0 of 50 (0%)" in lines
    assert not any(line.startswith("Warning") for line in lines)


def test_a_table_that_is_nearly_full_is_warned_of() -> None:
    status = _with_flows(80)
    [warning] = status.as_data()["advice"]
    assert warning.startswith("the table of flows `flows` is 80% full")
    assert f"Warning:      {warning}" in status.as_text().splitlines()
    assert status.ready


def test_destinations_to_which_no_port_was_free_are_named() -> None:
    web = Exhausted(Family.IPV6, 0x2001 << 112 | 1, 443, 6, 12)
    echo = Exhausted(Family.IPV4, 0xC0000201, 0, 1, 3)
    status = _with_flows(1, web, echo)
    assert status.as_data()["exhausted"] == [
        {"destination": "[2001::1]:443", "protocol": "tcp", "times": 12},
        {"destination": "192.0.2.1", "protocol": "icmp", "times": 3},
    ]
    assert "No port free: tcp to [2001::1]:443, 12 times" in status.as_text().splitlines()
