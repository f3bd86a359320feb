"""New flows at full speed from a pod to the world, which counts with which source they arrive.

Each family has a network that every document here keeps and one that every document
masquerades. The world counts in its own kernel, with rules of nftables, so that no packet
with a wrong source can be missed. An IPv6 network is the IPv4 one after ``fd10``, so that
both families get the same documents: ``10.10.1.0/24`` is ``fd10:a0a:100::/40`` too.
"""

from __future__ import annotations

import ipaddress
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ipmasq_agent.policy.addresses import Family
from tests.kernel.crossing import PLANS, Crossing
from tests.netns import Namespace

KEPT, MASQUERADED = "10.10.1.0/24", "10.10.2.0/24"
_PATIENCE = 20.0
# Its argument: seconds between flows. The port of the destination makes each packet a new
# flow, from one socket for each family: 32 million flows before one comes again. It runs
# until it is killed.
_SENDER = """
import itertools, socket, sys, time
pause = float(sys.argv[1])
ipv4 = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ipv6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
places = [
    (sender, address % host)
    for host in range(1, 251)
    for sender, address in (
        (ipv4, "10.10.1.%d"),
        (ipv4, "10.10.2.%d"),
        (ipv6, "fd10:a0a:1%02x::1"),
        (ipv6, "fd10:a0a:2%02x::1"),
    )
]
for port in itertools.cycle(range(1, 65536)):
    for number, (sender, address) in enumerate(places):
        if pause and number % 4 == 0:
            time.sleep(pause)
        sender.sendto(b"x", (address, port))
"""


def both(prefix: str) -> tuple[str, str]:
    """Return an IPv4 prefix and its like in IPv6."""
    network = ipaddress.IPv4Network(prefix)
    first = 0xFD10 << 112 | int(network.network_address) << 80
    return prefix, f"{ipaddress.IPv6Address(first)}/{16 + network.prefixlen}"


def count_in(world: Namespace) -> None:
    """Make the counters: for each family, kept and masqueraded flows, right and wrong ones."""
    counters, rules = [], []
    for number, (family, plan) in enumerate(PLANS.items()):
        word = ("ip", "ip6")[number]
        for net, name, source in (
            (KEPT, "kept", plan.pods[0]),
            (MASQUERADED, "masqueraded", plan.eth[0]),
        ):
            there = f"{word} daddr {both(net)[number]}"
            label = f"{family.value}_{name}"
            counters += [f"counter {label} {{}}", f"counter {label}_wrong {{}}"]
            rules += [
                f"{there} {word} saddr {source} counter name {label} drop",
                f"{there} counter name {label}_wrong drop",
            ]
    chain = ["chain seen {", "type filter hook prerouting priority raw", *rules, "}"]
    table = "\n".join(["table inet seen {", *counters, *chain, "}"])
    world.run(["nft", "-f", "-"], stdin=table)


def counted(world: Namespace) -> dict[str, int]:
    """Return the counters."""
    listed = json.loads(world.run(["nft", "-j", "list", "counters"]).stdout)["nftables"]
    counters = (item["counter"] for item in listed if "counter" in item)
    return {counter["name"]: counter["packets"] for counter in counters}


@contextmanager
def flowing(node: Crossing, *, pause: float = 0.0) -> Iterator[dict[str, int]]:
    """Send flows while the block runs; afterwards the given counts tell what arrived.

    Args:
        node: between pods and world.
        pause: seconds after one flow of each kind; none for full speed.
    """
    before = counted(node.world)
    counts: dict[str, int] = {}
    sender = node.pods[0].popen([sys.executable, "-c", _SENDER, str(pause)])
    try:
        # Not before flows really arrive.
        deadline = time.monotonic() + _PATIENCE
        while any(
            now[name] + now[f"{name}_wrong"] == before[name] + before[f"{name}_wrong"]
            for now in [counted(node.world)]
            for name in _right()
        ):
            assert time.monotonic() < deadline, "no flow arrives"
        yield counts
    finally:
        sender.kill()
        sender.wait()
    counts |= {name: count - before[name] for name, count in counted(node.world).items()}


def _right() -> list[str]:
    return [f"{family.value}_{name}" for family in Family for name in ("kept", "masqueraded")]


def verify(counts: Mapping[str, int], at_least: int) -> None:
    """Make sure that no flow was wrong, and that there were many of each kind."""
    print(dict(counts))  # shown by pytest -s, and with a failure
    assert {name: counts[f"{name}_wrong"] for name in _right()} == dict.fromkeys(_right(), 0)
    # At full speed, or the test shows less than it says.
    assert min(counts[name] for name in _right()) > at_least, counts
