"""Filters of clsact that run eBPF programs, as the kernel lists them over rtnetlink.

It lists them to everybody, without bpf(2). Numbers: include/uapi/linux/{rtnetlink,pkt_sched,
pkt_cls}.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ipmasq_agent.netlink.core import attributes, text
from ipmasq_agent.netlink.rt import dump, number

_GET_QDISC, _GET_FILTER = 38, 46
_MESSAGE = struct.Struct("=BxHiIII")  # struct tcmsg
_KIND, _OPTIONS = 1, 2
_NAME, _ID = 7, 11  # TCA_BPF_...
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
"""Parents of the filters of either direction."""


class BpfFilter(NamedTuple):
    """A program on a device.

    Attributes:
        device: its ifindex.
        parent: ``INGRESS`` or ``EGRESS``.
        handle, priority: which filter it is there.
        name: as whoever made the filter has it; libbpf gives ``name:[number]``.
        program: its number.
    """

    device: int
    parent: int
    handle: int
    priority: int
    name: str
    program: int


def list_bpf_filters() -> list[BpfFilter]:
    """Return the programs on all devices of this network namespace.

    Raises:
        KernelReadError: they cannot be listed.
    """
    devices = []
    for body in dump(_GET_QDISC, _MESSAGE.pack(0, 0, 0, 0, 0, 0), "its queueing disciplines"):
        if text(dict(attributes(body, _MESSAGE.size)).get(_KIND)) == "clsact":
            devices.append(_MESSAGE.unpack_from(body)[2])
    return [found for device in devices for p in (INGRESS, EGRESS) for found in _of(device, p)]


def _of(device: int, parent: int) -> Iterator[BpfFilter]:
    for body in dump(_GET_FILTER, _MESSAGE.pack(0, 0, device, 0, parent, 0), "its filters"):
        _, _, _, handle, _, info = _MESSAGE.unpack_from(body)
        found = dict(attributes(body, _MESSAGE.size))
        if text(found.get(_KIND)) != "bpf" or not handle:
            continue
        options = dict(attributes(found.get(_OPTIONS, b"")))
        name = text(options.get(_NAME))
        yield BpfFilter(device, parent, handle, info >> 16, name, number(options.get(_ID), 0))
