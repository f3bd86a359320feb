"""The kernel's sets, through ``ipset``: read, filled, edited, swapped, destroyed."""

from __future__ import annotations

import time
from dataclasses import replace

from ipmasq_agent.errors import CommandFailed
from ipmasq_agent.host.commands import run
from ipmasq_agent.netlink.ipset import SetHeader, set_digest, set_header
from ipmasq_agent.planes.iptables.set_text import TYPE, edit_text, fill_text, foreign, parse_saved
from ipmasq_agent.planes.iptables.sets import NEW, IpsetChange, set_names
from ipmasq_agent.planes.prefixset import AddressSet, element
from ipmasq_agent.policy.addresses import Family

# Seconds for which a set that no rule refers to any more may still be in use: the kernel
# frees a replaced table when no packet can be in it any longer.
_PATIENCE = 5.0
_IN_USE = "in use by a kernel component"
_MANY_SECONDS = 300.0  # for a million elements on a slow machine


class Sets:
    """The sets that belong to one chain, two for each family: the set, and one being filled.

    What was read or written is remembered, for ``recall``. ``ipset`` exits with 0 also where it
    cannot speak to the kernel at all (seen of 7.17), so what it wrote is remembered only where the
    number of elements, which the kernel tells, shows that it did.

    Args:
        stem: what their names begin with.
        needed: a set of that name which is another's is in the way; else it is left alone.
    """

    def __init__(self, stem: str, *, needed: bool) -> None:
        self._stem = stem
        self._needed = needed
        self._known: dict[Family, AddressSet] = {}
        # Sets that the kernel was seen to hold, and its sign of that.
        self._seen: dict[Family, tuple[AddressSet, int | None]] = {}

    def name(self, family: Family) -> str:
        """Return the name of a family's set."""
        return set_names(self._stem, family)[0]

    def names(self, family: Family) -> list[str]:
        """Return which of our sets exist."""
        return [name for name in set_names(self._stem, family) if set_header(name) is not None]

    def read(self, family: Family) -> dict[str, AddressSet]:
        """Return our sets with all their elements.

        Raises:
            KernelReadError: a set of that name is not one of ours.
        """
        name, _ = set_names(self._stem, family)
        found: dict[str, AddressSet] = {}
        for existing in self.names(family):
            # The set itself tells what it is where all of it is read.
            if not (self._needed and existing == name) and self._header(existing, family) is None:
                continue
            # What was being filled when an agent was killed goes, whatever is in it.
            found[existing] = (
                _saved(name, family) if existing == name else AddressSet(existing, family, ())
            )
        if name in found and self._known.get(family) != found[name]:
            self._known[family] = found[name]
        return found

    def recall(self, family: Family) -> dict[str, AddressSet]:
        """Return our sets, the elements from memory where the kernel's count agrees."""
        name, new = set_names(self._stem, family)
        known = self._known.get(family)
        if known is None or self._header(name, family) != _expected(known):
            return self.read(family)
        found = {name: known}
        if new in self.names(family):
            found[new] = AddressSet(new, family, ())
        return found

    def read_at(self, family: Family, address: int) -> dict[str, AddressSet]:
        """Return our set as if it held that one address, if it matches it."""
        name, _ = set_names(self._stem, family)
        if self._header(name, family) is None:
            return {}
        test = run(["ipset", "test", name, family.show(address)], check=False)
        found = (element(address, family.bits),) if not test.status else ()
        return {name: AddressSet(name, family, found)}

    def disturbed(self, family: Family, *, closely: bool) -> bool:
        """Return whether the kernel's count does not agree with what is remembered.

        Args:
            family: whose set.
            closely: or its elements do not.
        """
        known = self._known.get(family)
        if known is None:
            return False
        if set_header(known.name) != _expected(known):
            return True
        return closely and self._other_elements(family, known)

    def _other_elements(self, family: Family, known: AddressSet) -> bool:
        now = set_digest(known.name)
        which, seen = self._seen.get(family, (None, None))
        if which is known and seen == now:
            return False
        if _saved(known.name, family) != known:
            return True
        if set_digest(known.name) == now:
            self._seen[family] = known, now
        return False

    def _header(self, name: str, family: Family) -> SetHeader | None:
        """Return what the kernel tells of a set in short; None where there is none of ours."""
        header = set_header(name)
        if header is None or (header.kind, header.family) == (TYPE, family):
            return header
        if self._needed:
            raise foreign(name, header.kind, family)
        return None

    def prepare(self, family: Family, change: IpsetChange) -> None:
        """Make our set what it is to be, before rules refer to it.

        Raises:
            CommandFailed: ipset refused; the set that rules refer to is as it was, or has
                some of the edits, each of which leaves every address its old or new verdict.
        """
        for name in change.leftover:
            self._destroy(name)
        target = change.target
        if target is None:
            return
        self._known.pop(family, None)
        grown = abs(len(target.elements) - len(change.before or ()))
        if change.steps is not None:
            self._feed(edit_text(target.name, family, change.steps))
            # The set keeps the size that it was made with.
            header = self._header(target.name, family)
            if header and grown == len(change.steps):
                self._known[family] = replace(target, capacity=header.capacity)
            return
        filled = replace(target, name=target.name + NEW) if change.before is not None else target
        try:
            self._feed(fill_text(filled))
        except BaseException:
            self._destroy(filled.name)  # half a set is of no use
            raise
        if filled is not target:
            run(["ipset", "swap", filled.name, target.name])
            self._destroy(filled.name)
        if grown:
            self._known[family] = target

    def finish(self, family: Family, change: IpsetChange) -> None:
        """Destroy what no rule refers to any more."""
        for gone in change.drop:
            self._destroy(gone.name)
            self._known.pop(family, None)

    def _feed(self, text: str) -> None:
        run(["ipset", "restore"], stdin=text, timeout=_MANY_SECONDS)

    def _destroy(self, name: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            done = run(["ipset", "destroy", name], check=False)
            if set_header(name) is None:
                return
            if _IN_USE not in done.stderr or time.monotonic() > deadline:
                raise CommandFailed(["ipset", "destroy", name], done.status, done.stderr)
            time.sleep(0.02)


def _saved(name: str, family: Family) -> AddressSet:
    return parse_saved(run(["ipset", "save", name], timeout=_MANY_SECONDS).stdout, family)


def _expected(known: AddressSet) -> SetHeader:
    return SetHeader(TYPE, known.family, known.capacity, len(known.elements))
