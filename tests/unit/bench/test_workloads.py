"""What programs print, understood; and what they print when something is wrong."""

from __future__ import annotations

import json
import socket

import pytest

from ipmasq_agent.bench.machine import pinned
from ipmasq_agent.bench.modes import FULL, MODES, QUICK, skipped, turns
from ipmasq_agent.bench.sender import names
from ipmasq_agent.bench.udp import parts_of
from ipmasq_agent.bench.workload import Measured
from ipmasq_agent.bench.workloads import (
    IN_TURN,
    MEASURES,
    connections,
    due,
    latency,
    streams,
    tools,
)

WRK = """Running 1s test @ http://1.0.0.176/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.37ms  670.03us   9.00ms   80.42%
  6220 requests in 1.00s, 0.85MB read
Requests/sec:   6190.15
Transfer/sec:      0.85MB
"""
ERRORS = "  Socket errors: connect 0, read 3, write 0, timeout 2\n"
SOCKPERF = """sockperf: [Valid Duration] RunTime=1.551 sec; SentMessages={sent}; ReceivedMessages=1
sockperf: # dropped messages = {lost}; # duplicated messages = 0; # out-of-order messages = 0
sockperf: ---> percentile 99.900 = 9000.000
sockperf: ---> percentile 99.000 = 5500.500
sockperf: ---> percentile 50.000 =   86.701
"""


def test_requests_of_several_wrk_add_up() -> None:
    assert connections.outcome([WRK, WRK], 0) == Measured("connections", 12380.3)
    assert connections.outcome([WRK, WRK], 12).value  # one in a thousand


@pytest.mark.parametrize(
    ("said", "again", "problem"),
    [
        ([WRK, WRK + ERRORS], 0, "Socket errors: connect 0, read 3"),
        ([WRK, "unable to connect to 1.0.0.1:80 Connection refused\n"], 0, "Connection refused"),
        ([WRK, ""], 0, "no answer"),
        ([WRK, WRK], 13, "13 segments were sent again in 12,440 requests"),
        ([WRK.replace("6190.15", "0.00")], 0, "no request was answered"),
    ],
)
def test_connections_that_fail_give_no_figure(said: list[str], again: int, problem: str) -> None:
    one = connections.outcome(said, again)
    assert one.value is None
    assert problem in (one.problem or "")


def test_what_iperf_received_counts() -> None:
    told = {"end": {"sum_sent": {"bytes": 2000}, "sum_received": {"bytes": 1000, "seconds": 2}}}
    assert streams.outcome(json.dumps(told)) == (1000, 2, None)
    told["end"]["sum_received"]["bytes"] = 0
    assert streams.outcome(json.dumps(told)) == (0, 2, "nothing arrived")
    refused = {"end": {}, "error": "unable to connect"}
    assert streams.outcome(json.dumps(refused)) == (0, 0, "iperf3: unable to connect")
    assert streams.outcome("") == (0, 0, "iperf3 did not end (it said nothing)")


def test_percentiles_of_sockperf() -> None:
    good = [Measured("latency-p50", 86.701e-6), Measured("latency-p99", 5500.5e-6)]
    found = list(latency.outcome(SOCKPERF.format(sent=10_000, lost=10)))
    assert [r.measure for r in found] == [r.measure for r in good]
    assert [r.value for r in found] == pytest.approx([r.value for r in good])
    lost = list(latency.outcome(SOCKPERF.format(sent=10_000, lost=11)))
    assert {r.problem for r in lost} == {"11 of 10,000 requests were lost"}
    assert {r.problem for r in latency.outcome("help")} == {"requests were not answered"}


def test_addresses_are_laid_out_as_the_kernel_has_them() -> None:
    four = names(["192.0.2.1", "192.0.2.2"], 7, 2)
    assert four[1] == (
        socket.AF_INET.to_bytes(2, "little") + bytes([0, 7, 192, 0, 2, 2]) + bytes(8)
    )
    assert [one[3] for one in four] == [7, 7, 8, 8]
    (six,) = names(["fd00::1"], 258, 1)
    assert len(six) == 28
    assert six[2:8] == bytes([1, 2, 0, 0, 0, 0])
    assert six[8:24] == (0xFD << 120 | 1).to_bytes(16)


def test_a_burst_has_equal_parts_and_loses_nothing() -> None:
    assert parts_of(10, 3) == [3, 3, 4]
    assert parts_of(2, 9) == [1, 1]
    assert sum(parts_of(99_991, 9)) == 99_991


def test_programs_are_pinned_where_there_are_cpus() -> None:
    assert pinned("", ["wrk"]) == ["wrk"]
    assert pinned("3", ["wrk"]) == ["taskset", "-c", "3", "wrk"]


def test_every_mode_has_its_turns_and_what_has_none_is_told() -> None:
    full = list(turns(MODES, FULL))
    assert [turn.cidrs for turn in full if turn.mode.name == "bpf"] == [
        3,
        64,
        1000,
        10_000,
        100_000,
    ]
    assert [turn.cidrs for turn in full if turn.mode.name == "none"] == [0]
    assert [turn.cidrs for turn in full if turn.everything and turn.mode.name == "ipset"] == [
        *(64, 100_000)
    ]
    assert len(skipped(MODES, FULL)) == 2
    assert all("with 100,000 CIDRs" in why for why in skipped(MODES, FULL))
    quick = list(turns(MODES, QUICK))
    assert len(quick) == len(MODES)
    assert not any(turn.everything for turn in quick)
    assert skipped(MODES, QUICK) == []


def test_every_measure_is_of_one_workload_that_has_its_turn() -> None:
    named = [measure for workload in IN_TURN for measure in workload.measures]
    assert sorted(one.name for one in named) == sorted({one.name for one in MEASURES})
    for turn in turns(MODES, FULL):
        has_part = {measure.name for workload in due(turn) for measure in workload.measures}
        assert ("load" in has_part) == (turn.mode.backend is not None)
        assert ("stream" in has_part) == turn.everything


def test_a_benchmark_asks_for_what_its_workloads_and_modes_need() -> None:
    full, quick = tools(MODES, FULL), tools(MODES, QUICK)
    assert {"iperf3", "sockperf", "wrk", "nginx", "nft", "ipset"} <= full.keys()
    assert full.keys() - quick.keys() == {"iperf3", "sockperf"}
    assert not {"ipset", "iptables-nft"} & tools(MODES[:2], FULL).keys()
