"""Sends UDP packets as fast as one CPU can, whenever it is asked to, and tells how fast.

    python -m ipmasq_agent.bench.sender ORDER

The order is JSON: ``destinations`` (addresses), ``ports`` (how many, from ``first`` on, of
each of them), ``size`` (bytes of payload). Packets go to each destination in turn, then to
the next port; after the last one it begins again. A line ``{}`` says that all is laid out in
memory. Then each line of standard input says how many packets to send, ``{"count": N}``, and is
answered by a line of JSON: ``rate``, packets a second, and ``busy``, the CPU seconds of the
whole machine meanwhile. sendmmsg(2) by hand, as Python has none.
"""

from __future__ import annotations

import ctypes
import ipaddress
import json
import socket
import struct
import sys
import time

from ipmasq_agent.bench.machine import busy_seconds
from ipmasq_agent.libc import checked, libc

_AT_ONCE = 1024  # UIO_MAXIOV
# struct msghdr of 64 bits, and the number of bytes that went: struct mmsghdr.
_MESSAGE = struct.Struct("=QI4xQQQQi4xI4x")
_VECTOR = struct.Struct("=QQ")


class Burst:
    """The messages of a burst, as sendmmsg takes them."""

    def __init__(self, addresses: list[bytes], size: int) -> None:
        length = len(addresses[0])
        # Each is referred to by its address in memory, so they are kept as long as the burst.
        self._names = ctypes.create_string_buffer(b"".join(addresses))
        self._payload = ctypes.create_string_buffer(size)
        vector = _VECTOR.pack(ctypes.addressof(self._payload), size)
        self._vector = ctypes.create_string_buffer(vector)
        names, one = ctypes.addressof(self._names), ctypes.addressof(self._vector)
        self._messages = ctypes.create_string_buffer(
            b"".join(
                _MESSAGE.pack(names + n * length, length, one, 1, 0, 0, 0, 0)
                for n in range(len(addresses))
            )
        )
        self.size = len(addresses)

    def send(self, descriptor: int, first: int, count: int) -> int:
        """Send messages from the first on, as many as go at once; return how many went."""
        at = ctypes.addressof(self._messages) + first * _MESSAGE.size
        return checked(libc.sendmmsg(descriptor, ctypes.c_void_p(at), min(count, _AT_ONCE), 0))


def names(destinations: list[str], first: int, ports: int) -> list[bytes]:
    """Return struct sockaddr_in or sockaddr_in6 for each destination and port, in order."""
    packed = [ipaddress.ip_address(destination).packed for destination in destinations]
    family = socket.AF_INET if len(packed[0]) == 4 else socket.AF_INET6
    head = struct.pack("=H", family)
    # An address of IPv6 stands behind a flow label, and before a scope.
    parts = (b"", bytes(8)) if family == socket.AF_INET else (bytes(4), bytes(4))
    return [
        head + struct.pack(">H", port) + parts[0] + address + parts[1]
        for port in range(first, first + ports)
        for address in packed
    ]


def main() -> None:
    """Carry out the order."""
    order = json.loads(sys.argv[1])
    addresses = names(order["destinations"], order["first"], order["ports"])
    # As many to lay out as go at once, else each call would send a few only.
    addresses *= -(-_AT_ONCE // len(addresses))
    burst = Burst(addresses, order["size"])
    kind = socket.AF_INET if len(addresses[0]) == 16 else socket.AF_INET6
    with socket.socket(kind, socket.SOCK_DGRAM) as out:
        print("{}", flush=True)
        at = 0
        for line in sys.stdin:
            left = count = json.loads(line)["count"]
            busy, began = busy_seconds(), time.monotonic()
            while left:
                sent = burst.send(out.fileno(), at, min(left, burst.size - at))
                left -= sent
                at = (at + sent) % burst.size
            took, busy = time.monotonic() - began, busy_seconds() - busy
            print(json.dumps({"rate": count / took, "busy": busy}), flush=True)


if __name__ == "__main__":
    main()
