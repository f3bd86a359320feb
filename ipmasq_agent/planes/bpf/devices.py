"""What the programs are told of the node's devices, and when that moves flows' places."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Set
from contextlib import suppress

from ipmasq_agent.host.devices import EgressDevice
from ipmasq_agent.planes.bpf import layout
from ipmasq_agent.planes.bpf.layout import DeviceEntry, SettingsFlag
from ipmasq_agent.planes.bpf.maps import PinnedMaps
from ipmasq_agent.planes.bpf.state import BpfDevice, BpfRules, DevicePrograms
from ipmasq_agent.policy.addresses import Family


def seen_by(family: Family, found: EgressDevice) -> BpfDevice:
    """Return a device as packets of a family leave through it."""
    source = found.sources.get(family)
    return BpfDevice(found.number, source, found.link_header, found.loopback, found.mac)


def told_devices(
    maps: PinnedMaps,
    family: Family,
    generation: int,
    present: Mapping[str, EgressDevice],
    complete: Callable[[int], bool],
) -> tuple[dict[str, DevicePrograms], dict[str, DevicePrograms]]:
    """Return the devices of a generation's policy, and others that are there: ``BpfState``.

    Args:
        maps: held open.
        family: whose policy.
        generation: of it.
        present: every device by its name.
        complete: whether both programs are on a device, by its ifindex.
    """
    names = {found.number: name for name, found in present.items()}
    hooks, beside = {}, {}
    for number, held in maps.devices().items():
        source = held.sources.get(family)
        device = BpfDevice(number, source, held.link_header, held.loopback, held.mac)
        found = DevicePrograms(device, number in names and complete(number))
        if held.egress[family] >> generation & 1:
            hooks[names.get(number, f"#{number}")] = found
        elif number in names:
            beside[names[number]] = found
    return hooks, beside


def tell(
    maps: PinnedMaps,
    family: Family,
    devices: Mapping[int, BpfDevice],
    egress: Set[int],
    bits: int,
) -> None:
    """Tell the programs what devices are, and which are those of some generations' policy.

    Args:
        maps: held open.
        family: whose packets.
        devices: by ifindex; what is known and not among them is gone, or has no part.
        egress: those of the policy.
        bits: one for each generation that is meant.
    """
    known = maps.devices()
    for number in known.keys() | devices.keys():
        told = held = known.get(number, DeviceEntry({}, {}))
        device = devices.get(number)
        if device is not None:
            sources = {**held.sources, family: device.source}
            with_one = {each: source for each, source in sources.items() if source is not None}
            told = DeviceEntry(
                with_one, held.egress, device.link_header, device.loopback, device.mac
            )
        of_policy = held.egress.get(family, 0) & ~bits | (bits if number in egress else 0)
        told = told._replace(egress={**held.egress, family: of_policy})
        if told != known.get(number):
            maps.set_device(number, told)
    maps.tell_several(len(known.keys() | devices.keys()) > 1)


def first_places_move(
    maps: PinnedMaps,
    family: Family,
    generation: int,
    rules: BpfRules,
    devices: Mapping[int, BpfDevice],
    addresses: Set[int],
) -> bool:
    """Whether flows that live would be looked for where they are not.

    A flow whose address has left the node gets another: it is not to be found.

    Args:
        maps: held open.
        family: whose flows.
        generation: of what is in force.
        rules: about to be in force.
        devices: about to be told, by ifindex.
        addresses: that the node has.
    """
    before, known = maps.settings(layout.slot(family, generation)), maps.devices()
    if not before.flags:
        return False  # there is no policy by which a flow could have begun
    random_fully = bool(before.flags & SettingsFlag.RANDOM_FULLY)
    if (before.ports, random_fully) != (rules.ports, rules.random_fully):
        return True
    if before.flags & SettingsFlag.INDEXING:
        return True  # an agent was killed over it: once more, and it is over
    return any(
        known[number].sources.get(family) in addresses - {device.source}
        for number, device in devices.items()
        if number in known
    )


def is_there(number: int) -> bool:
    """Whether a device is there, by its ifindex."""
    with suppress(OSError):
        return bool(socket.if_indextoname(number))
    return False
