"""Programs on devices as filters of clsact, where the kernel has no tcx.

rtnetlink, which lists filters to everybody, without bpf(2). Ours has a handle and a priority
of its own, so that others' stay. What the kernel refuses is a HostError. Numbers:
include/uapi/linux/{rtnetlink,pkt_sched,pkt_cls}.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

from ipmasq_agent.bpf.objects import program_info
from ipmasq_agent.bpf.syscall import asked_to, refused
from ipmasq_agent.netlink.attributes import attribute, fields, host_number, nested, text
from ipmasq_agent.netlink.core import CREATE, EXCLUSIVE, ask
from ipmasq_agent.netlink.rt import dump
from ipmasq_agent.planes.bpf.layout import TcHook

_NEW_QDISC, _GET_QDISC, _NEW_FILTER, _DELETE_FILTER, _GET_FILTER = 36, 38, 44, 45, 46
_MESSAGE = struct.Struct("=BxxxiIII")  # struct tcmsg: family, ifindex, handle, parent, info
_QDISC_HANDLE, _QDISC_PARENT = 0xFFFF0000, 0xFFFFFFF1  # TC_H_CLSACT
_PARENTS = {TcHook.INGRESS: 0xFFFFFFF2, TcHook.EGRESS: 0xFFFFFFF3}
_HANDLE, _PRIORITY = 0x6D61, 49
_INFO = _PRIORITY << 16 | socket.htons(0x0003)  # of packets of any protocol: ETH_P_ALL
_KIND, _OPTIONS = 1, 2  # TCA_...
_FD, _NAME, _FLAGS, _ID = 6, 7, 8, 11  # TCA_BPF_...
_DIRECT = struct.pack("=I", 1)  # TCA_BPF_FLAG_ACT_DIRECT: what the program returns counts
_CLSACT, _BPF = b"clsact\0", b"bpf\0"
# No filter of ours, no clsact (EINVAL), no such device.
_NOT_THERE = frozenset({errno.ENOENT, errno.EINVAL, errno.ENODEV})


def attach(ifindex: int, hook: TcHook, program: int) -> None:
    """Attach a program, in place of the one that we have there."""
    qdisc = _MESSAGE.pack(0, ifindex, _QDISC_HANDLE, _QDISC_PARENT, 0) + attribute(_KIND, _CLSACT)
    with asked_to(f"give device {ifindex} a clsact"), suppress(FileExistsError):
        ask(socket.NETLINK_ROUTE, _NEW_QDISC, qdisc, CREATE | EXCLUSIVE)
    program_id, _ = program_info(program)
    options = nested(
        _OPTIONS,
        attribute(_FD, struct.pack("=I", program)),
        attribute(_NAME, f"{hook.value}:[{program_id}]\0".encode()),
        attribute(_FLAGS, _DIRECT),
    )
    with asked_to(f"attach to device {ifindex}"):
        ask(socket.NETLINK_ROUTE, _NEW_FILTER, _ours(ifindex, hook) + options, CREATE)


def attached(ifindex: int, hook: TcHook) -> int | None:
    """Return the number of the program that we have there; None for none."""
    try:
        body = ask(socket.NETLINK_ROUTE, _GET_FILTER, _ours(ifindex, hook))
    except OSError as cause:
        if cause.errno in _NOT_THERE:
            return None
        raise refused(f"ask about device {ifindex}", cause) from cause
    return host_number(_options(body or b"").get(_ID)) or None


def detach(ifindex: int, hook: TcHook) -> None:
    """Take our filter away; whatever else is there stays, clsact too."""
    try:
        ask(socket.NETLINK_ROUTE, _DELETE_FILTER, _ours(ifindex, hook))
    except OSError as cause:
        if cause.errno not in _NOT_THERE:
            raise refused(f"detach from device {ifindex}", cause) from cause


def list_ours() -> Iterator[tuple[int, TcHook, int]]:
    """Yield where in this network namespace filters of ours are: device, hook, its program.

    Raises:
        KernelReadError: devices or filters cannot be listed.
    """
    everything = _MESSAGE.pack(0, 0, 0, 0, 0)
    for body in dump(_GET_QDISC, everything, "its queueing disciplines"):
        if text(fields(body, _MESSAGE.size).get(_KIND)) == "clsact":
            _, ifindex, *_ = _MESSAGE.unpack_from(body)
            for hook in TcHook:
                program = _program_of_ours(ifindex, hook)
                if program is not None:
                    yield ifindex, hook, program


def _program_of_ours(ifindex: int, hook: TcHook) -> int | None:
    request = _MESSAGE.pack(0, ifindex, 0, _PARENTS[hook], 0)
    for body in dump(_GET_FILTER, request, "its filters"):
        _, _, handle, _, info = _MESSAGE.unpack_from(body)
        if (handle, info >> 16) == (_HANDLE, _PRIORITY):
            # Others may have taken the same numbers.
            options = _options(body)
            if text(options.get(_NAME)).partition(":")[0] == hook.value:
                return host_number(options.get(_ID))
    return None


def _ours(ifindex: int, hook: TcHook) -> bytes:
    """Return what names our filter."""
    message = _MESSAGE.pack(0, ifindex, _HANDLE, _PARENTS[hook], _INFO)
    return message + attribute(_KIND, _BPF)


def _options(body: bytes) -> dict[int, bytes]:
    """Return the attributes of a filter that runs a program; none of any other."""
    found = fields(body, _MESSAGE.size)
    return fields(found.get(_OPTIONS, b"")) if found.get(_KIND) == _BPF else {}
