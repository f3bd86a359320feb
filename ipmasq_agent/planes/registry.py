"""The data planes that there are, one row each: all that is known of one without loading it.

Detection, the flag ``--backend``, the limit of entries, ``cleanup``, ``compare``, the lab and
the benchmark read these rows, and nobody types the list again. A row is data and functions
that import their plane when they are called, so a verb that needs none of a plane's code pays
for none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from shutil import which
from typing import TYPE_CHECKING, Any

from ipmasq_agent.planes.placement import Placement

if TYPE_CHECKING:
    from ipmasq_agent.planes.plane import AnyPlane


ASK_THE_NODE = ("auto", "iptables")
"""What ``--backend`` takes beside names: the iptables that the node uses, with ``auto`` in its
form with a set for a policy that is large."""


@dataclass(frozen=True, slots=True)
class PlaneRow:
    """One data plane.

    Attributes:
        name: tells it from all others.
        backend: what ``--backend``, status and logs call it. The two planes of ``ipset`` share
            one name: which it is follows from the iptables that the node uses.
        title: what it is, for people.
        programs: what it runs on the node, beside the kernel itself.
        capabilities: what it takes to read and to write it, without CAP_ in front.
        any_size: it decides by a look-up, and so takes any number of entries.
        make: returns the plane at work on this host.
        may_hold: tells by cheap signs whether state of ours may be here.
        holds: tells by cheap signs that state of ours is here; never where there are none.
        form_of: the plane whose state in the kernel this one shares. Of such two, each
            replaces the other's state by its own in one change, and nothing is left to clean.
        oldest: the first Linux that it works on, where that is not any that is still kept up.
        claim: returns what of the node one agent alone can keep in step, as users name it.
        to_leave: what it takes to remove what was left there, where that is less.
    """

    name: str
    backend: str
    title: str
    programs: tuple[str, ...]
    capabilities: frozenset[str]
    any_size: bool
    make: Callable[[Placement], AnyPlane]
    may_hold: Callable[[Placement], bool]
    holds: Callable[[Placement], bool]
    form_of: str | None = None
    oldest: tuple[int, int] = (0, 0)
    claim: Callable[[Placement], str] = lambda placement: placement.chain
    to_leave: frozenset[str] | None = None


def _of(module: str, name: str, **form: bool) -> Callable[[Placement], Any]:
    """Return a function or class of a plane's module, which is imported when it is called."""

    def call(placement: Placement) -> Any:
        return getattr(import_module(f"ipmasq_agent.planes.{module}"), name)(placement, **form)

    return call


def _cannot_tell(placement: Placement) -> bool:
    """Legacy tables give no cheap sign: each look hands out the whole table."""
    return False


_HAS_LEGACY_TABLE = _of("iptables.presence", "has_legacy_table")
_HAS_NFT_TABLE = _of("iptables.presence", "has_nft_table")
_HAS_NFT_CHAIN = _of("iptables.presence", "has_nft_chain")
_HAS_TABLE = _of("nftables.presence", "has_table")
_HAS_PROGRAMS = _of("bpf.programs", "has_programs")
_NET = frozenset({"NET_ADMIN"})

PLANES: tuple[PlaneRow, ...] = (
    PlaneRow(
        name="iptables-legacy",
        backend="iptables-legacy",
        title="iptables-legacy, a rule a CIDR",
        programs=("iptables-legacy-save",),
        capabilities=_NET | {"NET_RAW"},
        any_size=False,
        make=_of("iptables.legacy", "IptablesLegacyPlane"),
        may_hold=_HAS_LEGACY_TABLE,
        holds=_cannot_tell,
    ),
    PlaneRow(
        name="iptables-nft",
        backend="iptables-nft",
        title="iptables-nft, a rule a CIDR",
        programs=("iptables-nft",),
        capabilities=_NET,
        any_size=False,
        make=_of("iptables.nft", "IptablesNftPlane"),
        may_hold=_HAS_NFT_TABLE,
        holds=_HAS_NFT_CHAIN,
    ),
    PlaneRow(
        name="ipset-nft",
        backend="ipset",
        title="iptables-nft with an ipset",
        programs=("iptables-nft", "ipset"),
        capabilities=_NET | {"NET_RAW"},
        any_size=True,
        make=_of("iptables.nft", "IptablesNftPlane", with_set=True),
        may_hold=_HAS_NFT_TABLE,
        holds=_HAS_NFT_CHAIN,
        form_of="iptables-nft",
    ),
    PlaneRow(
        name="ipset-legacy",
        backend="ipset",
        title="iptables-legacy with an ipset",
        programs=("iptables-legacy-save", "ipset"),
        capabilities=_NET | {"NET_RAW"},
        any_size=True,
        make=_of("iptables.legacy", "IptablesLegacyPlane", with_set=True),
        may_hold=_HAS_LEGACY_TABLE,
        holds=_cannot_tell,
        form_of="iptables-legacy",
    ),
    PlaneRow(
        name="nftables",
        backend="nftables",
        title="nftables with a set",
        programs=(),
        capabilities=_NET,
        any_size=True,
        make=_of("nftables.plane", "NftablesPlane"),
        may_hold=_HAS_TABLE,
        holds=_HAS_TABLE,
    ),
    PlaneRow(
        name="bpf",
        backend="bpf",
        title="eBPF",
        programs=(),
        capabilities=_NET | {"BPF", "PERFMON"},
        any_size=True,
        make=_of("bpf.plane", "placed"),
        may_hold=_HAS_PROGRAMS,
        holds=_HAS_PROGRAMS,
        oldest=(6, 1),
        claim=lambda placement: placement.pins,
        to_leave=_NET | {"BPF"},
    ),
)


def row(name: str) -> PlaneRow:
    """Return the row of that name.

    Raises:
        KeyError: there is none.
    """
    return {each.name: each for each in PLANES}[name]


def home(name: str) -> str:
    """Return the plane whose state in the kernel that of ``name`` is a form of, or itself."""
    return row(name).form_of or name


def rows_of(backend: str) -> list[PlaneRow]:
    """Return the rows that ``--backend`` calls so: one, or one for each iptables."""
    return [each for each in PLANES if each.backend == backend]


def capabilities(backend: str) -> frozenset[str]:
    """Return what it takes to read and write whatever ``--backend`` may come to."""
    rows = rows_of(backend) or [each for each in PLANES if each.programs]  # an iptables
    return frozenset[str]().union(*(each.capabilities for each in rows))


def to_leave() -> frozenset[str]:
    """Return what it takes to remove what any plane left, and to take over from it."""
    return frozenset[str]().union(*(each.to_leave or each.capabilities for each in homes()))


def homes() -> list[PlaneRow]:
    """Return one row for each place in the kernel where state of ours may be."""
    return [each for each in PLANES if each.form_of is None]


def claims(placement: Placement, backend: str | None = None) -> list[str]:
    """Return what one agent alone can keep in step, of all planes or of what ``--backend`` takes.

    What ``auto`` takes is one of those that go by a chain's name.
    """
    rows = PLANES if backend is None else rows_of(backend) or rows_of("iptables-nft")
    return list(dict.fromkeys(each.claim(placement) for each in rows))


def choices() -> tuple[str, ...]:
    """Return what ``--backend`` takes."""
    return tuple(dict.fromkeys((*ASK_THE_NODE, *(each.backend for each in PLANES))))


def larger_form(name: str) -> PlaneRow | None:
    """Return the form of a plane that takes any size, where its programs are installed."""
    programs = row(name).programs
    for each in PLANES:
        beside = [program for program in each.programs if program not in programs]
        if each.form_of == name and each.any_size and all(map(which, beside)):
            return each
    return None


def takes_any_size(backend: str) -> bool:
    """Whether the plane that ``--backend`` leads to for a large policy takes any number."""
    if backend == "auto":
        return any(larger_form(each.name) for each in PLANES)
    rows = rows_of(backend)
    return bool(rows) and all(each.any_size for each in rows)
