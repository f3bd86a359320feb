"""What the agent says of itself."""

from __future__ import annotations

import json
from dataclasses import replace

from ipmasq_agent.agent.status import ConfigStatus, Status
from ipmasq_agent.policy.addresses import Family

ACCEPTED = ConfigStatus("/etc/config/ip-masq-agent", "abc", accepted=True)


def test_the_first_line_is_the_one_that_operators_know() -> None:
    status = Status(
        ACCEPTED,
        mode="iptables-nft",
        devices=("eth0", "eth1"),
        families=(Family.IPV4,),
        in_sync=True,
    )
    first = status.as_text().splitlines()[0]
    assert first == "Masquerading: iptables-nft [eth0, eth1] - [IPv4: Enabled, IPv6: Disabled]"


def test_json_has_the_keys_of_the_contract() -> None:
    data = json.loads(json.dumps(Status(ACCEPTED, mode="iptables-nft", in_sync=True).as_data()))
    assert set(data) >= {"mode", "devices", "inSync", "config", "ipv4", "ipv6"}
    assert set(data["config"]) >= {"source", "revision", "accepted", "error"}
    assert data["ipv4"]["enabled"] is False


def test_ready_needs_the_newest_document_in_force_and_the_kernel_in_step() -> None:
    assert Status(ACCEPTED, in_sync=True).ready
    assert not Status(ACCEPTED, in_sync=False).ready
    assert not Status(ConfigStatus("x", "2", accepted=False, error="bad"), in_sync=True).ready
    gone = ConfigStatus("x", "2", accepted=True, error="the API is unreachable")
    assert not Status(gone, in_sync=True).ready


def test_why_not_ready_names_what_is_waited_for() -> None:
    assert Status(ConfigStatus("x")).why_not_ready() == "waiting for x"
    failed = Status(ACCEPTED, errors={Family.IPV6: "no nat table"})
    assert failed.why_not_ready() == "ipv6: no nat table"


def test_a_policy_is_not_in_force_beside_a_plane_that_was_left() -> None:
    status = Status(ConfigStatus("x", "1", accepted=True), in_sync=True)
    assert (status.in_force, status.ready) == (True, True)
    left = replace(status, left_behind=("bpf holds rules of ours that decide too",))
    assert (left.in_force, left.ready) == (False, False)
