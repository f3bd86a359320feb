"""Connection tracking filled to its last place, in one network namespace.

The limit is the machine's, the count is the namespace's: so a namespace is filled and the others
go on. May not import the package.
"""

from __future__ import annotations

import socket
import struct
import subprocess
from pathlib import Path

_NETLINK_NETFILTER = 12
_NEW = 1 << 8  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_NEW
_REQUEST_CREATE = 0x1 | 0x400
_SEEN = struct.pack(">I", 1 << 1 | 1 << 2 | 1 << 3)  # IPS_SEEN_REPLY, _ASSURED, _CONFIRMED
_LIFE = 600  # seconds
_SOURCE = bytes([198, 18, 255, 255])  # in the place of any other
_BATCH = 400  # messages of 140 bytes: what a socket sends at once
_COUNT, _MOST = (Path(f"/proc/sys/net/netfilter/nf_conntrack_{n}") for n in ("count", "max"))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _tuple(kind: int, source: int, destination: int, ports: tuple[int, int]) -> bytes:
    ends = _attribute(1, struct.pack(">I", source)) + _attribute(2, struct.pack(">I", destination))
    numbers = (
        _attribute(n, struct.pack(">H", port)) for n, port in zip((2, 3), ports, strict=True)
    )
    protocol = _attribute(1, bytes([socket.IPPROTO_UDP])) + b"".join(numbers)
    return _attribute(kind | 0x8000, _attribute(0x8001, ends) + _attribute(0x8002, protocol))


def _message(number: int) -> bytes:
    """Return what makes one connection known, which nothing that is new pushes out."""
    source, destination, port = int.from_bytes(_SOURCE), 0xC6130001, 1024 + number
    body = struct.pack(">BBH", socket.AF_INET, 0, 0)
    body += _tuple(1, source, destination, (port, 53)) + _tuple(2, destination, source, (53, port))
    body += _attribute(3, _SEEN) + _attribute(7, struct.pack(">I", _LIFE))
    return struct.pack("=IHHII", 16 + len(body), _NEW, _REQUEST_CREATE, number, 0) + body


def room() -> int:
    """Return how many more may be tracked, in the namespace of the main thread."""
    return int(_MOST.read_text()) - int(_COUNT.read_text())


def fill() -> None:
    """Fill what is left with connections that stay."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as kernel:
        batch = b"".join(map(_message, range(_BATCH)))
        for number in range(int(_MOST.read_text()) // _BATCH + 2):
            kernel.send(batch.replace(_SOURCE, struct.pack(">HH", 0xC612, number)))


def empty() -> None:
    """Forget all connections."""
    subprocess.run(["conntrack", "-F"], check=True, capture_output=True)


def dropped() -> int:
    """Return how many packets found no place."""
    told = subprocess.run(["conntrack", "-S"], check=True, capture_output=True, text=True).stdout
    words = (word.partition("=") for word in told.split())
    return sum(int(value) for name, _, value in words if name == "drop")
