"""Programs of ours on devices of this network namespace that no pins here account for.

The pins may be on a bpf file system that is not mounted for us, or somebody removed them.
A filter is listed to everybody. Of programs on links of tcx the kernel gives numbers, to
whoever may use bpf(2); their names only with CAP_SYS_ADMIN. Where it does not, the names
of all programs that are loaded, which it lists with its own symbols, still tell whether one
may be ours.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from ipmasq_agent.bpf.objects import by_id, program_info
from ipmasq_agent.bpf.syscall import BpfCommand, refused
from ipmasq_agent.errors import NotPermitted
from ipmasq_agent.netlink.rt import list_links
from ipmasq_agent.planes.bpf import clsact, tcx
from ipmasq_agent.planes.bpf.layout import TcHook

_SYMBOLS = Path("/proc/kallsyms")
_REMEDY = (
    "mount the host's /sys/fs/bpf in the agent's container and give it the capability BPF, "
    "as deploy/ does; or run `ipmasq-agent cleanup --backend=bpf` as root on the node"
)


def exist(*, strict: bool) -> bool:
    """Whether programs of ours are on devices.

    Args:
        strict: what may be one of ours, as far as can be seen, is an error.

    Raises:
        NotPermitted: there may be some, and we may not look.
        KernelReadError: the devices or their filters cannot be listed.
    """
    return any(True for _ in clsact.list_ours()) or any(True for _ in _links(strict))


def remove(*, links: bool) -> None:
    """Take our programs off the devices where they are filters, and where links hold them.

    Args:
        links: those too that no pin holds.

    Raises:
        NotPermitted: only CAP_SYS_ADMIN may open a link that is not pinned; or as ``exist``.
        HostError: the kernel refuses.
        KernelReadError: as ``exist``.
    """
    for ifindex, hook in list(clsact.list_ours()):
        clsact.detach(ifindex, hook)
    for ifindex, link in _links(strict=True) if links else ():
        tcx.detach_unpinned(link, ifindex)


def _links(strict: bool) -> Iterator[tuple[int, int]]:
    """Yield the devices that have programs of ours by links of tcx, and those links' numbers."""
    nameless = []
    for device in list_links():
        for hook in TcHook:
            try:
                held = tcx.list_attached(device.number, hook)
            except PermissionError:
                if strict:
                    _make_sure(_loaded())
                return
            except OSError as cause:
                if cause.errno in (errno.EINVAL, errno.ENODEV):  # no tcx; the device has gone
                    continue
                raise refused("list the programs of a device", cause) from cause
            for program, link in held:
                try:
                    with by_id(BpfCommand.PROG_GET_FD_BY_ID, program) as descriptor:
                        _, name = program_info(descriptor)
                except FileNotFoundError:
                    continue
                except OSError:
                    nameless.append(program)
                    continue
                if name == hook.value:
                    yield device.number, link
    if strict and nameless:
        _make_sure(_loaded_with(tuple(nameless)))


def _loaded() -> bool:
    """Whether programs with our names are loaded on this machine, as far as it tells."""
    try:
        with _SYMBOLS.open("rb") as lines:  # bpf_prog_TAG_NAME
            names = {line.split()[2].split(b"_", 3)[-1] for line in lines if b"[bpf]" in line}
    except (FileNotFoundError, PermissionError):  # a kernel or a sandbox without the list
        return False
    return {hook.value.encode() for hook in TcHook} <= names


# To read all symbols takes 60 ms; what a number means never changes.
@lru_cache(maxsize=1)
def _loaded_with(numbers: tuple[int, ...]) -> bool:
    return _loaded()


def _make_sure(loaded: bool) -> None:
    if loaded:
        raise NotPermitted(
            "eBPF programs of this agent are loaded on the machine, and it may not be seen from "
            "here whether they are on devices of this node and decide by an older policy",
            remedy=_REMEDY,
        )
