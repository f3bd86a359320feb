"""Cilium's masquerading as a side of a comparison: its pinned maps, or a listing of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ipmasq_agent.answers.compare import Side
from ipmasq_agent.bpf import bpffs
from ipmasq_agent.cli import wiring
from ipmasq_agent.cli.options import Settings, parsed
from ipmasq_agent.errors import ConfigError, SourceError
from ipmasq_agent.planes.cilium import decide as cilium
from ipmasq_agent.planes.cilium.maps import read_maps
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.cidrs import parse_listed
from ipmasq_agent.policy.facts import NODE_ADDRESSES

CILIUM_CONFIG = "kube-system/cilium-config"
_GIVE = "give them with --native-routing-cidr"


@dataclass
class CiliumSides:
    """Reads what is Cilium's. What surrounds the map is asked for once.

    Attributes:
        settings: what the shared flags say.
        bpffs: where to look for the maps, instead of where a bpf file system is mounted.
        cidrs: the native-routing CIDRs as the user gives them; empty to ask the API.
        config: NAMESPACE/NAME of Cilium's ConfigMap; None for the usual one, which need not
            be there.
        routing: ``native`` or ``tunnel``, as the user gives it; None to ask the API.
        supposed: how it routes where nobody says so, by the profile of a document.
    """

    settings: Settings
    bpffs: str | None = None
    cidrs: tuple[str, ...] = ()
    config: str | None = None
    routing: str | None = None
    supposed: str | None = None
    _notes: list[str] = field(default_factory=list)  # on what surrounds the map

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
        policies = {
            family: cilium.policy_of(family, prefixes, self._exempt, name)
            for family, (prefixes, name) in held.items()
        }
        odd = cilium.oddities(self._told, list(policies))
        notes = (*notes, *odd, *self._notes, cilium.NOT_IN_THE_MAP)
        return Side(label, policies, conditions_known=False, notes=notes)

    # -- what is not in the map ---------------------------------------------------------

    @cached_property
    def _told(self) -> dict[str, str]:
        """What Cilium's ConfigMap says; nothing where it need not be asked, or is not there."""
        from ipmasq_agent.sources.configmap import read_data

        if self.config is None and self.cidrs:
            return {}
        namespace, _, name = (self.config or CILIUM_CONFIG).partition("/")
        try:
            return read_data(namespace, name, kubeconfig=self.settings.kubeconfig)
        except SourceError as error:
            if self.config is not None:
                raise
            self._notes.append(
                f"its native-routing CIDRs are taken as unset ({error.message}); {_GIVE}"
            )
            return {}

    @cached_property
    def _exempt(self) -> cilium.Exempt:
        """What Cilium leaves alone beside its entries."""
        told, notes, where = self._told, self._notes, self.config or CILIUM_CONFIG
        given = [text for text in self.cidrs if text != "none"]
        routable = [parsed("--native-routing-cidr", parse_listed, text) for text in given]
        if told and not self.cidrs:
            routable = _read(cilium.native_routing_key, told)
            shown = ", ".join(map(str, routable)) or "none"
            notes.append(f"native-routing CIDRs in {where}: {shown}")
        routing = self.routing
        if routing is None and told:
            routing = "tunnel" if cilium.tunnels(told) else "native"
            notes.append(f"routing-mode in {where}: {routing}")
        elif routing is None:
            routing = self.supposed or ("native" if given else "tunnel")
            notes.append(f"its routing-mode is taken for {routing}; give it with --routing-mode")
        nodes: frozenset[tuple[Family, int]] = frozenset()
        tunnelled: list[Prefix] = []
        if routing == "tunnel":
            tunnelled = _read(cilium.pool_key, told)
            if not tunnelled:
                notes.append("packets to pods of other nodes go through its tunnel, not compared")
        elif not cilium.masquerades_to_nodes(told):
            nodes = self._nodes()
        return cilium.Exempt(tuple(routable), nodes, tuple(tunnelled))

    def _nodes(self) -> frozenset[tuple[Family, int]]:
        known, why = None, ""
        try:
            facts = wiring.fact_source(self.settings).gather(frozenset({NODE_ADDRESSES}))
            known = facts.get(NODE_ADDRESSES)
        except SourceError as error:
            why = f" ({error.message})"
        if known is None:
            self._notes.append(
                f"it never masquerades packets to {NODE_ADDRESSES.what}, "
                f"which are not known here{why}"
            )
        return known or frozenset()


def _read(key_of: Callable[[Family], str], told: Mapping[str, str]) -> list[Prefix]:
    try:
        return list(cilium.prefixes_at(told, key_of))
    except ConfigError as error:
        raise SourceError(f"cilium-config: {error.message}", remedy=_GIVE) from error
