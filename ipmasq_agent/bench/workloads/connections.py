"""TCP connections of one request each, as many as go: wrk, and nginx.

A SYN that is lost costs a second, in which a connection makes no request; so segments that
were sent again are asked of the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ipmasq_agent.bench.machine import Ends, pinned
from ipmasq_agent.bench.policies import in_gap
from ipmasq_agent.bench.results import DELIVERED, Measure
from ipmasq_agent.bench.rig import SLACK, Rig
from ipmasq_agent.bench.workload import Measured, Stage, Workload

_CONNECTIONS, _SERVERS = 64, 4
# Behind a CIDR each, so that a search has to go to the end.
_SERVED = tuple(range(1000, 1000 + 7 * _SERVERS, 7))


def _run(stage: Stage) -> Iterator[Measured]:
    yield connections(stage.rig, stage.ends, stage.effort.seconds)


def connections(rig: Rig, ends: Ends, seconds: float) -> Measured:
    """Make connections for so many seconds."""
    configuration = rig.state / "nginx.conf"
    configuration.write_text(_nginx(rig.state))
    server = ["nginx", "-p", str(rig.state), "-c", str(configuration)]
    wrk = ["wrk", "-t1", f"-c{_CONNECTIONS // _SERVERS}", f"-d{seconds:g}s"]
    wrk += ["-H", "Connection: close"]
    addresses = [rig.family.show(in_gap(rig.family, number)) for number in _SERVED]
    urls = [f"http://[{one}]/" if ":" in one else f"http://{one}/" for one in addresses]
    with rig.world.serving(pinned(ends.receiver, server), "tcp", 80):
        before = _sent_again(rig)
        clients = [pinned(ends.sender, [*wrk, url]) for url in urls]
        said = rig.pod.together(clients, seconds + SLACK)
        return outcome(said, _sent_again(rig) - before)


def _sent_again(rig: Rig) -> int:
    """Return how many segments of TCP were sent again, SYNs too, from either end."""
    return sum(host.statistic("RetransSegs") for host in (rig.pod, rig.world))


def outcome(said: Sequence[str], again: int) -> Measured:
    """Return connections a second of several wrk, added up.

    Args:
        said: what each printed.
        again: how many segments had to be sent again meanwhile.
    """
    rate, requests, errors = 0.0, 0, []
    for text in said:
        found = re.search(r"(\d+) requests in [^\0]*Requests/sec: +([\d.]+)", text)
        requests += int(found[1]) if found else 0
        rate += float(found[2]) if found else 0.0
        errors += re.findall(r"(Socket errors: .*|Non-2xx.*|unable .*)", text)
        if not found:
            errors.append(text[-200:] or "no answer")
    problem = None
    if errors:
        problem = f"connections failed ({errors[0].strip()})"
    elif not rate:
        problem = "no request was answered"
    elif again > (1 - DELIVERED) * requests:
        problem = f"{again:,} segments were sent again in {requests:,} requests"
    return Measured("connections", None if problem else rate, problem)


def _nginx(state: Path) -> str:
    return (
        f"daemon off; master_process off; pid {state}/nginx.pid; error_log stderr error;\n"
        "events { worker_connections 4096; }\n"
        "http { access_log off; server { listen 80; listen [::]:80;\n"
        "location / { return 200 ok; } } }\n"
    )


WORKLOAD = Workload(
    (Measure("connections", "TCP connections", "connections/s", more_is_better=True),),
    _run,
    tools={"wrk": "wrk", "nginx": "nginx-light"},
    always=True,
)
