"""A pod, a node and the world beyond, each a network namespace that ends with us.

::

    pod ── cali0 node eth0 ── world

Namespaces have no names: processes hold them, which the kernel kills when we die, however
we die. With them go links, rules, programs and mounts. A rig is built anew for each run,
since tables that were used leave hooks behind, and traffic leaves entries.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ipmasq_agent.bench.policies import DESTINATIONS
from ipmasq_agent.errors import BenchError
from ipmasq_agent.host.commands import run
from ipmasq_agent.lab.children import tied, without_settings
from ipmasq_agent.policy.addresses import Family

POD = {Family.IPV4: "172.20.0.10", Family.IPV6: "2001:db8:172:20::10"}
_GATEWAY = {Family.IPV4: "172.20.0.1", Family.IPV6: "2001:db8:172:20::1"}
NODE = {Family.IPV4: "192.0.2.1", Family.IPV6: "2001:db8:192::1"}
WORLD = {Family.IPV4: "192.0.2.2", Family.IPV6: "2001:db8:192::2"}
_LENGTH = {Family.IPV4: 24, Family.IPV6: 64}
_SYSCTLS = (
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv6.conf.default.accept_dad=0",
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
)
# A server that closes first keeps the four numbers of a connection; masquerading uses them
# again, and SYNs are then left unanswered.
_END_SYSCTLS = ("net.ipv4.tcp_max_tw_buckets=0", "net.ipv4.ip_local_port_range=1024 65535")
_TRACKING = "table inet tracked { chain c { type filter hook forward priority 0; ct state new; }; }"
_CLONE_NEWNET = 0x40000000
_PATIENCE = 10.0
SLACK = 15.0
"""Seconds that a program may take longer than it was told to run."""

_KIND = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}

_libc = ctypes.CDLL(None, use_errno=True)

Popen = subprocess.Popen[bytes]


def written(log: IO[bytes], last: int = 0) -> str:
    """Return what programs wrote to a log, without blanks at its ends; at most its ``last``."""
    log.seek(0)
    return log.read().decode(errors="replace").strip()[-last:]


class HeldNamespace:
    """A network namespace and a mount namespace, held by a process that sleeps in them."""

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self._environment = [f"{key}={value}" for key, value in environment.items()]
        self._children: list[Popen] = []
        # What /sys shows of devices is what was there for whoever mounted it.
        script = "mount -t sysfs sysfs /sys && ip link set lo up && exec sleep infinity"
        self._holder = self._spawn(["unshare", "--net", "--mount", "sh", "-c", script])

    def _spawn(self, argv: Sequence[str], **streams: Any) -> Popen:
        child = subprocess.Popen(
            tied(argv),
            start_new_session=True,  # Ctrl-C is for us; we end them
            **{"stdin": subprocess.DEVNULL, **streams},
        )
        self._children.append(child)
        return child

    def wait(self) -> None:
        """Wait until the namespaces are there.

        Raises:
            BenchError: they cannot be made.
        """
        deadline = time.monotonic() + _PATIENCE
        state = Path(f"/proc/{self._holder.pid}/comm")
        while time.monotonic() < deadline and self._holder.poll() is None:
            if state.read_text() == "sleep\n":
                return
            time.sleep(0.002)
        raise BenchError(
            "no network namespace can be made here",
            remedy="run as root, in a container with --privileged",
        )

    @property
    def pid(self) -> int:
        """Of the process that holds the namespaces."""
        return self._holder.pid

    def argv(self, *argv: str) -> list[str]:
        """Return ``argv`` made to run in here."""
        inside = ["nsenter", "--net", "--mount", "--target", str(self.pid), f"--wd={os.getcwd()}"]
        return [*inside, "env", *without_settings(), *self._environment, *argv]

    def run(self, *argv: str, stdin: str | None = None, timeout: float = 60.0) -> str:
        """Run a program in here to its end, and return what it printed.

        Raises:
            HostError: it is missing, fails, or does not end in time.
        """
        return run(tied(self.argv(*argv)), stdin=stdin, timeout=timeout).stdout

    def start(self, *argv: str, log: IO[bytes] | int = subprocess.DEVNULL) -> Popen:
        """Start a program in here that ends with the namespace."""
        return self._spawn(self.argv(*argv), stdout=log, stderr=log)

    def talk(self, *argv: str, log: IO[bytes]) -> Popen:
        """Start a program in here that takes orders and answers, and ends with the namespace."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return self._spawn(self.argv(*argv), **pipes, stderr=log)

    def socket(self, family: Family, kind: int, protocol: int = 0) -> socket.socket:
        """Return a socket of this namespace; it stays of it wherever it is used.

        Raises:
            BenchError: the kernel refuses.
        """
        made: list[socket.socket | OSError] = []

        def make() -> None:
            # A thread has a namespace of its own; it ends with this one socket.
            try:
                descriptor = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
                        code = ctypes.get_errno()
                        raise OSError(code, os.strerror(code))
                finally:
                    os.close(descriptor)
                made.append(socket.socket(_KIND[family], kind, protocol))
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if isinstance(made[0], OSError):
            raise BenchError(f"{self.name}: no socket can be had: {made[0]}") from made[0]
        return made[0]

    def statistic(self, name: str) -> int:
        """Return one of the counters of TCP and IP that netstat(8) shows: ``RetransSegs``."""
        files = (Path(f"/proc/{self.pid}/net/{name}") for name in ("snmp", "netstat"))
        lines = [line for file in files for line in file.read_text().splitlines()]
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            found = dict(zip(names.split(), values.split(), strict=True))
            if name in found:
                return int(found[name])
        raise BenchError(f"the kernel does not count {name}")

    def listens(self, protocol: str, port: int) -> bool:
        """Whether a socket has the port of ``tcp`` or ``udp``."""
        return any(
            line.split()[1].endswith(f":{port:04X}")
            for table in (protocol, f"{protocol}6")
            for line in Path(f"/proc/{self.pid}/net/{table}").read_text().splitlines()[1:]
        )

    @contextlib.contextmanager
    def serving(self, argv: Sequence[str], protocol: str, port: int) -> Iterator[Popen]:
        """Run a server in here while the block does.

        Raises:
            BenchError: it ended, or does not listen in time; with what it said.
        """
        with tempfile.TemporaryFile() as log:
            server = self.start(*argv, log=log)
            try:
                deadline = time.monotonic() + _PATIENCE
                while not self.listens(protocol, port):
                    if server.poll() is not None or time.monotonic() > deadline:
                        raise BenchError(f"`{' '.join(argv)}` does not serve: {written(log)}")
                    time.sleep(0.01)
                yield server
            finally:
                self.end(server)

    def together(self, programs: Sequence[Sequence[str]], seconds: float) -> list[str]:
        """Run programs at the same time, and return what each said.

        One that takes longer than so many seconds is ended; what it said until then tells.
        """
        logs, running = [], []
        with contextlib.ExitStack() as stack:
            for argv in programs:
                logs.append(stack.enter_context(tempfile.TemporaryFile()))
                running.append(self.start(*argv, log=logs[-1]))
                stack.callback(self.end, running[-1])
            deadline = time.monotonic() + seconds
            for one in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    one.wait(max(deadline - time.monotonic(), 0))
            return [written(log) for log in logs]

    def end(self, child: Popen) -> None:
        """End a program that was started in here."""
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        self._children.remove(child)

    def close(self) -> None:
        """End what runs in here, and with the last process the namespaces."""
        for child in reversed(self._children):
            child.kill()
        for child in self._children:
            child.wait()


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
            host.run("sysctl", "-qw", *_SYSCTLS, *_END_SYSCTLS)
        self.node.run("sysctl", "-qw", *_SYSCTLS)
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
