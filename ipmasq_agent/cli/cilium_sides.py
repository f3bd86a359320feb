"""Cilium's masquerading as a side of a comparison: its pinned maps, or a listing of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ipmasq_agent.answers.compare import Side
from ipmasq_agent.bpf import bpffs
from ipmasq_agent.cli import wiring
from ipmasq_agent.cli.options import Settings
from ipmasq_agent.errors import ConfigError, HostError, KernelReadError, SourceError, UsageError
from ipmasq_agent.planes.cilium import decide as cilium
from ipmasq_agent.planes.cilium import maps as bpf_maps
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.facts import NODE_ADDRESSES
from ipmasq_agent.policy.model import FamilyPolicy

CILIUM_CONFIG = "kube-system/cilium-config"
NO_CIDR = "none"
_NOT_COMPARED = (
    "not in the map, and not compared: Cilium masquerades packets of this node's pods only, "
    "and out of its devices only"
)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What Cilium leaves alone beside its map's entries, and what is to be said of it."""

    exempt: cilium.Exempt
    settings: dict[str, str]
    notes: tuple[str, ...]


class CiliumSides:
    """Reads what is Cilium's. What surrounds the map is asked for once.

    Args:
        settings: what the shared flags say.
        bpffs: where to look for the maps, instead of where a bpf file system is mounted.
        cidrs: the native-routing CIDRs as the user gives them; empty to ask the API.
        config: NAMESPACE/NAME of Cilium's ConfigMap; None for the usual one, which need not
            be there.
    """

    def __init__(
        self,
        settings: Settings,
        bpffs: str | None = None,
        cidrs: Iterable[str] = (),
        config: str | None = None,
    ) -> None:
        self.settings = settings
        self.bpffs = bpffs
        self.cidrs = tuple(cidrs)
        self.config = config

    def maps(self) -> Side:
        """Return what the pinned maps of this node decide.

        Raises:
            HostError: there is no bpf file system, or this process may not read it.
            KernelReadError: there is no such map, or it is not what it should be.
        """
        places = [Path(self.bpffs)] if self.bpffs else bpffs.mounts()
        policies: dict[Family, FamilyPolicy] = {}
        notes: list[str] = []
        for family, name in cilium.MAP_NAMES.items():
            path = bpf_maps.find(name, places)
            if path is None:
                continue
            held = bpf_maps.read_prefixes(path, family)
            policies[family] = cilium.policy_of(family, held.prefixes, self._around.exempt, name)
            if held.full:
                notes.append(
                    f"{path} is full with {len(held.prefixes)} entries: what did not fit was "
                    "left out without a word, so entries may be missing"
                )
        if not policies:
            raise _no_maps(places)
        return self._side("cilium", policies, notes)

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
        notes = []
        # A listing has both families and does not say which of them Cilium serves; its own
        # defaults put an entry into the map of each.
        families = {prefix.family for prefix in prefixes}
        if not families:
            families = {Family.IPV4}
            notes.append(f"{file} lists no entries: then Cilium masquerades every destination")
        exempt = self._around.exempt
        policies = {
            family: cilium.policy_of(family, prefixes, exempt, file)
            for family in Family
            if family in families
        }
        return self._side(label, policies, notes)

    def _side(self, label: str, policies: dict[Family, FamilyPolicy], notes: list[str]) -> Side:
        around = self._around
        notes += cilium.oddities(around.settings, list(policies))
        notes += around.notes
        notes.append(_NOT_COMPARED)
        return Side(label, policies, conditions_known=False, notes=tuple(notes))

    # -- what is not in the map ---------------------------------------------------------

    @cached_property
    def _around(self) -> Surroundings:
        notes: list[str] = []
        asked = self.config is not None or not self.cidrs
        settings = self._cilium_config(notes) if asked else {}
        routable = tuple(_given(self.cidrs)) if self.cidrs else self._routable(settings, notes)
        nodes: frozenset[tuple[Family, int]] = frozenset()
        if not cilium.masquerades_to_nodes(settings):
            nodes = self._nodes(notes)
        return Surroundings(cilium.Exempt(routable, nodes), settings, tuple(notes))

    def _cilium_config(self, notes: list[str]) -> dict[str, str]:
        from ipmasq_agent.sources.configmap_data import read_data

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
        try:
            routable = tuple(cilium.native_routing(settings))
        except ConfigError as error:
            raise SourceError(
                f"cilium-config: {error.message}", remedy="give it with --native-routing-cidr"
            ) from error
        shown = ", ".join(map(str, routable)) or NO_CIDR
        notes.append(f"native-routing CIDRs in {self.config or CILIUM_CONFIG}: {shown}")
        return routable

    def _nodes(self, notes: list[str]) -> frozenset[tuple[Family, int]]:
        try:
            known = (
                wiring.fact_source(self.settings)
                .gather(frozenset({NODE_ADDRESSES}))
                .get(NODE_ADDRESSES)
            )
            why = ""
        except SourceError as error:
            known, why = None, f" ({error.message})"
        if known is None:
            notes.append(
                f"it never masquerades packets to {NODE_ADDRESSES.what}, "
                f"which are not known here{why}"
            )
        return known or frozenset()


def _no_maps(places: list[Path]) -> HostError | KernelReadError:
    instead = "or compare with cilium:FILE, what `cilium-dbg bpf ipmasq list` printed"
    if not places:
        return HostError(
            "no bpf file system is mounted here, so Cilium's maps cannot be found",
            remedy=f"mount the node's {bpffs.USUAL} into this pod, {instead}",
        )
    names = " or ".join(cilium.MAP_NAMES.values())
    return KernelReadError(
        f"there is no map {names} in {', '.join(map(str, places))}: Cilium does not run "
        "here, or not with ipMasqAgent.enabled and bpf.masquerade",
        remedy=f"enable them, name the place with --bpffs, {instead}",
    )


def _given(texts: Iterable[str]) -> Iterator[Prefix]:
    for text in texts:
        if text == NO_CIDR:
            continue
        try:
            yield cilium.read_prefix(text)
        except ValueError as cause:
            raise UsageError(f"--native-routing-cidr: {text!r} {cause}") from cause
