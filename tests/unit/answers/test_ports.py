"""How many ports are left, and what is said of it."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from ipmasq_agent.agent.exposition import exposed
from ipmasq_agent.agent.metrics import Metrics
from ipmasq_agent.agent.status import ConfigStatus, Status
from ipmasq_agent.answers.ports import PortLook, looked
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.flows import End
from ipmasq_agent.policy.model import PortRange, parse_port_ranges
from ipmasq_agent.policy.ports import (
    IDENTIFIERS,
    PortPool,
    PortUse,
    fullest,
    kernel_pools,
    own_pool,
)
from ipmasq_agent.policy.tally import Tally, tally

NODE = 0xC0A80A64
ANY, LOW = kernel_pools(()).pools[2], kernel_pools(()).pools[1]


def use(number: int, pool: PortPool = ANY, protocol: int = 6) -> PortUse:
    return PortUse(Family.IPV4, protocol, NODE, End(0x0A000000 + number, 443), pool)


@pytest.mark.parametrize(
    ("ranges", "port", "size"),
    [
        ("", 1024, 64512),
        ("", 65535, 64512),
        ("", 700, 424),
        ("", 511, 511),
        ("2000-2009,3000-3004", 2009, 10),
        ("2000-2009,3000-3004", 3000, 5),
        ("2000-2009,3000-3004", 2010, 64512),  # as others translate
        ("100-200", 150, 101),
    ],
)
def test_a_port_tells_from_how_many_it_was_chosen(ranges: str, port: int, size: int) -> None:
    pools = kernel_pools(parse_port_ranges(ranges))
    assert pools.pools[pools.of_port[port]].size == size


def test_programs_choose_from_their_ranges_or_above_the_well_known() -> None:
    assert own_pool(()).size == 64512
    assert own_pool((PortRange(2000, 2009),)).size == 10


def test_what_is_met_often_is_counted_whatever_else_is_met() -> None:
    random = Random(1)
    things = [f"often {n % 5}" for n in range(5000)] + [f"seldom {n}" for n in range(20_000)]
    random.shuffle(things)
    found = tally(iter(things), room=100)
    often = [f"often {n}" for n in range(5)]
    assert {thing for thing, _ in found.counts.most_common(5)} == set(often)
    for thing in often:
        assert found.counts[thing] <= 1000 <= found.counts[thing] + found.missed
    assert len(found.counts) <= 200
    assert tally(iter("aabc")) == Tally(Counter("aabc"), 0)
    assert tally(iter("")) == Tally(Counter(), 0)


def test_a_small_pool_that_is_full_comes_before_large_ones_with_more_connections() -> None:
    many = {use(n): 1000 + n for n in range(20)}
    nearly = use(99, LOW)
    assert next(iter(fullest({**many, nearly: 400}, 8))) == nearly
    assert len(fullest({**many, nearly: 400}, 8)) == 8


def test_the_fullest_come_first_each_with_what_is_left_and_how_it_grew() -> None:
    found = Tally(Counter({use(1): 50_000, use(2, LOW): 400, use(3, IDENTIFIERS, 1): 7}))
    look = looked(found)
    assert [row.used for row in look.rows] == [400, 50_000, 7]
    assert [row.grown for row in look.rows] == [None] * 3
    low, most, _ = look.rows
    assert (low.left, most.left) == (24, 14_512)
    (warning,) = look.warnings
    assert "400 of 424 source ports (600-1023) are in use for tcp to 10.0.0.2:443" in warning
    later = looked(Tally(Counter({use(1): 49_000, use(4): 5}))).since(look.counted(), 60.0)
    assert [(row.used, row.grown) for row in later.rows] == [(49_000, -1000), (5, 5)]
    assert most.as_data() == {
        "destination": "10.0.0.1:443",
        "protocol": "tcp",
        "address": "192.168.10.100",
        "ports": "1024-65535",
        "used": 50_000,
        "of": 64_512,
        "left": 14_512,
        "grown": None,
    }


def test_status_warns_and_metrics_show_the_few_fullest() -> None:
    counts = {use(number): 60_000 - 9_000 * number for number in range(7)}
    status = Status(ConfigStatus("x"), ports=looked(Tally(Counter(counts))))
    (advice,) = status.as_data()["advice"]
    assert "60000 of 64512 source ports" in advice
    assert f"Warning:      {advice}" in status.as_text()
    assert [row["used"] for row in status.as_data()["ports"]] == list(counts.values())
    lines = exposed(Metrics().all(status))[1].decode().splitlines()
    used = [line for line in lines if line.startswith("ipmasq_agent_ports_used{")]
    assert len(used) == 5
    assert 'destination="10.0.0.0:443"' in used[0]
    (ratio,) = (line for line in lines if line.startswith("ipmasq_agent_ports_used_ratio "))
    assert float(ratio.split()[1]) == pytest.approx(60_000 / 64_512)
    quiet = exposed(Metrics().all(Status(ConfigStatus("x"))))[1].decode()
    assert "ipmasq_agent_ports_used_ratio 0.0" in quiet
    assert "ports_used{" not in quiet


@pytest.mark.parametrize(("count", "told"), [(79, False), (80, True), (100, True)])
def test_connection_tracking_is_told_before_it_is_full(count: int, told: bool) -> None:
    warnings = PortLook()._replace(tracked=(count, 100)).warnings
    assert [f"{count} of 100" in line for line in warnings] == [True] * told
