"""The workloads of other people's programs: wrk with nginx, iperf3, sockperf.

None is believed as such. Segments that were sent again and answers that never came are asked
for; where something is wrong the reading says what, and has no value.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ipmasq_agent.bench.place import Place, Popen
from ipmasq_agent.bench.policies import in_gap
from ipmasq_agent.bench.reading import DELIVERED, Ends, Reading, pinned
from ipmasq_agent.bench.sender import busy_seconds
from ipmasq_agent.policy.addresses import Family

_LATENCY_PORT = 11_111
_CONNECTIONS, _SERVERS = 64, 4
# Behind a CIDR each, so that a search has to go to the end.
_SERVED = tuple(range(1000, 1000 + 7 * _SERVERS, 7))
_SLACK = 15.0
_FEWEST_REQUESTS, _MOST_REQUESTS = 2_000.0, 256_000.0
_PERCENTILES = {"latency-p50": "50.000", "latency-p99": "99.000"}
ONLY_IPV4 = "latency: the sockperf here knows IPv4 only; 3.8 and later know both"


class Traffic:
    """Sends through a place.

    Args:
        place: where.
        ends: which CPUs to use.
    """

    def __init__(self, place: Place, ends: Ends) -> None:
        self.place = place
        self._ends = ends

    # -- TCP --------------------------------------------------------------------------------

    def connections(self, seconds: float) -> Iterator[Reading]:
        """Make one request a connection, with wrk to nginx, as many as go."""
        configuration = self.place.state / "nginx.conf"
        configuration.write_text(_nginx(self.place.state))
        server = ["nginx", "-p", str(self.place.state), "-c", str(configuration)]
        with self._serving(server, "tcp", 80):
            before = self._sent_again()
            wrk = ["wrk", "-t1", f"-c{_CONNECTIONS // _SERVERS}", f"-d{seconds:g}s"]
            wrk += ["-H", "Connection: close"]
            urls = [f"http://{self._bracketed(number)}/" for number in _SERVED]
            said = self._clients([[*wrk, url] for url in urls], seconds)
            again = self._sent_again() - before
        yield outcome_of_wrk(said, again)

    def _sent_again(self) -> int:
        """Return how many segments of TCP were sent again, SYNs too, from either end."""
        return sum(host.statistic("RetransSegs") for host in (self.place.pod, self.place.world))

    def streams(self, measure: str, parallel: int, seconds: float) -> Iterator[Reading]:
        """Send as much as goes, with iperf3."""
        argv = ["iperf3", "-J", "-t", f"{seconds:g}", "-P", str(parallel), "-c", self._served()]
        with self._serving(["iperf3", "-s", "-1"], "tcp", 5201):
            busy = busy_seconds()
            (said,) = self._clients([argv], seconds)
            busy = busy_seconds() - busy
        received, took, problem = outcome_of_iperf(said)
        yield Reading(measure, None if problem else received * 8 / took, problem)
        if parallel == 1:
            yield Reading("stream-cpu", None if problem else busy / received * 1e9, problem)

    # -- latency ----------------------------------------------------------------------------

    def half_load(self) -> float:
        """Return half of how many requests a second are answered without loss."""
        rate = _FEWEST_REQUESTS
        while rate < _MOST_REQUESTS:
            readings = outcome_of_sockperf(self._sockperf(f"{2 * rate:.0f}", 1.0))
            if any(reading.problem for reading in readings):
                break
            rate *= 2
        return rate / 2

    def latency(self, rate: float, seconds: float) -> Iterator[Reading]:
        """Send ``rate`` requests a second, and see how long answers take."""
        yield from outcome_of_sockperf(self._sockperf(f"{rate:.0f}", seconds))

    @property
    def has_requests(self) -> bool:
        """Whether sockperf can speak the family; before 3.8 it knows IPv4 alone."""
        if self.place.family is Family.IPV4:
            return True
        told = self.place.pod.run("sockperf", "--version")
        version = re.search(r"version #?(\d+)\.(\d+)", told)
        return version is not None and tuple(map(int, version.groups())) >= (3, 8)

    def _sockperf(self, rate: str, seconds: float) -> str:
        # Bound to one address, else it answers from another one than was asked.
        to = ["-i", self._served(), "-p", str(_LATENCY_PORT)]
        argv = ["sockperf", "under-load", "--full-rtt", "--reply-every=1", f"--mps={rate}"]
        argv += ["-t", f"{max(seconds, 1):.0f}", *to]
        with self._serving(["sockperf", "server", *to], "udp", _LATENCY_PORT):
            return self._clients([argv], seconds)[0]

    # -- programs ---------------------------------------------------------------------------

    def _served(self) -> str:
        return self.place.family.show(in_gap(self.place.family, _SERVED[0]))

    def _bracketed(self, number: int) -> str:
        address = self.place.family.show(in_gap(self.place.family, number))
        return f"[{address}]" if ":" in address else address

    def _serving(
        self, argv: Sequence[str], protocol: str, port: int
    ) -> contextlib.AbstractContextManager[Popen]:
        return self.place.world.serving(pinned(self._ends.receiver, argv), protocol, port)

    def _clients(self, programs: Sequence[Sequence[str]], seconds: float) -> list[str]:
        """Run programs in the pod at the same time, and return what each said."""
        logs, running = [], []
        with contextlib.ExitStack() as stack:
            for argv in programs:
                logs.append(stack.enter_context(tempfile.TemporaryFile()))
                pod = self.place.pod
                running.append(pod.start(*pinned(self._ends.sender, argv), log=logs[-1]))
                stack.callback(pod.end, running[-1])
            deadline = time.monotonic() + seconds + _SLACK
            for one in running:
                # What does not end is ended, and what it said until then tells.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    one.wait(max(deadline - time.monotonic(), 0))
            return [_whole(log) for log in logs]


def outcome_of_wrk(said: Sequence[str], again: int) -> Reading:
    """Return connections a second of several wrk, added up.

    Args:
        said: what each printed.
        again: how many segments had to be sent again meanwhile; a SYN that is lost costs a
            second, in which a connection makes no request.
    """
    rate, requests, errors = 0.0, 0, []
    for text in said:
        found = re.search(r"(\d+) requests in [^\0]*Requests/sec: +([\d.]+)", text)
        requests += int(found[1]) if found else 0
        rate += float(found[2]) if found else 0.0
        errors += re.findall(r"(Socket errors: .*|Non-2xx.*|unable .*)", text)
        if not found:
            errors.append(text.strip()[-200:] or "no answer")
    if errors:
        return Reading("connections", None, f"connections failed ({errors[0].strip()})")
    if not rate:
        return Reading("connections", None, "no request was answered")
    if again > (1 - DELIVERED) * requests:
        return Reading(
            "connections", None, f"{again:,} segments were sent again in {requests:,} requests"
        )
    return Reading("connections", rate)


def outcome_of_iperf(said: str) -> tuple[float, float, str | None]:
    """Return how many bytes arrived, in how many seconds, and what went wrong."""
    try:
        told: dict[str, Any] = json.loads(said)
    except json.JSONDecodeError:
        return 0.0, 0.0, f"iperf3 did not end ({said.strip()[-200:] or 'it said nothing'})"
    if "error" in told:
        return 0.0, 0.0, f"iperf3: {told['error']}"
    received = told["end"]["sum_received"]
    problem = None if received["bytes"] else "nothing arrived"
    return float(received["bytes"]), float(received["seconds"]), problem


def outcome_of_sockperf(said: str) -> Iterator[Reading]:
    """Yield the percentiles of round trips."""
    sent = re.search(r"\[Valid Duration\].*SentMessages=(\d+)", said)
    lost = re.search(r"# dropped messages = (\d+)", said)
    for measure, percentile in _PERCENTILES.items():
        found = re.search(rf"percentile {percentile} = +([\d.]+)", said)
        if not sent or not lost or not found:
            yield Reading(measure, None, "requests were not answered")
        elif int(lost[1]) > (1 - DELIVERED) * int(sent[1]):
            yield Reading(measure, None, f"{int(lost[1]):,} of {int(sent[1]):,} requests were lost")
        else:
            yield Reading(measure, float(found[1]) / 1e6)


def _whole(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace")


def _nginx(state: Path) -> str:
    return (
        f"daemon off; master_process off; pid {state}/nginx.pid; error_log stderr error;\n"
        "events { worker_connections 4096; }\n"
        "http { access_log off; server { listen 80; listen [::]:80;\n"
        "location / { return 200 ok; } } }\n"
    )
