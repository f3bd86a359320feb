"""A pod, a node and the world beyond, each a network namespace that ends with us.

::

    pod ── cali0 node eth0 ── world

Namespaces have no names: processes hold them, which the kernel kills when we die, however
we die. With them go links, rules, programs and mounts. A rig is built anew for each run,
since tables that were used leave hooks behind, and traffic leaves entries.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from ipmasq_agent.bench.namespace import HeldNamespace
from ipmasq_agent.bench.policies import DESTINATIONS
from ipmasq_agent.lab.topology import SYSCTLS
from ipmasq_agent.policy.addresses import Family

POD = {Family.IPV4: "172.20.0.10", Family.IPV6: "2001:db8:172:20::10"}
_GATEWAY = {Family.IPV4: "172.20.0.1", Family.IPV6: "2001:db8:172:20::1"}
NODE = {Family.IPV4: "192.0.2.1", Family.IPV6: "2001:db8:192::1"}
WORLD = {Family.IPV4: "192.0.2.2", Family.IPV6: "2001:db8:192::2"}
_LENGTH = {Family.IPV4: 24, Family.IPV6: 64}
# A server that closes first keeps the four numbers of a connection; masquerading uses them
# again, and SYNs are then left unanswered.
_END_SYSCTLS = ("net.ipv4.tcp_max_tw_buckets=0", "net.ipv4.ip_local_port_range=1024 65535")
_TRACKING = "table inet tracked { chain c { type filter hook forward priority 0; ct state new; }; }"
SLACK = 15.0
"""Seconds that a program may take longer than it was told to run."""


class Rig(contextlib.AbstractContextManager["Rig"]):
    """Pod, node and world, joined; a context manager that removes them.

    Args:
        family: in which they speak.
        state: a directory for what the agent in the node reads and keeps.
        tracking: the node tracks connections, whatever it does about them.
    """

    def __init__(self, family: Family, state: Path, *, tracking: bool) -> None:
        self.family = family
        self.state = state
        mounted = state / "bpf"
        mounted.mkdir(parents=True, exist_ok=True)
        self.pins = mounted / "pins"
        """Where the agent pins eBPF programs and maps, in the node's mount namespace alone."""
        environment = {
            "XTABLES_LOCKFILE": str(state / "xtables.lock"),
            "IPMASQ_BPF_PINS": str(self.pins),
        }
        self._hosts: list[HeldNamespace] = []
        try:
            self.pod, self.node, self.world = (
                self._host(name, environment) for name in ("pod", "node", "world")
            )
            for host in self._hosts:
                host.wait()
            self.node.run("mount", "-t", "bpf", "bpf", str(mounted))
            self._join()
            if tracking:
                self.node.run("nft", "-f", "-", stdin=_TRACKING)
        except BaseException:
            self.close()
            raise

    def _host(self, name: str, environment: Mapping[str, str]) -> HeldNamespace:
        host = HeldNamespace(name, environment)
        self._hosts.append(host)
        return host

    def _join(self) -> None:
        for host in (self.pod, self.world):
            host.run("sysctl", "-qw", *SYSCTLS, *_END_SYSCTLS)
        self.node.run("sysctl", "-qw", *SYSCTLS)
        family = self.family
        length = _LENGTH[family]
        lines = {
            self.node: [
                f"link add cali0 type veth peer eth0 netns {self.pod.pid}",
                f"link add eth0 type veth peer eth0 netns {self.world.pid}",
                "link set cali0 up",
                "link set eth0 up",
                f"address add {_GATEWAY[family]}/{length} dev cali0",
                f"address add {NODE[family]}/{length} dev eth0",
                f"route add default via {WORLD[family]}",
            ],
            self.pod: [
                "link set eth0 up",
                f"address add {POD[family]}/{length} dev eth0",
                f"route add default via {_GATEWAY[family]}",
            ],
            self.world: [
                "link set eth0 up",
                f"address add {WORLD[family]}/{length} dev eth0",
                f"route add default via {NODE[family]}",
                # It answers for every destination.
                f"route add local {DESTINATIONS[family]} dev lo",
            ],
        }
        for host, some in lines.items():
            host.run("ip", "-batch", "-", stdin="\n".join(some) + "\n")

    def steer(self, cpus: int) -> None:
        """Have the node's work done by some CPUs, rather than by those that send.

        Args:
            cpus: a mask, as rps_cpus has it (Documentation/networking/scaling.rst); 0 for
                whichever CPU has the packet.
        """
        files = "/sys/class/net/*/queues/rx-*/rps_cpus"
        self.node.run("sh", "-c", f'for file in {files}; do echo {cpus:x} > "$file"; done')

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove everything."""
        for host in reversed(self._hosts):
            host.close()
        self._hosts.clear()
