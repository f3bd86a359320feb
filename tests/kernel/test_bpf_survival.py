"""Connections through the eBPF programs go on, whatever happens to policy, agent and programs.

One is busy all the time, one is as idle as a forgotten shell. Both were masqueraded when
they began; the world says with which address each connection came.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import ipaddress
import json
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.agent.reconcile import clean, reconcile
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.config.model import Flags
from ipmasq_agent.host.devices import read_links
from ipmasq_agent.planes import detect
from ipmasq_agent.planes.bpf import programs
from ipmasq_agent.planes.bpf.plane import BpfPlane
from ipmasq_agent.planes.plane import AnyPlane
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import LINKS, NO_FACTS
from ipmasq_agent.policy.model import PortRange
from tests.kernel.pins import placement
from tests.netns import Namespace
from tests.waiting import wait_until

POD = {Family.IPV4: "172.20.0.10", Family.IPV6: "fd00:172:20::10"}
GATEWAY = {Family.IPV4: "172.20.0.1", Family.IPV6: "fd00:172:20::1"}
NODE = {Family.IPV4: "192.0.2.1", Family.IPV6: "2001:db8::1"}
WORLD = {Family.IPV4: "192.0.2.2", Family.IPV6: "2001:db8::2"}
LENGTH = {Family.IPV4: 24, Family.IPV6: 64}
KIND = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
PORT = 7777
FLAGS = Flags(enable_ipv6=True)
MASQUERADING = "nonMasqueradeCIDRs: [10.0.0.0/8]"
KEEPING = "nonMasqueradeCIDRs: [192.0.2.0/24, '2001:db8::/64']"
NARROW = (
    "nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqueradeCIDRs: [10.1.0.0/16]\negressInterfaces: [eth0]"
)
LATER = {MASQUERADING: NODE, KEEPING: POD}


class Connection:
    """A TCP connection of the pod whose other end sends back all that it gets."""

    def __init__(self, net: Net, family: Family, *, patience: float = 5) -> None:
        with net.pod.entered():
            self._socket = socket.socket(KIND[family], socket.SOCK_STREAM)
        net.connections.append(self)
        self._socket.settimeout(patience)
        self._socket.connect((WORLD[family], PORT))
        self.seen = self._line()
        """The address from which the world says that this connection came."""

    def _line(self) -> str:
        data = b""
        while not data.endswith(b"\n"):
            data += self._socket.recv(100)
        return data.decode().strip()

    def exchange(self, data: bytes = b"x") -> None:
        """Send something and get it back."""
        self._socket.sendall(data)
        left = len(data)
        while left:
            found = len(self._socket.recv(left))
            assert found, "the other end has closed"
            left -= found

    def close(self) -> None:
        self._socket.close()


class Busy(threading.Thread):
    """Keeps a connection busy until it is told to stop, or the connection fails."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(daemon=True)
        self.connection = connection
        self.count = 0
        self.failure: Exception | None = None
        self._stopping = threading.Event()

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                self.connection.exchange(b"y" * 4000)
                self.count += 1
        except (OSError, AssertionError) as failure:
            self.failure = failure

    def goes_on(self) -> None:
        """Make sure that data still flows."""
        before = self.count
        wait_until(lambda: self.failure is not None or self.count > before + 3, "data flows")
        assert self.failure is None

    def stop(self) -> None:
        self._stopping.set()
        self.join()


class Net:
    """A pod, its node, and a world that knows the way back to the pod."""

    def __init__(self, pod: Namespace, node: Namespace, world: Namespace) -> None:
        self.pod, self.node, self.world = pod, node, world
        self.connections: list[Connection] = []
        self.tracks = False
        pod.veth("eth0", node, "cali0")
        node.veth("eth0", world, "eth0")
        node.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
        for family in Family:
            dash = ["ip", "-4" if family is Family.IPV4 else "-6", "route", "add"]
            length = LENGTH[family]
            pod.address("eth0", f"{POD[family]}/{length}")
            node.address("cali0", f"{GATEWAY[family]}/{length}")
            node.address("eth0", f"{NODE[family]}/{length}")
            world.address("eth0", f"{WORLD[family]}/{length}")
            pod.run([*dash, "default", "via", GATEWAY[family]])
            node.run([*dash, "default", "via", WORLD[family]])
            world.run([*dash, _network(family), "via", NODE[family]])

    @contextlib.contextmanager
    def echoing(self) -> Iterator[None]:
        """Serve in the world: tell whence a connection came, then send everything back."""
        with self.world.entered():
            server = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
        stopping = threading.Event()

        def serve() -> None:
            while not stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    client, address = server.accept()
                    threading.Thread(target=_echo, args=(client, address), daemon=True).start()

        server.settimeout(0.1)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            for connection in self.connections:
                connection.close()
            stopping.set()
            thread.join()
            server.close()


def _network(family: Family) -> str:
    return "172.20.0.0/24" if family is Family.IPV4 else "fd00:172:20::/64"


def _echo(client: socket.socket, address: tuple[str, int]) -> None:
    with client, contextlib.suppress(OSError):
        client.sendall(f"{address[0].removeprefix('::ffff:')}\n".encode())
        while data := client.recv(65536):
            client.sendall(data)


@pytest.fixture(params=["conntrack", "no conntrack", "no offloads"])
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    with Namespace("pod") as pod, Namespace("node") as node, Namespace("world") as world:
        made = Net(pod, node, world)
        made.tracks = request.param == "conntrack"
        if request.param == "no offloads":
            for where, devices in ((pod, ["eth0"]), (node, ["eth0", "cali0"]), (world, ["eth0"])):
                with where.entered():
                    compute_checksums_and_segments(devices)
        if made.tracks:
            chain = "chain c { type filter hook forward priority 0; ct state new; }"
            node.run(["nft", "-f", "-"], stdin=f"table inet on {{ {chain} ; }}\n")
        with made.echoing():
            yield made


def compute_checksums_and_segments(devices: list[str]) -> None:
    """Have the kernel finish packets before a device gets them: else veth leaves that undone.

    So packets cross the programs with whole checksums and in the size of the wire, where
    they have partial ones and up to 64 KiB otherwise.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for device in devices:
            for command in _OFFLOADS:
                value = ctypes.create_string_buffer(struct.pack("=II", command, 0), 8)
                request = struct.pack("@16sP", device.encode(), ctypes.addressof(value))
                fcntl.ioctl(control, _ETHTOOL, request)


# SIOCETHTOOL, and ETHTOOL_SRXCSUM, _STXCSUM, _STSO, _SGSO of include/uapi/linux/ethtool.h.
_ETHTOOL, _OFFLOADS = 0x8946, (0x15, 0x17, 0x1F, 0x24)


def bring(backend: AnyPlane, text: str, flags: Flags = FLAGS) -> None:
    config = parse_document(text.encode(), "cm", flags).config
    outcomes = reconcile(backend, Intent(config, NO_FACTS.with_(LINKS, read_links())))
    assert [str(o.error) for o in outcomes.values() if o.error] == []


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_connections_survive(
    net: Net, family: Family, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with net.node.entered():
        backend = made()
        bring(backend, MASQUERADING)
        idle, busy = Connection(net, family), Busy(Connection(net, family))
        assert (idle.seen, busy.connection.seen) == (NODE[family], NODE[family])
        busy.start()
        try:
            for text in [KEEPING, NARROW, MASQUERADING] * 5:  # changes of the policy
                bring(backend, text)
                if text in LATER:
                    later = Connection(net, family)
                    assert later.seen == LATER[text][family]
                    later.close()
            still(idle, busy)

            backend = made()  # another agent
            bring(backend, MASQUERADING)
            still(idle, busy)

            install_another_version(monkeypatch, tmp_path)
            bring(backend, MASQUERADING)
            assert len(list(Path(placement().pins).glob("bytecode-*"))) == 1
            still(idle, busy)

            move_and_back(net, backend, family, lambda: still(idle, busy))
            busy.stop()

            # Programs removed by hand: what is sent meanwhile is lost to its connection.
            for link in Path(placement().pins).glob("link-*"):
                link.unlink()
            bring(backend, MASQUERADING)
            idle.exchange()
            assert Connection(net, family).seen == NODE[family]
        finally:
            busy.stop()
            clean(backend, Family)
    assert not Path(placement().pins).exists()


@pytest.mark.long
@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_a_stream_goes_on_through_a_hundred_changes(
    net: Net, family: Family, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with net.node.entered():
        backend = made()
        bring(backend, MASQUERADING)
        idle = Connection(net, family)
        with streaming(net, family) as stream:
            for number in range(100):
                bring(backend, (KEEPING, NARROW, MASQUERADING)[number % 3])
                time.sleep(0.1)
            idle.exchange()
            bring(made(), MASQUERADING)  # another agent
            install_another_version(monkeypatch, tmp_path)
            bring(backend, MASQUERADING)
            move_and_back(net, backend, family, idle.exchange)
            time.sleep(2)
            told = stream()
        clean(backend, Family)
    speeds = [each["sum"]["bits_per_second"] for each in told["intervals"]]
    assert len(speeds) >= 10
    assert min(speeds) > 0, speeds


@contextlib.contextmanager
def streaming(net: Net, family: Family) -> Iterator[Callable[[], dict[str, Any]]]:
    """Run one TCP stream; what is yielded ends it, and returns what the pod's side tells."""
    inside = [["ip", "netns", "exec", one.name] for one in (net.world, net.pod)]
    with (
        subprocess.Popen([*inside[0], "iperf3", "-s", "-1"], stdout=subprocess.DEVNULL) as server,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(server.kill)
        wait_until(lambda: ":5201" in net.world.run(["ss", "-Htln"]).stdout, "iperf3 listens")
        argv = [*inside[1], "iperf3", "-J", "-c", WORLD[family], "-t", "600"]
        client = stack.enter_context(
            subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
        stack.callback(client.kill)

        def end() -> dict[str, Any]:
            client.send_signal(signal.SIGINT)
            told: dict[str, Any] = json.loads(client.communicate(timeout=30)[0])
            assert told.get("error", "").startswith("interrupt"), told.get("error")
            return told

        yield end


def install_another_version(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    upgraded = place / "masq.bpf.o"
    shutil.copy(programs.BYTECODE, upgraded)
    with upgraded.open("ab") as more:
        more.write(b"\0")
    monkeypatch.setattr(programs, "BYTECODE", upgraded)


def move_and_back(net: Net, backend: BpfPlane, family: Family, check: Callable[[], None]) -> None:
    """To iptables and back."""
    there = detect.make("iptables-nft", placement())
    backend.announce()
    bring(there, MASQUERADING)
    assert backend.drain() > 0
    assert Connection(net, family).seen == NODE[family]
    check()
    bring(backend, KEEPING)
    clean(there, Family)
    assert Connection(net, family).seen == POD[family]
    check()


def still(idle: Connection, busy: Busy) -> None:
    busy.goes_on()
    idle.exchange()


def made() -> BpfPlane:
    return BpfPlane(Path(placement().pins))


def test_draining_counts_what_goes_on_and_begins_nothing(net: Net) -> None:
    with net.node.entered():
        backend = made()
        bring(backend, MASQUERADING)
        ours = [Connection(net, family) for family in Family]
        there = detect.make("iptables-nft", placement())
        bring(there, MASQUERADING)
        assert backend.drain() == len(ours)
        theirs = [Connection(net, family) for family in Family]
        assert [one.seen for one in theirs] == [NODE[family] for family in Family]
        assert backend.drain() == len(ours)
        assert [one.seen for one in ours] == [NODE[family] for family in Family]
        for one in (*ours, *theirs):
            one.exchange()
        clean(backend, Family)
        assert not Path(placement().pins).exists()
        for one in theirs:
            one.exchange()
        clean(there, Family)


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_a_connection_from_outside_survives_a_move(net: Net, family: Family) -> None:
    with net.pod.entered():
        server = socket.create_server((POD[family], PORT), family=KIND[family])
    with net.node.entered(), server:
        backend = made()
        bring(backend, MASQUERADING)
        with net.world.entered():
            client = socket.create_connection((POD[family], PORT), timeout=5)
        accepted, _ = server.accept()
        with client, accepted:
            there = detect.make("iptables-nft", placement())
            backend.announce()
            bring(there, MASQUERADING)
            backend.drain()
            clean(backend, Family)
            for one, other in ((accepted, client), (client, accepted)):
                one.sendall(b"x")
                other.settimeout(5)
                assert other.recv(1) == b"x"
        clean(there, Family)


PORTS = 100


@pytest.mark.parametrize("name", ["bpf", "iptables-nft"])
@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_without_a_free_port_new_flows_fail_and_those_there_go_on(
    net: Net, family: Family, name: str
) -> None:
    flags = Flags(enable_ipv6=True, to_ports=(PortRange(3001, 3000 + PORTS),))
    with net.world.entered():
        world = socket.socket(KIND[family], socket.SOCK_DGRAM)
        world.bind((WORLD[family], PORT))
        world.settimeout(0.5)
    with net.node.entered(), world, contextlib.ExitStack() as stack:
        backend = detect.make(name, placement())
        stack.callback(clean, backend, Family)
        bring(backend, MASQUERADING, flags)
        Connection(net, family).close()  # so that neighbours know each other
        with net.pod.entered():
            pods = [socket.socket(KIND[family], socket.SOCK_DGRAM) for _ in range(2 * PORTS)]
        served: dict[bytes, tuple[str, int]] = {}
        for number, one in enumerate(pods):
            stack.enter_context(one)
            one.connect((WORLD[family], PORT))
            one.settimeout(0.5)
            with contextlib.suppress(PermissionError):  # iptables tells a sender that it dropped
                one.send(b"%d" % number)
        with contextlib.suppress(TimeoutError):
            while True:
                data, address = world.recvfrom(100)
                served[data] = address[:2]
        # iptables looks at random: it may not find the last free ones.
        assert PORTS * (1 if name == "bpf" else 0.9) <= len(served) <= PORTS
        assert {host for host, _ in served.values()} == {NODE[family]}
        assert len({port for _, port in served.values()}) == len(served)
        if isinstance(backend, BpfPlane):
            dropped = backend.counters()[family, "out_dropped_ports"]
            assert dropped == len(pods) - len(served)
            [exhausted] = backend.usage().exhausted
            address = int(ipaddress.ip_address(WORLD[family]))
            assert exhausted == (family, address, PORT, socket.IPPROTO_UDP, dropped)
        world.settimeout(5)
        for data, address in served.items():
            world.sendto(b"answer", address)
            one = pods[int(data)]
            assert one.recv(100) == b"answer"
            one.send(b"more")
            assert world.recvfrom(100) == (
                b"more",
                (*address, 0, 0)[: 2 if "." in address[0] else 4],
            )
