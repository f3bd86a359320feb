"""From the write of a document until the kernel has its rules, by stage.

    .venv/bin/python -m bench.latency [--backend nftables]... [--source file] [--cidrs 64]

Every data plane unless some are named.

The agent is the real one, in a network namespace of its own. The clock starts before the
document is written (to a file as kubelet writes it: a new directory, then a rename of
..data; to the API: an update in a mock API server that this program runs) and stops when
this program, asking the kernel twice a millisecond, sees the new number of rules; or, where
there is a set or a trie, the new verdict for an address. To ask for that takes some
milliseconds with an ipset and with programs in tc, and is seen so much later.
"""

from __future__ import annotations

import argparse
import ctypes
import ipaddress
import os
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Sequence

from bench.support import Site, adjacent, inside_namespace, row, site
from ipmasq_agent.bench.machine import in_a_line
from ipmasq_agent.bench.modes import BACKENDS
from ipmasq_agent.host.commands import run
from ipmasq_agent.netlink.nft_objects import list_rules
from ipmasq_agent.planes import detect
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.policy.addresses import Family

_IPT_SO_GET_INFO = 64  # include/uapi/linux/netfilter_ipv4/ip_tables.h
_INFO = struct.Struct("32sI5I5III")


def legacy_entries() -> int:
    """Return how many entries the legacy nat table has, without reading them."""
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        buffer = ctypes.create_string_buffer(_INFO.pack(b"nat", *([0] * 13)), _INFO.size)
        size = ctypes.c_uint(_INFO.size)
        if libc.getsockopt(raw.fileno(), 0, _IPT_SO_GET_INFO, buffer, ctypes.byref(size)):
            raise OSError(ctypes.get_errno(), "IPT_SO_GET_INFO")
        return int(_INFO.unpack(buffer.raw)[12])


def nft_entries() -> int:
    """Return how many rules our chain has in nf_tables."""
    return len(list_rules(Family.IPV4, "nat", "IP-MASQ"))


def verdict_asked_of(name: str, address: int) -> Callable[[], object]:
    """Return how to ask the kernel what it decides about one address."""
    placement = Placement(pins=os.environ["IPMASQ_BPF_PINS"])
    backend = detect.make(detect.choose(name)[0], placement)

    def ask() -> object:
        state = backend.read_at(Family.IPV4, address)
        return backend.dialect.interpret(state).policy.decisions.decide(address).verdict

    return ask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", action="append", choices=BACKENDS)
    parser.add_argument("--source", choices=["file", "api"], default="file")
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--cidrs", type=int, default=64)
    options = parser.parse_args()
    inside_namespace()
    # A way out, without which nothing is masqueraded by programs on devices.
    for words in (
        "link add eth0 type veth peer name world",
        "address add 192.0.2.1/24 dev eth0",
        "link set eth0 up",
        "link set world up",
        "route add default via 192.0.2.2",
    ):
        run(["ip", *words.split()])
    # In a mount namespace of our own, as `ip netns exec` makes one.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as pins:
        run(["mount", "-t", "bpf", "bpf", pins])
        os.environ["IPMASQ_BPF_PINS"] = f"{pins}/pins"
        try:
            for name in options.backend or BACKENDS:
                measure(name, options.source, options.cidrs, options.changes)
        finally:
            run(["umount", pins])


def measure(name: str, source: str, cidrs: int, changes: int) -> None:
    """Measure one data plane, and print its figures."""
    last = int(ipaddress.IPv4Address(f"10.{(cidrs - 1) // 256}.{(cidrs - 1) % 256}.1"))
    counts = {"iptables-legacy": legacy_entries, "iptables-nft": nft_entries}
    seen = counts.get(name) or verdict_asked_of(name, last)
    with site(source) as here:
        here.write(adjacent(cidrs, cidrLimit=cidrs))
        moments = []
        with here.agent("--backend", name, "--cleanup-on-exit"):
            for number in range(1, changes + 1):
                before = seen()
                content = adjacent(cidrs - number % 2, cidrLimit=cidrs)
                start = time.time()
                here.write(content)
                while seen() == before:
                    time.sleep(0.0005)  # leave the processor to those who are measured
                    if time.time() - start > 10:
                        raise SystemExit(f"no change after 10 s:\n{here.log.read_text()}")
                moments.append((start, time.time()))
                time.sleep(0.05)  # the agent looks at its work; the next write is a new event
        print(f"{name}, {source}, {cidrs} CIDRs, {changes} changes; {in_a_line()}")
        report(moments, here)


def report(moments: Sequence[tuple[float, float]], here: Site) -> None:
    """Print the stages; the agent's log has the moments in between."""
    accepted, applied = (
        here.moments(message)[1:] for message in ("document accepted", "rules applied")
    )
    stages: dict[str, list[float]] = {}
    for (start, end), understood, checked in zip(moments, accepted, applied, strict=True):
        for label, seconds in (
            ("write → document understood", understood - start),
            ("understood → kernel has the rules", end - understood),
            ("kernel has them → agent has checked them", checked - end),
            ("write → kernel has the rules", end - start),
        ):
            stages.setdefault(label, []).append(seconds * 1000)
    for label, values in stages.items():
        print(row(label, values))


if __name__ == "__main__":
    main()
