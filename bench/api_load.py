"""What agents ask of an API server: counted for one node, and reckoned for many.

    .venv/bin/python -m bench.api_load [--nodes 5000]

One real watch talks to a server that counts, through a start, a change and some renewals. Many
are simulated with the agent's own waits: a server of three goes down, or all are away for a while
and come back. What is simulated is when each node asks; a server that is there answers at once.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from ipmasq_agent.host.patience import Backoff
from ipmasq_agent.sources import kube_watch
from ipmasq_agent.sources.configmap import ConfigMapSource
from tests.kube.cluster import NAME, NAMESPACE, Cluster, write_kubeconfig
from tests.unit.sources.heard import Heard

RENEWALS = 8
# A list and a watch: what a node asks when it comes back.
REQUESTS = 2


def counted() -> Iterator[tuple[str, int, int]]:
    """Yield what one node asks: at the start, at a change, and at each renewal."""
    cluster = Cluster()
    with tempfile.TemporaryDirectory() as place:
        cluster.put({"config": "first"})
        kubeconfig = write_kubeconfig(Path(place, "kubeconfig"), cluster.port)
        source = ConfigMapSource(NAMESPACE, NAME, kubeconfig=str(kubeconfig))
        heard = Heard()
        try:
            source.start(heard)
            cluster.wait_for_watch()
            yield "start", *_asked(cluster)
            cluster.put({"config": "second"})
            heard.content(b"second")
            yield "change", *_asked(cluster)
            for number in range(1, RENEWALS + 1):
                time.sleep(kube_watch.SHORT + 0.1)  # a watch that ended sooner would not work
                cluster.end_watches()
                cluster.wait_for_watch(number)
            yield f"{RENEWALS} renewals", *_asked(cluster)
        finally:
            source.stop()
            cluster.close()


def _asked(cluster: Cluster) -> tuple[int, int]:
    """Return how many lists and watches there were since this was asked last."""
    found = Counter(call.verb for call in cluster.calls)
    cluster.calls.clear()
    return found["list"], found["watch"]


def comebacks(nodes: int, away: float, first: Callable[[], float]) -> list[float]:
    """Return when each node is answered again, in seconds after its watch broke off.

    Args:
        nodes: how many.
        away: seconds for which nobody answers.
        first: how long a node waits before its first attempt.
    """
    answered = []
    for _ in range(nodes):
        backoff, now = Backoff(), first()
        while now < away:
            now += backoff.next()
        answered.append(now)
    return answered


def busiest(moments: list[float]) -> int:
    """Return the most requests in a second."""
    return REQUESTS * max(Counter(map(int, moments)).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000)
    nodes = parser.parse_args().nodes
    print(f"{'one node':32}{'lists':>8}{'watches':>9}")
    for what, lists, watches in counted():
        print(f"{what:32}{lists:>8}{watches:>9}")
    mean = sum(kube_watch.WATCH_SECONDS) / 2
    each = REQUESTS * 3600 / mean
    rate = nodes * each / 3600
    print(f"\nidle: {each:.0f} requests a node and hour, {rate:.0f}/s of {nodes:,} nodes\n")
    random.seed(1)
    print(f"{'':32}{'first attempt':16}{'most requests/s':>16}{'99 % are back after':>21}")
    for what, count, away in (
        ("one server of three goes down", nodes // 3, 0.0),
        ("all are away for 10 s", nodes, 10.0),
        ("all are away for a minute", nodes, 60.0),
        ("all are away for an hour", nodes, 3600.0),
    ):
        for how, first in (
            ("within 0.5 s", lambda: Backoff().next()),
            ("spread", lambda: random.uniform(0, kube_watch.REJOINING)),
        ):
            back = sorted(comebacks(count, away, first))
            late = back[int(len(back) * 0.99)] - away
            print(f"{what:32}{how:16}{busiest(back):>16,}{late:>19.1f} s")


if __name__ == "__main__":
    main()
