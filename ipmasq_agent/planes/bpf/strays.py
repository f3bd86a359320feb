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
from collections.abc import Set as AbstractSet
from functools import lru_cache
from pathlib import Path

from ipmasq_agent.bpf.maps import BpfMap
from ipmasq_agent.bpf.objects import by_id, maps_of, open_number, program_info
from ipmasq_agent.bpf.syscall import BpfCommand, refused
from ipmasq_agent.errors import NotPermitted
from ipmasq_agent.netlink.rt import list_links
from ipmasq_agent.planes.bpf import clsact, tcx
from ipmasq_agent.planes.bpf.layout import FLOWS, TcHook

_SYMBOLS = Path("/proc/kallsyms")
_REMEDY = (
    "mount the host's /sys/fs/bpf in the agent's container and give it the capability BPF, "
    "as deploy/ does; or run `ipmasq-agent cleanup --backend=bpf` as root on the node"
)


def find(own: AbstractSet[int], *, strict: bool) -> Iterator[int]:
    """Yield the numbers of the programs of ours on devices.

    Args:
        own: numbers of programs that are not meant.
        strict: what may be one of ours, as far as can be seen, is an error.

    Raises:
        NotPermitted: there may be some, and we may not look.
        KernelReadError: the devices or their filters cannot be listed.
    """
    for _, _, program in clsact.list_ours():
        if program not in own:
            yield program
    for _, program, _ in _linked(own, strict):
        yield program


def remove(own: AbstractSet[int], *, strict: bool) -> None:
    """Take our programs off the devices, but those of these numbers; raises as ``find``.

    NotPermitted also where only CAP_SYS_ADMIN may: to open a link that is not pinned.
    """
    for ifindex, hook, program in list(clsact.list_ours()):
        if program not in own:
            clsact.detach(ifindex, hook)
    for ifindex, _, link in list(_linked(own, strict)):
        tcx.detach_unpinned(link, ifindex)


def _linked(own: AbstractSet[int], strict: bool) -> Iterator[tuple[int, int, int]]:
    """Yield devices, programs of ours there and the links of tcx that hold them."""
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
                    if program not in own and _is_ours(program, hook):
                        yield device.number, program, link
                except FileNotFoundError:
                    continue
                except OSError:
                    nameless.append(program)
    if strict and nameless:
        _make_sure(_loaded_with(tuple(nameless)))


@lru_cache(maxsize=1024)
def _is_ours(number: int, hook: TcHook) -> bool:
    """Whether a program has our name and a table of flows, which never changes.

    Raises:
        OSError: it is gone, or we may not ask.
    """
    with by_id(BpfCommand.PROG_GET_FD_BY_ID, number) as program:
        _, name = program_info(program)
        return name == hook.value and FLOWS in map(_map_name, maps_of(program))


def _map_name(number: int) -> str:
    with BpfMap(open_number(BpfCommand.MAP_GET_FD_BY_ID, number)) as found:
        return found.name


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
