"""Every packet that passes a device of a host of the lab, as the kernel shows it to packet(7)."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Mapping

from ipmasq_agent.lab import netns
from ipmasq_agent.lab.packets import Captured, parse

_ETH_P_ALL, _ETH_P_IP, _ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_PACKET_HOST, _PACKET_OTHERHOST, _PACKET_OUTGOING = 0, 3, 4
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35
_TIME = struct.Struct("@ll")
# Bytes that may wait to be read, each packet with its record of some hundred: of one wave of
# probes a busy host has less than one.
_BUFFER = 16 << 20
_SNAPPED = 512


class Capture(contextlib.ExitStack):
    """Listens in hosts; what was captured is fetched wave by wave.

    The kernel queues a packet here before it is passed on. So once a packet has arrived, those
    at all earlier devices of its way can be fetched, and nothing has to be waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sockets: dict[str, socket.socket] = {}

    def listen(self, namespaces: Mapping[str, str]) -> None:
        """Begin to listen at all devices of hosts.

        Args:
            namespaces: host → the name of its namespace.

        Raises:
            LabError: the kernel refuses.
        """
        for host, name in namespaces.items():
            self._sockets[host] = listener = self.enter_context(
                netns.made_inside(
                    netns.RUN_NETNS / name,
                    lambda: socket.socket(
                        socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)
                    ),
                )
            )
            listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            listener.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            listener.setblocking(False)

    def fetch(self) -> tuple[list[Captured], frozenset[str]]:
        """Return what was captured since the last time, and hosts of which packets were lost."""
        captured: list[Captured] = []
        lost = set()
        for host, listener in self._sockets.items():
            with contextlib.suppress(BlockingIOError):
                while True:
                    captured += _read(host, listener)
            # Asking sets it back to nothing.
            statistics = listener.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
            if struct.unpack("@II", statistics)[1]:
                lost.add(host)
        return captured, frozenset(lost)


def _read(host: str, listener: socket.socket) -> list[Captured]:
    data, ancillary, _, address = listener.recvmsg(_SNAPPED, 64)
    device, ethertype, kind, *_ = address
    if ethertype not in (_ETH_P_IP, _ETH_P_IPV6):
        return []
    # The port of a bridge takes in what is addressed to the bridge; elsewhere such a packet is
    # another host's, and only here because a switch did not know where that is.
    ours = kind in (_PACKET_HOST, _PACKET_OUTGOING) or device.startswith("veth-")
    packet = parse(data)
    if packet is None or not ours or kind > _PACKET_OUTGOING:
        return []
    seconds, nanoseconds = _TIME.unpack(ancillary[0][2])
    time = seconds * 1_000_000_000 + nanoseconds
    return [Captured(time, host, device, kind == _PACKET_OUTGOING, packet)]
