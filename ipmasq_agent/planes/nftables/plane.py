"""A table of our own in nf_tables, spoken to over netlink; no program is started.

The nft program reads a whole set back to change one element of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.host.sparing import Sparing
from ipmasq_agent.netlink.nf import generation, unquiet
from ipmasq_agent.netlink.nft_batch import Stale
from ipmasq_agent.netlink.nft_numbers import NFT_FAMILY
from ipmasq_agent.planes.flowcount import FlowCount
from ipmasq_agent.planes.nftables.compile import POSTROUTING, absent, compile_policy, table_name
from ipmasq_agent.planes.nftables.interpret import interpret
from ipmasq_agent.planes.nftables.plan import TableChange, plan
from ipmasq_agent.planes.nftables.read import Frame, counted, read_frame, read_table, read_table_at
from ipmasq_agent.planes.nftables.state import NftSet, NftTable, SetKind
from ipmasq_agent.planes.nftables.write import Writing
from ipmasq_agent.planes.placement import OurBase, Placement
from ipmasq_agent.planes.plane import Dialect, Plane
from ipmasq_agent.policy.addresses import Family

_TRIES = 5


class _Held(NamedTuple):
    """What we believe that the kernel holds.

    Attributes:
        table: with every element.
        generation: of the ruleset that it was read from, or that our own commit made;
            None where others have committed since, and signs alone say that it still holds.
        seen: it was read from the kernel, rather than written to it.
        frame: of the last read; None where the table was made since.
    """

    table: NftTable
    generation: int | None
    seen: bool
    frame: Frame | None

    def vouches(self, frame: Frame, name: str) -> bool:
        """Whether the elements of a set may be taken for those that we know.

        Either nobody has committed anything since, or it is the same set and has as many
        elements. That is a sign, not a proof: each resync reads in full, and a look where
        that is cheap.
        """
        info, known = frame.sets[name], self.table.sets.get(name)
        if known is None or known.kind is not frame.table.sets[name].kind:
            return False
        if info.size is not None and info.size != _count(known, self.table.family):
            return False
        if frame.generation == self.generation:
            return True
        if info.size is None or self.frame is None or self.frame.handle != frame.handle:
            return False
        before = self.frame.sets.get(name)
        return before is not None and before.handle == info.handle


def _count(held: NftSet, family: Family) -> int:
    """Return the count of elements that the kernel gives for a set.

    Of a set of intervals it halves the number of its elements, each being two
    (net/netfilter/nft_set_rbtree.c, nft_rbtree_usize); the one that reaches the last
    address is one.
    """
    if held.kind is SetKind.DEVICES:
        return len(held)
    opened = bool(held.lasts) and held.lasts[-1] == family.last_address
    return (2 * len(held) - opened) // 2


class NftablesPlane(Plane[NftTable, NftTable, TableChange]):
    """Our own table of nf_tables, ``ip ip-masq`` and ``ip6 ip-masq``."""

    name = "nftables"
    in_nf_tables = True

    def __init__(self, placement: Placement) -> None:
        self.dialect = Dialect(
            compile=partial(compile_policy, placement=placement),
            absent=partial(absent, placement=placement),
            plan=plan,
            describe=NftTable.lines,
            interpret=interpret,
        )
        self._table = table_name(placement)
        self._held: dict[Family, _Held] = {}
        self._sparing = Sparing()
        self._flows = FlowCount(partial(counted, name=self._table))

    def our_base(self, family: Family) -> OurBase:
        """Return the one chain of our table that packets enter."""
        return OurBase(f"{NFT_FAMILY[family]} {self._table}", POSTROUTING, POSTROUTING)

    def read(self, family: Family) -> NftTable:
        """Return the table with all of its elements, from the kernel.

        As long as nobody has committed anything since it was last read, that still holds.
        """
        held = self._held.get(family)
        if held and held.seen and held.generation == generation():
            return held.table
        return self._read(family, trusted=False)

    def recall(self, family: Family) -> NftTable:
        """Return the table; elements that we know are asked for only where a sign is against it.

        On a node where others commit all the time the signs are the handle of a set, and
        the number of its elements.
        """
        return self._read(family, trusted=True)

    def _read(self, family: Family, *, trusted: bool) -> NftTable:
        name = self._table
        for _ in range(_TRIES):
            frame = read_frame(family, name)
            known = self._known(family, frame) if trusted else {}
            held = self._held.get(family)
            seen = not known or (held is not None and held.seen)
            table = read_table(frame, known)
            # Others may have committed while the elements were read. What counts is that
            # our table stayed the same.
            alone = generation() == frame.generation
            if alone or read_frame(family, name).same(frame):
                proven = alone and (not known or (held and held.generation == frame.generation))
                number = frame.generation if proven else None
                self._held[family] = _Held(table, number, seen, frame)
                return table
        raise unquiet(family, _TRIES)

    def _known(self, family: Family, frame: Frame) -> dict[str, NftSet]:
        """Return the sets of which we know the elements already."""
        held = self._held.get(family)
        if held is None:
            return {}
        vouched = [name for name in frame.sets if held.vouches(frame, name)]
        return {name: held.table.sets[name] for name in vouched}

    def disturbed(self, failing: Collection[Family] = ()) -> bool:
        """Return whether our table is another than a pass left.

        Where nobody has committed anything it is one question to the kernel. Elements that
        took the place of others are seen as often as it is cheap to read all of them.
        """
        now = generation()
        stale = [
            (family, held)
            for family, held in self._held.items()
            if held.generation != now and family not in failing
        ]
        if not stale:
            return False
        try:
            with self._sparing.turn() as closely:
                return any(
                    self._read(family, trusted=not closely) != held.table for family, held in stale
                )
        except KernelReadError:
            return True  # the pass that follows says what is wrong, until it is not

    def read_at(self, family: Family, destination: int) -> NftTable:
        """Return the table with no more elements than say what becomes of one destination."""
        return read_table_at(read_frame(family, self._table), destination)

    def counters(self) -> Mapping[tuple[Family, str], int]:
        """Return how many flows were translated and kept, by what our rules count."""
        return self._flows.told()

    def apply(self, family: Family, change: TableChange) -> None:
        """Carry out ``change``, planned anew where the kernel held something else.

        What no packet can meet yet is written first. The transaction that makes it count is
        as small as it can be: while the kernel carries one out, elements that it adds come
        into force one by one.

        Raises:
            Stale: others change our table faster than we can.
            HostError: the kernel refuses.
        """
        with self._flows.rewriting(family):
            self._commit(family, change)

    def _commit(self, family: Family, change: TableChange) -> None:
        for left in reversed(range(_TRIES)):
            writing = Writing(change)
            commits = [batch for batch in (writing.preparation(), writing.change()) if batch]
            before = generation()
            try:
                for batch in commits:
                    batch.commit()
            except Stale:
                self._held.pop(family, None)
                if not left:
                    raise
                change = plan(self.read(family), change.desired)
                continue
            # Whether nobody else wrote in between.
            now, known = generation(), self._held.get(family)
            number = now if (now - before) % (1 << 32) == len(commits) else None
            frame = None if known is None or change.anew else known.frame
            table = replace(change.desired, held_as=writing.held_as)
            self._held[family] = _Held(table, number, seen=False, frame=frame)
            return
