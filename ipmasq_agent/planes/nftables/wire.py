"""Our sets as nf_tables has them, and the other way round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ipmasq_agent.netlink import nft_numbers as nft
from ipmasq_agent.netlink.attributes import name_bytes, text
from ipmasq_agent.netlink.expressions import NftVerdict
from ipmasq_agent.netlink.nft_elements import Intervals, SetForm
from ipmasq_agent.planes.nftables.state import NftSet, SetKind, addresses
from ipmasq_agent.policy.addresses import Family

_ADDRESS_TYPE = {Family.IPV4: nft.TYPE_IPADDR, Family.IPV6: nft.TYPE_IP6ADDR}
_NAME_LENGTH = 16  # IFNAMSIZ


def set_form(kind: SetKind, family: Family) -> SetForm:
    """Return the form of a set of ours."""
    return _forms(family)[kind]


def kind_of_set(form: SetForm, family: Family) -> SetKind:
    """Return what a set is to us."""
    return next((kind for kind, ours in _forms(family).items() if ours == form), SetKind.UNKNOWN)


def _forms(family: Family) -> dict[SetKind, SetForm]:
    address = (_ADDRESS_TYPE[family], family.bits // 8)
    to = nft.NFT_SET_INTERVAL | nft.NFT_SET_MAP
    return {
        SetKind.ADDRESSES: SetForm(nft.NFT_SET_INTERVAL, address),
        SetKind.TRANSLATIONS: SetForm(to, address, _ADDRESS_TYPE[family]),
        SetKind.PARTS: SetForm(to, address, nft.NFT_DATA_VERDICT),
        SetKind.DEVICES: SetForm(0, (nft.TYPE_IFNAME, _NAME_LENGTH)),
    }


def elements_for(held: NftSet, family: Family, positions: Sequence[int]) -> Intervals | list[bytes]:
    """Return the elements of a set, or those at some positions: intervals, or keys."""
    if held.kind is SetKind.DEVICES:
        return [name_bytes(held.names[n]).ljust(_NAME_LENGTH, b"\0") for n in positions]
    firsts, lasts, values = held.firsts, held.lasts, held.values
    if len(positions) != len(held):
        firsts, lasts = [firsts[n] for n in positions], [lasts[n] for n in positions]
        values = tuple(values[n] for n in positions) if values else ()
    size = family.bits // 8
    given = [
        NftVerdict(nft.NFT_JUMP, value) if isinstance(value, str) else value.to_bytes(size, "big")
        for value in values
    ]
    return Intervals(firsts, lasts, given)


def devices_of(keys: Iterable[bytes]) -> NftSet:
    """Return the set of devices that has these keys."""
    names = tuple(text(key) for key in sorted(key.rstrip(b"\0") for key in keys))
    return NftSet(SetKind.DEVICES, names=names)


def set_of(kind: SetKind, family: Family, held: Intervals) -> NftSet:
    """Return the set or the map of addresses that has these intervals."""
    ranges = addresses(family, held.firsts, held.lasts)
    if kind is SetKind.ADDRESSES:
        return ranges
    return NftSet(kind, ranges.firsts, ranges.lasts, tuple(map(_given, held.values)))


def _given(value: bytes | NftVerdict) -> int | str:
    if isinstance(value, NftVerdict):
        return value.chain or f"verdict {value.code}"
    return int.from_bytes(value, "big")
