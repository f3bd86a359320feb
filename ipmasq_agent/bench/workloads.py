"""The workloads: each sends through a place and yields readings.

None is believed as such. Packets are counted where they arrive, segments that were sent
again and answers that never came are asked for; where something is wrong the reading says what,
and has no value.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from ipmasq_agent.bench.place import NODE, POD, Place, Popen
from ipmasq_agent.bench.policies import in_gap, spread
from ipmasq_agent.bench.sender import busy_seconds
from ipmasq_agent.errors import BenchError
from ipmasq_agent.policy.addresses import Family

DELIVERED = 0.999
"""The share of packets that must arrive."""
_FIRST_PORT, _LAST_PORT = 20_000, 29_999  # of packets that are counted
_LATENCY_PORT = 11_111
_CONNECTIONS, _SERVERS = 64, 4
# Behind a CIDR each, so that a search has to go to the end.
_SERVED = tuple(range(1000, 1000 + 7 * _SERVERS, 7))
_HEADERS = {Family.IPV4: 14 + 20 + 8 + 4, Family.IPV6: 14 + 40 + 8 + 4}
_SLACK = 15.0
_FEWEST_REQUESTS, _MOST_REQUESTS = 2_000.0, 256_000.0
_PERCENTILES = {"latency-p50": "50.000", "latency-p99": "99.000"}
ONLY_IPV4 = "this sockperf knows IPv4 only; 3.8 and later know both"


class Reading(NamedTuple):
    """A value of a measure, or what went wrong."""

    measure: str
    value: float | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Ends:
    """Which CPUs programs at the two ends may use, as taskset(1) takes them; "" for any."""

    sender: str = ""
    receiver: str = ""


class Traffic:
    """Sends through a place.

    Args:
        place: where.
        masqueraded: what the world must see of it.
        ends: which CPUs to use.
    """

    def __init__(self, place: Place, *, masqueraded: bool, ends: Ends) -> None:
        self.place = place
        self._source = "node" if masqueraded else "pod"
        self._ends = ends
        self._next_port = _FIRST_PORT
        place.world.run("nft", "-f", "-", stdin=_counting(place.family))

    # -- UDP --------------------------------------------------------------------------------

    def flows(self, count: int) -> Iterator[Reading]:
        """Send one packet of each of ``count`` new flows."""
        destinations = [self.place.family.show(one) for one in spread(self.place.family)]
        told, problem = self._send(destinations, -(-count // len(destinations)), count, 1)
        yield Reading("flows", None if problem else count / told["seconds"], problem)
        yield Reading("flows-cpu", None if problem else told["busy"] / count, problem)

    def packets(self, count: int) -> Iterator[Reading]:
        """Send packets of 64 bytes on the wire, all of one flow."""
        destination = self.place.family.show(in_gap(self.place.family, _SERVED[0]))
        size = max(64 - _HEADERS[self.place.family], 1)
        told, problem = self._send([destination], 1, count, size)
        yield Reading("packets", None if problem else count / told["seconds"], problem)

    def _send(
        self, destinations: list[str], ports: int, count: int, size: int
    ) -> tuple[dict[str, float], str | None]:
        """Send, and return what the sender tells, and what is wrong with it."""
        if self._next_port + ports > _LAST_PORT + 1:
            raise BenchError(f"no {ports * len(destinations)} new flows are left in this place")
        order = {
            "destinations": destinations,
            "first": self._next_port,
            "ports": ports,
            "size": size,
            "count": count,
        }
        self._next_port += ports  # so that no flow comes twice
        argv = [sys.executable, "-m", "ipmasq_agent.bench.sender", json.dumps(order)]
        before = self._arrived()
        told = json.loads(self.place.pod.run(*pinned(self._ends.sender, argv)))
        arrived = {name: n - before[name] for name, n in self._settled(before, count).items()}
        right = arrived.pop(self._source)
        (wrong,) = arrived.values()
        if wrong:
            return told, f"{wrong:,} of {count:,} packets had the wrong source"
        if right < DELIVERED * count:
            return told, f"{count - right:,} of {count:,} packets were lost"
        return told, None

    def _arrived(self) -> dict[str, int]:
        """Return how many packets have come from the pod's address and from the node's."""
        listed = json.loads(self.place.world.run("nft", "-j", "list", "counters"))["nftables"]
        return {c["counter"]["name"]: c["counter"]["packets"] for c in listed if "counter" in c}

    def _settled(self, before: dict[str, int], count: int) -> dict[str, int]:
        """Return the counters once all is there, or nothing comes any more."""
        last = self._arrived()
        while sum(last.values()) - sum(before.values()) < count:
            time.sleep(0.05)
            now = self._arrived()
            if now == last:
                break
            last = now
        return last

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
        received, problem = outcome_of_iperf(said)
        yield Reading(measure, None if problem else received * 8 / seconds, problem)
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
        if not self.has_requests:
            yield from (Reading(measure, None, ONLY_IPV4) for measure in _PERCENTILES)
            return
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


def pinned(cpus: str, argv: Sequence[str]) -> list[str]:
    """Return ``argv`` made to run on those CPUs; as it is for none."""
    return ["taskset", "-c", cpus, *argv] if cpus else list(argv)


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


def outcome_of_iperf(said: str) -> tuple[float, str | None]:
    """Return how many bytes arrived, and what went wrong."""
    try:
        told: dict[str, Any] = json.loads(said)
    except json.JSONDecodeError:
        return 0.0, f"iperf3 did not end ({said.strip()[-200:] or 'it said nothing'})"
    if "error" in told:
        return 0.0, f"iperf3: {told['error']}"
    received = float(told["end"]["sum_received"]["bytes"])
    return received, None if received else "nothing arrived"


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


def _counting(family: Family) -> str:
    """Return a table that counts what arrives by its source, before any socket could lose it."""
    word = "ip" if family is Family.IPV4 else "ip6"
    rules = "".join(
        f"{word} saddr {source} udp dport {_FIRST_PORT}-{_LAST_PORT} counter name {name} drop; "
        for name, source in (("pod", POD[family]), ("node", NODE[family]))
    )
    return (
        "table inet seen { counter pod {}; counter node {}; "
        f"chain c {{ type filter hook prerouting priority raw; {rules}}}; }}\n"
    )


def _nginx(state: Path) -> str:
    return (
        f"daemon off; master_process off; pid {state}/nginx.pid; error_log stderr error;\n"
        "events { worker_connections 4096; }\n"
        "http { access_log off; server { listen 80; listen [::]:80;\n"
        "location / { return 200 ok; } } }\n"
    )
