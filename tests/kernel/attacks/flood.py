"""Packets by the million that no socket sends, with sources that are not the sender's."""

from __future__ import annotations

import io
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from scapy.packet import Packet

from ipmasq_agent.policy.addresses import Family
from tests.bpf.packets import frame
from tests.netns import Namespace

_SOURCE = Path(__file__).parent / "flood.c"
_LINK, _HEADER = 14, {Family.IPV4: 20, Family.IPV6: 40}
_ADDRESSES = {Family.IPV4: (12, 4), Family.IPV6: (8, 16)}  # where, and their size
_CHECKSUM = {"udp": 6, "tcp": 16}


def compile_flood(place: Path) -> Path:
    """Compile the program that sends, into a directory; return it."""
    program = place / "flood"
    done = subprocess.run(
        ["gcc", "-O2", "-o", program, _SOURCE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return program


@dataclass(frozen=True)
class Varied:
    """What differs from packet to packet: how many values each takes, from the packet's on.

    Addresses differ in their last 16 bits.
    """

    source: int = 1
    source_port: int = 1
    destination: int = 1
    destination_port: int = 1

    def words(self, family: Family, protocol: str) -> list[str]:
        """Return the fields as the program wants them."""
        transport = _LINK + _HEADER[family]
        first, size = _ADDRESSES[family]
        checksum = transport + _CHECKSUM[protocol]
        of_address = [checksum, *([_LINK + 10] if family is Family.IPV4 else [])]
        fields = (
            (_LINK + first + size - 2, self.source, of_address),
            (_LINK + first + 2 * size - 2, self.destination, of_address),
            (transport, self.source_port, [checksum]),
            (transport + 2, self.destination_port, [checksum]),
        )
        return [
            ":".join(map(str, (offset, values, *sums)))
            for offset, values, sums in fields
            if values > 1
        ]


class Flood:
    """Packets on their way through a device to its neighbour.

    Args:
        program: as compiled.
        where: the namespace of the sender.
        neighbour: that of the other end, and its device.
        packet: the first one.
        varied: what differs from packet to packet.
        count: how many there are.
        rate: how many a second; 0 for as many as can be.
    """

    def __init__(
        self,
        program: Path,
        where: Namespace,
        neighbour: tuple[Namespace, str],
        packet: Packet,
        varied: Varied,
        count: int,
        rate: int = 0,
    ) -> None:
        family = Family.IPV4 if packet.name == "IP" else Family.IPV6
        protocol = packet.payload.name.lower()
        ends = _address_of_link(where, "eth0"), _address_of_link(*neighbour)
        first = frame(packet, source=ends[0], destination=ends[1])
        words = ["eth0", str(count), str(rate), first.hex(), *varied.words(family, protocol)]
        self._process = where.popen([str(program), *words], stderr=subprocess.PIPE)

    def over(self, seconds: float = 250) -> None:
        """Wait until all is sent."""
        assert self._process.wait(seconds) == 0, (self._process.stderr or io.StringIO()).read()


def _address_of_link(where: Namespace, device: str) -> bytes:
    (link,) = json.loads(where.run(["ip", "-j", "link", "show", "dev", device]).stdout)
    return bytes.fromhex(link["address"].replace(":", ""))
