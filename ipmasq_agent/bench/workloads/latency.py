"""How long answers take at half of the load that goes without loss: sockperf."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ipmasq_agent.bench.machine import Ends, pinned
from ipmasq_agent.bench.policies import served
from ipmasq_agent.bench.results import DELIVERED, Measure
from ipmasq_agent.bench.rig import SLACK, Rig
from ipmasq_agent.bench.workload import Measured, Stage, Unable, Workload
from ipmasq_agent.policy.addresses import Family

_PORT = 11_111
_FEWEST_REQUESTS, _MOST_REQUESTS = 2_000.0, 256_000.0
_PERCENTILES = {"latency-p50": "50.000", "latency-p99": "99.000"}
_HALF_LOAD = "requests a second"


def speaks(rig: Rig) -> bool:
    """Return whether sockperf can speak the family; before 3.8 it knows IPv4 alone."""
    if rig.family is Family.IPV4:
        return True
    found = re.search(r"version #?(\d+)\.(\d+)", rig.pod.run("sockperf", "--version"))
    return found is not None and tuple(map(int, found.groups())) >= (3, 8)


def _run(stage: Stage) -> Iterator[Measured]:
    if not speaks(stage.rig):
        raise Unable("latency: the sockperf here knows IPv4 only; 3.8 and later know both")
    if _HALF_LOAD not in stage.kept:  # the same for all modes
        stage.kept[_HALF_LOAD] = half_load(stage.rig, stage.ends)
    yield from latency(stage.rig, stage.ends, stage.kept[_HALF_LOAD], stage.effort.seconds)


def latency(rig: Rig, ends: Ends, rate: float, seconds: float) -> Iterator[Measured]:
    """Send ``rate`` requests a second, and see how long answers take."""
    yield from outcome(_sockperf(rig, ends, rate, seconds))


def half_load(rig: Rig, ends: Ends) -> float:
    """Return half of how many requests a second are answered without loss."""
    rate = _FEWEST_REQUESTS
    while rate < _MOST_REQUESTS:
        if any(one.problem for one in latency(rig, ends, 2 * rate, 1.0)):
            break
        rate *= 2
    return rate / 2


def _sockperf(rig: Rig, ends: Ends, rate: float, seconds: float) -> str:
    # Bound to one address, else it answers from another one than was asked.
    to = ["-i", served(rig.family), "-p", str(_PORT)]
    argv = ["sockperf", "under-load", "--full-rtt", "--reply-every=1", f"--mps={rate:.0f}"]
    argv += ["-t", f"{max(seconds, 1):.0f}", *to]
    with rig.world.serving(pinned(ends.receiver, ["sockperf", "server", *to]), "udp", _PORT):
        (said,) = rig.pod.together([pinned(ends.sender, argv)], seconds + SLACK)
    return said


def outcome(said: str) -> Iterator[Measured]:
    """Yield the percentiles of round trips."""
    sent = re.search(r"\[Valid Duration\].*SentMessages=(\d+)", said)
    lost = re.search(r"# dropped messages = (\d+)", said)
    for measure, percentile in _PERCENTILES.items():
        found = re.search(rf"percentile {percentile} = +([\d.]+)", said)
        if not sent or not lost or not found:
            yield Measured(measure, None, "requests were not answered")
        elif int(lost[1]) > (1 - DELIVERED) * int(sent[1]):
            problem = f"{int(lost[1]):,} of {int(sent[1]):,} requests were lost"
            yield Measured(measure, None, problem)
        else:
            yield Measured(measure, float(found[1]) / 1e6)


WORKLOAD = Workload(
    (
        Measure("latency-p50", "Latency at half load, median", "s", more_is_better=False),
        Measure("latency-p99", "Latency at half load, 99th percentile", "s", more_is_better=False),
    ),
    _run,
    tools={"sockperf": "sockperf"},
)
