"""The agent in the node of a place: it loads a policy, or runs and takes in changes."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import select
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence

from ipmasq_agent.bench.place import NODE, POD, Place
from ipmasq_agent.bench.policies import Policy, in_gap
from ipmasq_agent.bench.reading import Reading
from ipmasq_agent.errors import BenchError
from ipmasq_agent.lab.mounted import mount
from ipmasq_agent.policy.addresses import Family

_KEY = "config"
_HEALTH_PORT = 9797
_PATIENCE = 120.0  # for what takes a second with 100,000 CIDRs, on a machine ten times slower
_CHANGED = 500  # the gap which the policy keeps every other time
_CHANGES = 4
_BETWEEN = 0.0005  # seconds between two flows that ask how they are treated
_PORTS = range(30_000, 60_000)


class Node:
    """The agent of a place's node.

    Args:
        place: where.
        agent: how the agent is started.
        backend: the data plane it is to use.
    """

    def __init__(self, place: Place, agent: Sequence[str], backend: str) -> None:
        self._place = place
        self._documents = place.state / "document"
        flags = ["--backend", backend, "--config", str(self._documents / _KEY)]
        if place.family is Family.IPV6:
            flags.append("--enable-ipv6")
        self._apply = [*agent, "apply", *flags]
        self._run = [*agent, "run", "--log-format=json", *flags]

    def load(self, policy: Policy) -> float:
        """Load a policy, and return how many seconds that takes, from the start of the program.

        Raises:
            CommandFailed: the agent refuses.
        """
        mount(self._documents, {_KEY: policy.document})
        began = time.monotonic()
        self._place.node.run(*self._apply, timeout=_PATIENCE)
        return time.monotonic() - began

    def change(self, policy: Policy) -> Reading:
        """Change the policy of the running agent, and see when a new flow is treated by it.

        Several times, to and fro; the reading is the median.
        """
        to = in_gap(policy.family, _CHANGED)
        kept = Policy(policy.family, policy.cidrs, kept=_CHANGED)
        took = []
        with self._running(policy), Asking(self._place, to) as asking:
            for number in range(_CHANGES):
                wanted, source = (policy, NODE) if number % 2 else (kept, POD)
                document = wanted.document
                began = time.monotonic()
                mount(self._documents, {_KEY: document})
                if not asking.until(source[policy.family]):
                    return Reading("change", None, f"it did not hold within {_PATIENCE:g} s")
                took.append(time.monotonic() - began)
        return Reading("change", statistics.median(took))

    @contextlib.contextmanager
    def _running(self, policy: Policy) -> Iterator[None]:
        """Run the agent while the block does, once it is ready."""
        mount(self._documents, {_KEY: policy.document})
        with tempfile.TemporaryFile() as log:
            process = self._place.node.start(*self._run, log=log)
            try:
                deadline = time.monotonic() + _PATIENCE
                while not self._ready():
                    if process.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        said = log.read().decode(errors="replace")[-1000:]
                        raise BenchError(f"the agent does not become ready: {said}")
                    time.sleep(0.02)
                yield
                process.send_signal(signal.SIGTERM)
                process.wait(_PATIENCE)
            finally:
                self._place.node.end(process)

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", _HEALTH_PORT)
        with self._place.node.socket(Family.IPV4, socket.SOCK_STREAM) as made:
            made.settimeout(2)
            try:
                made.connect((connection.host, connection.port))
                connection.sock = made
                connection.request("GET", "/readyz")
                return connection.getresponse().status == http.HTTPStatus.OK
            except OSError:
                return False


class Asking:
    """New flows to one destination, one after the other, and which source the world sees.

    Args:
        place: whose pod sends.
        to: the address.
    """

    def __init__(self, place: Place, to: int) -> None:
        self._to = place.family.show(to)
        self._out = place.pod.socket(place.family, socket.SOCK_DGRAM)
        # A raw socket gets a copy of what arrives for any port.
        self._seen = place.world.socket(place.family, socket.SOCK_RAW, socket.IPPROTO_UDP)
        self._ports = itertools.cycle(_PORTS)

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()
        self._seen.close()

    def until(self, source: str) -> bool:
        """Send until a flow arrives with that source; false where none does."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            self._out.sendto(b"?", (self._to, next(self._ports)))
            readable, _, _ = select.select([self._seen], [], [], _BETWEEN)
            if readable and self._seen.recvfrom(2048)[1][0] == source:
                return True
        return False
