"""Cilium's masquerading as a side of a comparison: its pinned maps, or a listing of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from ipmasq_agent.answers.compare import Side
from ipmasq_agent.bpf import bpffs
from ipmasq_agent.cli import wiring
from ipmasq_agent.cli.options import Settings
from ipmasq_agent.errors import ConfigError, SourceError, UsageError
from ipmasq_agent.planes.cilium import decide as cilium
from ipmasq_agent.planes.cilium.maps import read_maps
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.cidrs import parse_listed
from ipmasq_agent.policy.facts import NODE_ADDRESSES

CILIUM_CONFIG = "kube-system/cilium-config"
NO_CIDR = "none"


class CiliumSides:
    """Reads what is Cilium's. What surrounds the map is asked for once.

    Args:
        settings: what the shared flags say.
        bpffs: where to look for the maps, instead of where a bpf file system is mounted.
        cidrs: the native-routing CIDRs as the user gives them; empty to ask the API.
        config: NAMESPACE/NAME of Cilium's ConfigMap; None for the usual one, which need not
            be there.
        routing: ``native`` or ``tunnel``, as the user gives it; None to ask the API.

    Attributes:
        supposed: how it routes where nobody says so, by the profile of a document.
    """

    def __init__(
        self,
        settings: Settings,
        bpffs: str | None = None,
        cidrs: Iterable[str] = (),
        config: str | None = None,
        routing: str | None = None,
    ) -> None:
        self.settings = settings
        self.bpffs = bpffs
        self.cidrs = tuple(cidrs)
        self.config = config
        self.routing = routing
        self.supposed: str | None = None

    def maps(self) -> Side:
        """Return what the pinned maps of this node decide.

        Raises:
            HostError: there is no bpf file system, or this process may not read it.
            KernelReadError: there is no such map, or it is not what it should be.
        """
        found = read_maps([Path(self.bpffs)] if self.bpffs else bpffs.mounts())
        held = {family: (one.prefixes, one.path.name) for family, one in found.items()}
        return self._side("cilium", held, [one.overflow for one in found.values() if one.full])

    def listing(self, label: str, file: str) -> Side:
        """Return what Cilium decides by what ``cilium-dbg bpf ipmasq list`` printed.

        Raises:
            SourceError: the file cannot be read.
            ConfigError: it is no such listing.
        """
        try:
            text = Path(file).read_text(encoding="utf-8", errors="replace")
        except OSError as cause:
            raise SourceError(
                f"{file or 'a file without a name'} cannot be read: {cause.strerror}",
                remedy="write it with `cilium-dbg bpf ipmasq list > FILE`",
            ) from cause
        prefixes = cilium.parse_listing(text, file)
        # A listing has both families and does not say which of them Cilium serves; its own
        # defaults put an entry into the map of each.
        listed = {prefix.family for prefix in prefixes} or {Family.IPV4}
        held = {family: (prefixes, file) for family in Family if family in listed}
        empty = f"{file} lists no entries: then Cilium masquerades every destination"
        return self._side(label, held, [] if prefixes else [empty])

    def _side(
        self,
        label: str,
        held: Mapping[Family, tuple[Sequence[Prefix], str]],
        notes: Iterable[str],
    ) -> Side:
        exempt, settings, others = self._around
        policies = {
            family: cilium.policy_of(family, prefixes, exempt, name)
            for family, (prefixes, name) in held.items()
        }
        odd = cilium.oddities(settings, list(policies))
        notes = (*notes, *odd, *others, cilium.NOT_IN_THE_MAP)
        return Side(label, policies, conditions_known=False, notes=notes)

    # -- what is not in the map ---------------------------------------------------------

    @cached_property
    def _around(self) -> tuple[cilium.Exempt, Mapping[str, str], Sequence[str]]:
        """What Cilium leaves alone beside its entries, its settings, and what to say of both."""
        notes: list[str] = []
        asked = self.config is not None or not self.cidrs
        settings = self._cilium_config(notes) if asked else {}
        routable = tuple(_given(self.cidrs)) if self.cidrs else self._routable(settings, notes)
        nodes: frozenset[tuple[Family, int]] = frozenset()
        tunnelled: tuple[Prefix, ...] = ()
        if self._tunnels(settings, notes):
            tunnelled = self._read(cilium.pool_key, settings)
            if not tunnelled:
                notes.append("packets to pods of other nodes go through its tunnel, not compared")
        elif not cilium.masquerades_to_nodes(settings):
            nodes = self._nodes(notes)
        return cilium.Exempt(routable, nodes, tunnelled), settings, notes

    def _tunnels(self, settings: Mapping[str, str], notes: list[str]) -> bool:
        """Whether it routes through a tunnel; ``notes`` get how that is known."""
        routing = self.routing
        if routing is None and settings:
            routing = "tunnel" if cilium.tunnels(settings) else "native"
            notes.append(f"routing-mode in {self.config or CILIUM_CONFIG}: {routing}")
        elif routing is None:
            routable = any(text != NO_CIDR for text in self.cidrs)
            routing = self.supposed or ("native" if routable else "tunnel")
            notes.append(f"its routing-mode is taken for {routing}; give it with --routing-mode")
        return routing == "tunnel"

    def _cilium_config(self, notes: list[str]) -> dict[str, str]:
        from ipmasq_agent.sources.configmap import read_data

        namespace, _, name = (self.config or CILIUM_CONFIG).partition("/")
        try:
            return read_data(namespace, name, kubeconfig=self.settings.kubeconfig)
        except SourceError as error:
            if self.config is not None:
                raise
            notes.append(
                f"its native-routing CIDRs are taken as unset ({error.message}); give them "
                "with --native-routing-cidr"
            )
            return {}

    def _routable(self, settings: dict[str, str], notes: list[str]) -> tuple[Prefix, ...]:
        if not settings:
            return ()
        routable = self._read(cilium.native_routing_key, settings)
        shown = ", ".join(map(str, routable)) or NO_CIDR
        notes.append(f"native-routing CIDRs in {self.config or CILIUM_CONFIG}: {shown}")
        return routable

    @staticmethod
    def _read(key_of: Callable[[Family], str], settings: Mapping[str, str]) -> tuple[Prefix, ...]:
        try:
            return tuple(cilium.prefixes_at(settings, key_of))
        except ConfigError as error:
            raise SourceError(
                f"cilium-config: {error.message}", remedy="give it with --native-routing-cidr"
            ) from error

    def _nodes(self, notes: list[str]) -> frozenset[tuple[Family, int]]:
        known, why = None, ""
        try:
            facts = wiring.fact_source(self.settings).gather(frozenset({NODE_ADDRESSES}))
            known = facts.get(NODE_ADDRESSES)
        except SourceError as error:
            why = f" ({error.message})"
        if known is None:
            notes.append(
                f"it never masquerades packets to {NODE_ADDRESSES.what}, "
                f"which are not known here{why}"
            )
        return known or frozenset()


def _given(texts: Iterable[str]) -> Iterator[Prefix]:
    for text in texts:
        if text == NO_CIDR:
            continue
        try:
            yield parse_listed(text)
        except ValueError as cause:
            raise UsageError(f"--native-routing-cidr: {text!r} {cause}") from cause
