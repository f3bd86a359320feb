"""What lives in a host of the lab: servers, an observer of what arrives, and a sender.

    python -m ipmasq_agent.lab.inhabitant NAME ADDRESS...

Serves HTTP on port 80 (who am I, who are you) and echoes UDP on port 9000. Orders come as
lines of JSON on standard input, answers go out as lines of JSON. What it reports as seen
comes from a packet socket: the source address of packets that arrived here, whether or
not a reply could find its way back. Standard library only, as in ``api.py``; it must start fast.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

from ipmasq_agent.lab.api import Server
from ipmasq_agent.lab.packets import ECHO_REQUEST, HTTP_PORT, UDP_PORT, Packet, parse

_ETH_P_ALL, _ETH_P_IP, _ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
_PACKET_OUTGOING = 4
# Source ports and identifiers of probes. None comes twice: to whoever tracks flows, a probe
# like one of two minutes ago is of that flow. They lie below those that kernels pick.
_NUMBERS = itertools.count(10_000 + secrets.randbelow(10_000))
_ICMP = {socket.AF_INET: 1, socket.AF_INET6: 58}
# Seconds. A round trip within the machine takes a thousandth of the shorter one; the longer
# one is for what must come, on a machine that is busy with other things.
IMPATIENT, PATIENT = 0.5, 5.0


class Probe(NamedTuple):
    """What is sent: to where, from which address of ours, and how to know it again.

    Attributes:
        patient: a reply must come, so wait long for it.
        kept: speak on the connection that was opened before, instead of a new one.
    """

    protocol: str
    source: str
    address: str
    token: bytes
    patient: bool
    kept: bool

    @property
    def by_opening(self) -> bool:
        """Whether its first packet has no token in it."""
        return self.protocol == "tcp" and not self.kept

    @classmethod
    def of(cls, order: dict[str, Any]) -> Probe:
        """Read one from an order."""
        return cls(**(order | {"token": order["token"].encode()}))


class Observer(threading.Thread):
    """Remembers the packets that arrive for this host's addresses."""

    def __init__(self, addresses: set[str]) -> None:
        super().__init__(daemon=True)
        self._addresses = addresses
        self._seen: list[tuple[int, Packet]] = []  # each with its number
        self._count = 0
        self._changed = threading.Condition()
        self._stopped = False
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))

    def stop(self) -> None:
        """Read one more packet at most: nobody asks any more, and reading takes time."""
        self._stopped = True

    def run(self) -> None:
        """Read packets until told to stop."""
        with self._socket:
            while not self._stopped:
                self._read()

    def _read(self) -> None:
        data, (_, ethertype, kind, *_) = self._socket.recvfrom(65536)
        if kind == _PACKET_OUTGOING or ethertype not in (_ETH_P_IP, _ETH_P_IPV6):
            return
        packet = parse(data)
        if packet is None or not packet.asks or packet.destination not in self._addresses:
            return
        with self._changed:
            self._count += 1
            self._seen.append((self._count, packet))
            del self._seen[:-1000]
            self._changed.notify_all()

    def mark(self) -> int:
        """Return the number of the latest packet."""
        with self._changed:
            return self._count

    def wait(self, after: int, probes: list[Probe]) -> list[str | None]:
        """Return the source of each probe's packet, None for those that did not come in time.

        A TCP probe is known by its opening segment, as a connection whose replies get
        lost never carries the token.
        """

        def found(probe: Probe) -> str | None:
            for number, packet in self._seen:
                if (
                    number > after
                    and packet.protocol == probe.protocol
                    and packet.destination == probe.address
                    and (packet.opens if probe.by_opening else probe.token in packet.payload)
                ):
                    return packet.source
            return None

        with self._changed:
            self._changed.wait_for(lambda: all(map(found, probes)), PATIENT)
            return [found(probe) for probe in probes]


class Sender:
    """Sends probes from this host, and keeps connections open when asked to."""

    def __init__(self) -> None:
        self._kept: dict[str, socket.socket] = {}

    def send(self, probes: list[Probe]) -> list[bool]:
        """Send probes all at once; for each, whether a reply came back in time."""
        replies = [False] * len(probes)

        def send(number: int, probe: Probe) -> None:
            replies[number] = self.probe(probe)

        threads = [threading.Thread(target=send, args=each) for each in enumerate(probes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return replies

    def probe(self, probe: Probe) -> bool:
        """Send one probe; true if a reply came back."""
        if probe.kept:
            return self._speak(probe)
        send = {"tcp": _tcp, "udp": _udp, "icmp": _icmp}[probe.protocol]
        try:
            return send(probe, PATIENT if probe.patient else IMPATIENT)
        except OSError:
            return False  # no route, unreachable, timed out: no reply is the answer

    def keep(self, probe: Probe) -> bool:
        """Open a connection that stays open, and send the token on it."""
        kind = socket.SOCK_STREAM if probe.protocol == "tcp" else socket.SOCK_DGRAM
        connection = socket.socket(_family(probe.address), kind)
        connection.settimeout(PATIENT)
        connection.bind((probe.source, 0))
        connection.connect((probe.address, HTTP_PORT if probe.protocol == "tcp" else UDP_PORT))
        self._kept[probe.protocol] = connection
        return self._speak(probe)

    def _speak(self, probe: Probe) -> bool:
        """Send the token on a connection that was kept; true if it was answered."""
        connection = self._kept[probe.protocol]
        try:
            if connection.type == socket.SOCK_STREAM:
                connection.sendall(b"GET /%s HTTP/1.1\r\nHost: lab\r\n\r\n" % probe.token)
            else:
                connection.send(probe.token)
            return bool(connection.recv(4096))
        except OSError:
            return False


# Each takes a reply from the address that was asked only: one whose source was translated
# on its way back is no reply to those who wait for it.


def _tcp(probe: Probe, patience: float) -> bool:
    ends = (probe.address, HTTP_PORT), patience, (probe.source, next(_NUMBERS))
    with socket.create_connection(*ends) as connection:
        connection.sendall(b"GET /%s HTTP/1.0\r\n\r\n" % probe.token)
        answer = b""
        while b"RemoteAddr" not in answer and (more := connection.recv(4096)):
            answer += more
        return b"RemoteAddr" in answer


def _udp(probe: Probe, patience: float) -> bool:
    with socket.socket(_family(probe.address), socket.SOCK_DGRAM) as connection:
        connection.settimeout(patience)
        connection.bind((probe.source, next(_NUMBERS)))
        connection.connect((probe.address, UDP_PORT))
        connection.send(probe.token)
        return connection.recv(4096) == probe.token


def _icmp(probe: Probe, patience: float) -> bool:
    family = _family(probe.address)
    number = _ICMP[family]
    # The kernel fills in the checksum of ICMPv6; that of ICMP is ours.
    message = struct.pack("!BBHHH", ECHO_REQUEST[number], 0, 0, next(_NUMBERS), 1)
    checksum = struct.pack("!H", internet_checksum(message + probe.token))
    message = message[:2] + checksum + message[4:] + probe.token
    with socket.socket(family, socket.SOCK_RAW, number) as raw:
        raw.bind((probe.source, 0))
        raw.sendto(message, (probe.address, 0))
        deadline = time.monotonic() + patience
        while (left := deadline - time.monotonic()) > 0:
            raw.settimeout(left)
            reply, sender = raw.recvfrom(4096)
            body = reply[(reply[0] & 15) * 4 :] if family == socket.AF_INET else reply
            if sender[0] == probe.address and body[0] in (0, 129) and probe.token in body:
                return True
    return False


def internet_checksum(data: bytes) -> int:
    """Return the checksum of RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    total += data[-1] << 8 if len(data) & 1 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def serve_http(name: str) -> None:
    """Answer HTTP with this host's name and the address that the request came from."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            address, port = self.client_address[:2]
            address = address.removeprefix("::ffff:")
            shown = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            body = f"Hostname: {name}\nRemoteAddr: {shown}\n".encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Stay silent; what arrives is the observer's business."""

    threading.Thread(target=Server(("::", HTTP_PORT), Handler).serve_forever, daemon=True).start()


def serve_udp(addresses: Iterable[str]) -> None:
    """Echo datagrams, each from the address that it was sent to."""

    def echo(family: socket.AddressFamily, address: str) -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as server:
            server.bind((address, UDP_PORT))
            while True:
                data, sender = server.recvfrom(4096)
                with contextlib.suppress(OSError):  # there may be no way back
                    server.sendto(data, sender)

    for address in addresses:
        threading.Thread(target=echo, args=(_family(address), address), daemon=True).start()


def main() -> None:
    """Live here, and serve on when nobody gives orders any more."""
    name, *addresses = sys.argv[1:]
    observer, sender = Observer(set(addresses)), Sender()
    observer.start()
    serve_http(name)
    serve_udp(addresses)
    print(json.dumps({"ready": name}), flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line), observer, sender)), flush=True)
    observer.stop()
    signal.pause()


def _answer(order: dict[str, Any], observer: Observer, sender: Sender) -> dict[str, Any]:
    probes = [Probe.of(probe) for probe in order.get("probes", ())]
    match order["do"]:
        case "mark":
            return {"mark": observer.mark()}
        case "seen":
            return {"sources": observer.wait(order["after"], probes)}
        case "keep":
            return {"replies": [sender.keep(probe) for probe in probes]}
        case _:
            return {"replies": sender.send(probes)}


if __name__ == "__main__":
    main()
