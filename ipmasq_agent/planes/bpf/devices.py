"""What the programs are told of the node's devices, and when that moves flows' places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set

from ipmasq_agent.planes.bpf import layout
from ipmasq_agent.planes.bpf.layout import DeviceEntry, SettingsFlag
from ipmasq_agent.planes.bpf.maps import PinnedMaps
from ipmasq_agent.planes.bpf.state import BpfRules, DevicePrograms
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import EgressDevice


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
        found = DevicePrograms(held.device.of(family), number in names and complete(number))
        if held.egress[family] >> generation & 1:
            hooks[names.get(number, f"#{number}")] = found
        elif number in names:
            beside[names[number]] = found
    return hooks, beside


def tell(
    maps: PinnedMaps,
    family: Family,
    devices: Mapping[int, EgressDevice],
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
        entry = known.get(number) or DeviceEntry(devices[number], {})
        device = entry.device
        if number in devices:
            others = {of: one for of, one in device.sources.items() if of is not family}
            device = devices[number]._replace(sources={**others, **devices[number].sources})
        of_policy = entry.egress.get(family, 0) & ~bits | (bits if number in egress else 0)
        told = DeviceEntry(device, {**entry.egress, family: of_policy})
        if told != known.get(number):
            maps.set_device(told)
    maps.tell_several(len(known.keys() | devices.keys()) > 1)


def first_places_move(
    maps: PinnedMaps,
    family: Family,
    generation: int,
    rules: BpfRules,
    devices: Mapping[int, EgressDevice],
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
        known[number].device.sources.get(family) in addresses - {device.sources.get(family)}
        for number, device in devices.items()
        if number in known
    )
