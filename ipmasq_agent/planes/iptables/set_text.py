"""What ``ipset`` reads and prints: sets as text, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.planes.prefixset import AddressSet, Step, element, shown
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.cidrs import common_form, parse_listed

TYPE = "hash:net"
_LEAST_BUCKETS = 1 << 10
_FAMILY_NAMES = {Family.IPV4: "inet", Family.IPV6: "inet6"}
_CREATE = re.compile(r"create (\S+) (\S+) (.*)")


def fill_text(made: AddressSet) -> str:
    """Return what makes a set and fills it, as input for ``ipset restore``.

    There is room for its elements and as many again.
    """
    buckets = max(_LEAST_BUCKETS, 1 << (len(made.elements) // 4).bit_length())
    lines = [
        f"create {made.name} {TYPE} family {_FAMILY_NAMES[made.family]} "
        f"hashsize {buckets} maxelem {made.capacity}"
    ]
    lines += (f"add {made.name} {shown(code, made.family)}" for code in made.elements)
    return "\n".join([*lines, ""])


def edit_text(name: str, family: Family, steps: Iterable[Step]) -> str:
    """Return edits in their order, as input for ``ipset restore``."""
    lines = (
        f"del {name} {shown(step.code & ~1, family)}"
        if step.gone
        else f"add {name} {shown(step.code, family)} -exist"
        for step in steps
    )
    return "\n".join([*lines, ""])


def parse_saved(text: str, family: Family) -> AddressSet:
    """Return the set in the output of ``ipset save NAME``.

    Raises:
        KernelReadError: the output is not that of a hash:net set of the family.
    """
    lines = text.splitlines()
    created = _CREATE.fullmatch(lines[0]) if lines else None
    if created is None:
        raise _unreadable(text)
    name, kind, rest = created.groups()
    words = rest.split()
    options = dict(pairwise(words))
    if kind != TYPE or options.get("family") != _FAMILY_NAMES[family]:
        raise foreign(name, kind, family)
    start = len(f"add {name} ")
    codes = []
    try:
        for line in lines[1:]:
            entry, _, more = line[start:].partition(" ")
            cidr = entry if "/" in entry else f"{entry}/{family.bits}"
            its_family, first, length = common_form(cidr) or parse_listed(cidr)
            if its_family is not family:
                raise ValueError(f"{entry} is not of {family.value}")
            codes.append(element(first, length, "nomatch" in more))
        capacity = int(options.get("maxelem", 0))
    except ValueError as cause:
        raise _unreadable(text) from cause
    codes.sort()
    return AddressSet(name, family, tuple(codes), capacity)


def foreign(name: str, kind: str, family: Family) -> KernelReadError:
    """Return the error for a set of that name that is not one of ours."""
    return KernelReadError(
        f"there is a set {name} already, and it is a {kind}, not our {TYPE} of {family.value}",
        remedy=f"see it with `ipset list -t {name}`; rename it, or our chain with --masq-chain; "
        "nothing was written",
    )


def _unreadable(text: str) -> KernelReadError:
    return KernelReadError(
        f"the output of `ipset save` cannot be used: {text[:200]!r}",
        remedy="run it by hand to see what it says; nothing was written",
    )
