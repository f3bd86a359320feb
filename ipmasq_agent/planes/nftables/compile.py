"""A policy as a table of our own in nf_tables, its destinations in interval sets.

::

    table ip ip-masq {
        set keep { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, ... } }
        chain postrouting {
            type nat hook postrouting priority srcnat + 1; policy accept;
            fib daddr type local return          packets to the node itself
            ip saddr != @sources return          guards: only these sources,
            oifname != @interfaces return        only out of these devices
            ip daddr @keep return                what is not masqueraded
            snat to ip daddr map @fixed          destinations with an address of their own
            masquerade fully-random              everything else
        }
    }

In the kernel what keeps and what translates has a counter too, which is no part of the value.

Of several nat chains at one hook the first that translates a connection decides, and to
return from one lets the next one see the packet (net/netfilter/nf_nat_core.c,
nf_nat_inet_fn). So those of iptables, at priority 100, come before ours or after it.

A very large set is kept in parts. The kernel lists a set by walking it from its beginning
for each 32 KiB of its answer (net/netfilter/nf_tables_api.c, nf_tables_dump_set): 2
seconds for a hundred thousand intervals, 200 for a million. Where a part begins is told by
the ranges themselves, so that a range more or less changes its own part alone.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator, Sequence

from ipmasq_agent.netlink import expressions as expr
from ipmasq_agent.netlink import nft_numbers as nft
from ipmasq_agent.planes.nftables.state import (
    ChainHook,
    NftChain,
    NftRule,
    NftSet,
    NftTable,
    SetKind,
    addresses,
)
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import Verdict
from ipmasq_agent.policy.model import PORT_PROTOCOLS, Action, FamilyPolicy, Guards, PortRange

POSTROUTING = "postrouting"
_FREE = 1  # the register that nft fills first
_LOCAL = (2).to_bytes(4, sys.byteorder)  # RTN_LOCAL
_PROTOCOLS = {"tcp": b"\x06", "udp": b"\x11", "sctp": b"\x84"}
RETURN, ACCEPT = (
    expr.Immediate(nft.NFT_REG_VERDICT, expr.NftVerdict(to))
    for to in (nft.NFT_RETURN, nft.NF_ACCEPT)
)
KEEP, SOURCES, DEVICES, FIXED, PARTS = "keep", "sources", "interfaces", "fixed", "parts"
# NF_IP_PRI_NAT_SRC is 100, where iptables has its nat chains.
_AFTER_IPTABLES, _BEFORE_IPTABLES = 101, 99
PARTED_PAST = 4096
"""How many ranges one set may hold; the size to which lists of it stay fast."""
# A range begins a part where this divides its first address: one in so many does, and
# more evenly than in a hash, as a prime divides regular addresses at regular distances.
_EVERY = 2039


def table_name(placement: Placement) -> str:
    """Return our table's name: that of the chain, as nftables writes names."""
    return placement.chain.lower()


def compile_policy(policy: FamilyPolicy, placement: Placement) -> NftTable:
    """Return the table that decides as ``policy`` does.

    Raises:
        ValueError: a verdict is unknown, which no rule can carry out.
    """
    if Verdict.UNKNOWN in policy.decisions.verdicts:
        raise ValueError("no rule can carry out what is unknown")
    family = policy.family
    sets: dict[str, NftSet] = {}
    rules = [*_guarding(policy.guards, family, sets)]
    firsts, lasts = policy.decisions.ends(Verdict.NON_MASQUERADE)
    parts: dict[str, NftChain] = {}
    if len(firsts) <= PARTED_PAST:
        sets[KEEP] = addresses(family, firsts, lasts)
        rules.append((*in_set(Field.DESTINATION, KEEP, family), RETURN))
    else:
        for name, keep in _parted(family, firsts, lasts, sets).items():
            sets[name] = keep
            # Past a jump, to return is to go on in the chain that jumped.
            rule = *in_set(Field.DESTINATION, name, family), ACCEPT
            parts[name] = NftChain(None, (rule,))
        dispatch = expr.SetLookup(PARTS, _FREE, into=nft.NFT_REG_VERDICT)
        rules.append((Field.DESTINATION.load(family), dispatch))
    if policy.action.fixed:
        fixed = tuple(zip(*policy.action.fixed, strict=True))
        sets[FIXED] = addresses(family, *fixed)
    rules += translating(policy.action, family)
    priority = _BEFORE_IPTABLES if placement.jump_first else _AFTER_IPTABLES
    hooked = NftChain(ChainHook(POSTROUTING, priority), tuple(rules))
    return NftTable(family, table_name(placement), {POSTROUTING: hooked, **parts}, sets)


def absent(family: Family, placement: Placement) -> NftTable:
    """Return the state in which there is no table of ours."""
    return NftTable(family, table_name(placement), exists=False)


def _guarding(guards: Guards, family: Family, sets: dict[str, NftSet]) -> Iterator[NftRule]:
    """Yield the rules for the guards, and add the sets that they need."""
    if not guards.local_destinations:
        yield *TO_THIS_NODE, RETURN
    if guards.sources is not None:
        sources = guards.sources
        sets[SOURCES] = addresses(family, [s.first for s in sources], [s.last for s in sources])
        yield *in_set(Field.SOURCE, SOURCES, family), RETURN
    if guards.devices is not None:
        sets[DEVICES] = NftSet(SetKind.DEVICES, names=tuple(sorted(guards.devices)))
        yield *in_set(Field.DEVICE, DEVICES, family), RETURN


def _parted(
    family: Family, firsts: Sequence[int], lasts: Sequence[int], sets: dict[str, NftSet]
) -> dict[str, NftSet]:
    """Return the sets of the parts, and add the map that leads to them.

    The parts cover all addresses. A part is named after its first one, so that it keeps
    its name while others come and go.
    """
    digits = family.bits // 4
    cuts = [n for n, first in enumerate(firsts) if not first % _EVERY and n]
    begins = [0, *(firsts[cut] for cut in cuts)]
    names = [f"{KEEP}-{begin:0{digits}x}" for begin in begins]
    ends = [*(begin - 1 for begin in begins[1:]), family.last_address]
    sets[PARTS] = addresses(family, begins, ends, names)
    places = zip(names, [0, *cuts], [*cuts, len(firsts)], strict=True)
    return {name: addresses(family, firsts[a:b], lasts[a:b]) for name, a, b in places}


def translating(action: Action, family: Family) -> Iterator[NftRule]:
    """Yield the rules that carry out ``action``, those with a fixed address first.

    A packet meets the port ranges one after the other, so each takes its share of what
    the ranges before it left: size / (its own size + the sizes of those after it).
    """
    for fixed in (FIXED, None) if action.fixed else (None,):
        for protocol in PORT_PROTOCOLS if action.ports else ():
            for position, ports in enumerate(action.ports):
                left = sum(later.size for later in action.ports[position:])
                share = _share(ports.size, left) if left > ports.size else ()
                to = _translate(action, family, fixed, ports)
                yield *of_protocol(protocol), *share, *to
        yield _translate(action, family, fixed, None)


# -- expressions, as nft itself writes them for the same text (observed of 1.0.6) ----------------


class Field(enum.Enum):
    """What of a packet is looked up in a set; the value is where it stands in either header.

    A rule of ours asks for a destination in the set, and for sources and devices outside.
    """

    SOURCE = (12, 8)
    DESTINATION = (16, 24)
    DEVICE = None

    def load(self, family: Family) -> expr.Payload | expr.Meta:
        """Return what loads it."""
        if self.value is None:
            return expr.Meta(_FREE, nft.NFT_META_OIFNAME)
        offset = self.value[family is Family.IPV6]
        return expr.Payload(_FREE, nft.NFT_PAYLOAD_NETWORK_HEADER, offset, family.bits // 8)


TO_THIS_NODE: NftRule = (
    expr.Fib(_FREE, nft.NFT_FIB_RESULT_ADDRTYPE, nft.NFTA_FIB_F_DADDR),
    expr.Compare(_FREE, nft.NFT_CMP_EQ, _LOCAL),
)


def in_set(field: Field, name: str, family: Family) -> NftRule:
    """Return the match of a field."""
    flags = 0 if field is Field.DESTINATION else nft.NFT_LOOKUP_F_INV
    return field.load(family), expr.SetLookup(name, _FREE, flags=flags)


def of_protocol(protocol: str) -> NftRule:
    """Return the match of a protocol: tcp, udp or sctp."""
    equal = expr.Compare(_FREE, nft.NFT_CMP_EQ, _PROTOCOLS[protocol])
    return expr.Meta(_FREE, nft.NFT_META_L4PROTO), equal


def _share(size: int, of: int) -> NftRule:
    """Return the match of ``size`` of so many packets, drawn by lot."""
    return (
        expr.NumberGenerator(_FREE, of, nft.NFT_NG_RANDOM),
        expr.ByteOrder(_FREE, _FREE, nft.NFT_BYTEORDER_HTON, 4, 4),
        expr.Compare(_FREE, nft.NFT_CMP_LT, size.to_bytes(4, "big")),
    )


def _translate(
    action: Action, family: Family, fixed: str | None, ports: PortRange | None
) -> NftRule:
    """Return what gives a packet another source, that of a map where one is fixed."""
    flags = nft.NF_NAT_RANGE_PROTO_RANDOM_FULLY if action.random_fully else 0
    found: list[expr.Expression] = []
    free = _FREE
    if fixed is not None:
        found = [Field.DESTINATION.load(family), expr.SetLookup(fixed, _FREE, into=_FREE)]
        flags |= nft.NF_NAT_RANGE_MAP_IPS
        free += 1
    first = last = None
    if ports is not None:
        ends = sorted({ports.first, ports.last})
        found += [expr.Immediate(free + n, end.to_bytes(2, "big")) for n, end in enumerate(ends)]
        flags |= nft.NF_NAT_RANGE_PROTO_SPECIFIED
        first, last = free, free + len(ends) - 1
    if fixed is None:
        return *found, expr.Masquerade(flags, first, last)
    nat = expr.Nat(nft.NFT_NAT_SNAT, nft.PROTOCOL[family], _FREE, _FREE, first, last, flags)
    return *found, nat
