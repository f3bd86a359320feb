"""Which ways to masquerade are measured, with how many CIDRs, and for how long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ipmasq_agent.bench.results import LIMIT, REFERENCE, Mode
from ipmasq_agent.errors import UsageError
from ipmasq_agent.planes.registry import PLANES, PlaneRow, rows_of

BACKENDS = tuple(dict.fromkeys(plane.backend for plane in PLANES))
_WITHOUT_CONNTRACK = "bpf"  # the plane that masquerades also where nothing tracks connections


def _of(plane: PlaneRow) -> Iterator[Mode]:
    """Yield the modes of a plane: as it is on nodes, and as it is where it needs no more."""
    if plane.backend == _WITHOUT_CONNTRACK:
        yield Mode(plane.name, f"{plane.title}, connections not tracked", plane.backend, False)
        yield Mode(f"{plane.name}+ct", plane.title, plane.backend, True)
    else:
        yield Mode(plane.backend, plane.title, plane.backend, True)


MODES = (
    Mode(LIMIT, "no NAT, connections not tracked", None, False),
    Mode(REFERENCE, "no NAT", None, True),
    # A node that nobody marked is taken for one of iptables-nft, also by what shares its name.
    *(mode for backend in BACKENDS for mode in _of(rows_of(backend)[0])),
)


def chosen(names: Sequence[str]) -> list[Mode]:
    """Return the modes of these names in their order; all for none.

    Raises:
        UsageError: there is no such mode.
    """
    known = [mode.name for mode in MODES]
    for name in names:
        if name not in known:
            raise UsageError(f"there is no mode {name!r}", remedy=f"take of {', '.join(known)}")
    return [mode for mode in MODES if not names or mode.name in names]


SIZES = (3, 64, 1000, 10_000, 100_000)
"""Numbers of CIDRs for new flows and connections."""
EVERYTHING_AT = (64, 100_000)
"""Those for which all the rest is measured too."""
_LONGEST_CHAIN = 10_000


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured, and how long each workload runs.

    Attributes:
        rounds: how often each mode has its turn.
        sizes: numbers of CIDRs.
        everything_at: those of them with every workload.
        flows: new UDP flows a run.
        packets: of one flow, a run.
        seconds: of a run of wrk, iperf3 or sockperf.
    """

    rounds: int
    sizes: tuple[int, ...]
    everything_at: tuple[int, ...]
    flows: int = 100_000
    packets: int = 300_000
    seconds: float = 2.0


FULL = Effort(5, SIZES, EVERYTHING_AT)
QUICK = Effort(3, (64,), (), flows=50_000)


@dataclass(frozen=True, slots=True)
class Turn:
    """One mode with a policy of one size, measured in each round.

    Attributes:
        cidrs: how many; 0 where nothing masquerades.
        everything: all workloads take part, not those alone that always do.
    """

    mode: Mode
    cidrs: int
    everything: bool

    @property
    def title(self) -> str:
        """Mode and size, as progress shows them."""
        return f"{self.mode.name}, {self.cidrs:,} CIDRs" if self.mode.backend else self.mode.name


def turns(modes: Sequence[Mode], effort: Effort) -> Iterator[Turn]:
    """Yield what has its turn in each round, in order."""
    for mode in modes:
        if mode.backend is None:
            yield Turn(mode, 0, bool(effort.everything_at))
            continue
        for cidrs in effort.sizes:
            if not _too_long(mode, cidrs):
                yield Turn(mode, cidrs, cidrs in effort.everything_at)


def skipped(modes: Sequence[Mode], effort: Effort) -> list[str]:
    """Return what has no turn, and why, in sentences."""
    return [
        f"{mode.name} with {cidrs:,} CIDRs: a chain of so many rules takes minutes to load, and "
        "each new flow walks through all of it"
        for mode in modes
        for cidrs in effort.sizes
        if _too_long(mode, cidrs)
    ]


def _too_long(mode: Mode, cidrs: int) -> bool:
    chains = [plane.backend for plane in PLANES if not plane.any_size]
    return mode.backend in chains and cidrs > _LONGEST_CHAIN
