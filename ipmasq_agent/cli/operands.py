"""What may be compared: a document, the kernel as a backend reads it, or Cilium's maps.

Each kind of operand becomes a ``Side``: a label and a policy for each family.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ipmasq_agent.answers.compare import Side
from ipmasq_agent.answers.explain import rule_text
from ipmasq_agent.backends import detect
from ipmasq_agent.cli.options import Settings, split_configmap
from ipmasq_agent.cli.wiring import read_document
from ipmasq_agent.dialects import cilium
from ipmasq_agent.errors import ConfigError, HostError, KernelReadError, SourceError, UsageError
from ipmasq_agent.host import bpf_maps
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.assemble import assemble_family
from ipmasq_agent.policy.decisions import Verdict
from ipmasq_agent.policy.model import Capabilities, FamilyPolicy

CILIUM_CONFIG = "kube-system/cilium-config"
NO_CIDR = "none"
# Where Cilium pins its maps, below the bpf file system.
CILIUM_MAPS = Path("tc/globals")
FORMS = "a document, kernel[:BACKEND], configmap:NAMESPACE/NAME[:KEY], cilium or cilium:FILE"


@dataclass(frozen=True, slots=True)
class RoutableCidrs:
    """Cilium's native-routing CIDRs, and what is to be said of where they come from."""

    prefixes: tuple[Prefix, ...]
    notes: tuple[str, ...]
    settings: dict[str, str]


class Operands:
    """Reads operands. What several of them need is asked for once.

    Args:
        settings: what the shared flags say.
        bpffs: where to look for Cilium's maps, instead of where a bpf file system is.
        cidrs: the native-routing CIDRs as the user gives them; empty to ask the API.
        cilium_config: NAMESPACE/NAME of Cilium's ConfigMap; None for the usual one, which
            need not be there.
    """

    def __init__(
        self,
        settings: Settings,
        bpffs: str | None = None,
        cidrs: Iterable[str] = (),
        cilium_config: str | None = None,
    ) -> None:
        self.settings = settings
        self.bpffs = bpffs
        self.cidrs = tuple(cidrs)
        self.cilium_config = cilium_config

    def read(self, text: str) -> Side:
        """Return the side that an operand names.

        Raises:
            UsageError: it names nothing that can be compared.
            AgentError: what it names cannot be read.
        """
        kind, _, rest = text.partition(":")
        readers: dict[str, Callable[[str, str], Side]] = {
            "kernel": self._kernel,
            "cilium": self._cilium,
            "configmap": self._configmap,
        }
        return readers[kind](text, rest) if kind in readers else self._file(text)

    # -- documents ----------------------------------------------------------------------

    def _file(self, text: str) -> Side:
        if text != "-" and not os.path.lexists(text):
            # Elsewhere a missing document stands for the defaults. Here it is more likely a
            # slip of the pen, and the answer would look as if it were none.
            raise UsageError(f"{text!r} does not exist", remedy=f"name {FORMS}")
        return self._document(text, replace(self.settings, config=text))

    def _configmap(self, text: str, rest: str) -> Side:
        split_configmap(rest)
        return self._document(text, replace(self.settings, configmap=rest))

    def _document(self, label: str, settings: Settings) -> Side:
        # How many entries a data plane can hold is no matter here.
        settings = replace(settings, flags=replace(settings.flags, cidr_limit=None))
        wish = read_document(settings).wish(settings.flags)
        policies = {
            family: assemble_family(wish, family, Capabilities()) for family in wish.families
        }
        return Side("standard input" if label == "-" else label, policies)

    # -- the kernel ---------------------------------------------------------------------

    def _kernel(self, text: str, rest: str) -> Side:
        requested = rest or "auto"
        known = ("auto", "iptables", *detect.BACKENDS)
        if requested not in known:
            raise UsageError(f"{text!r} names no backend", remedy=f"name one of {', '.join(known)}")
        name, _ = detect.choose(requested)
        policies: dict[Family, FamilyPolicy] = {}
        notes: list[str] = []
        backend = detect.make(name, self.settings.placement)
        try:
            for family in Family:
                state = backend.read(family)
                kernel = backend.interpret(state)
                shape = kernel.policy.decisions.shape()
                if backend.describe(state) or shape != ((0, Verdict.NON_MASQUERADE),):
                    policies[family] = kernel.policy
                notes += (f"for some packets {exception}" for exception in kernel.exceptions)
        finally:
            backend.close()
        if not policies:
            notes.append("it masquerades nothing, and holds no rules of ours")
        return Side(f"kernel:{name}", policies, notes=tuple(notes), show=rule_text)

    # -- Cilium -------------------------------------------------------------------------

    def _cilium(self, text: str, rest: str) -> Side:
        if text == "cilium":
            return self._cilium_maps()
        return self._cilium_listing(text, rest)

    def _cilium_maps(self) -> Side:
        places = [Path(self.bpffs)] if self.bpffs else bpf_maps.mounts()
        policies: dict[Family, FamilyPolicy] = {}
        notes: list[str] = []
        for family, name in cilium.MAP_NAMES.items():
            path = bpf_maps.find(name, places, CILIUM_MAPS)
            if path is None:
                continue
            held = bpf_maps.read_prefixes(path, family)
            policies[family] = cilium.policy_of(
                family, held.prefixes, self._routable.prefixes, name
            )
            if held.full:
                notes.append(
                    f"{path} is full with {len(held.prefixes)} entries: what did not fit was "
                    "left out without a word, so entries may be missing"
                )
        if not policies:
            raise self._no_maps(places)
        return self._cilium_side("cilium", policies, notes)

    def _no_maps(self, places: list[Path]) -> HostError | KernelReadError:
        instead = "or compare with cilium:FILE, what `cilium-dbg bpf ipmasq list` printed"
        if not places:
            return HostError(
                "no bpf file system is mounted here, so Cilium's maps cannot be found",
                remedy=f"mount the node's {bpf_maps.BPFFS} into this pod, {instead}",
            )
        names = " or ".join(cilium.MAP_NAMES.values())
        return KernelReadError(
            f"there is no map {names} in {', '.join(map(str, places))}: Cilium does not run "
            "here, or not with ipMasqAgent.enabled and bpf.masquerade",
            remedy=f"enable them, name the place with --bpffs, {instead}",
        )

    def _cilium_listing(self, text: str, file: str) -> Side:
        try:
            listing = Path(file).read_text(encoding="utf-8", errors="replace")
        except OSError as cause:
            raise SourceError(
                f"{file or 'a file without a name'} cannot be read: {cause.strerror}",
                remedy="write it with `cilium-dbg bpf ipmasq list > FILE`",
            ) from cause
        prefixes = cilium.parse_listing(listing, file)
        notes = []
        # A listing has both families and does not say which of them Cilium serves; its own
        # defaults put an entry into the map of each.
        families = {prefix.family for prefix in prefixes}
        if not families:
            families = {Family.IPV4}
            notes.append(f"{file} lists no entries: then Cilium masquerades every destination")
        routable = self._routable.prefixes
        policies = {
            f: cilium.policy_of(f, prefixes, routable, file) for f in Family if f in families
        }
        return self._cilium_side(text, policies, notes)

    def _cilium_side(
        self, label: str, policies: dict[Family, FamilyPolicy], notes: list[str]
    ) -> Side:
        routable = self._routable
        notes += cilium.oddities(routable.settings, list(policies))
        notes += routable.notes
        notes.append(
            "not in the map, and not compared: Cilium masquerades packets of this node's pods "
            "only, out of its devices only, and never those to other nodes of the cluster"
        )
        return Side(label, policies, conditions_known=False, notes=tuple(notes))

    @cached_property
    def _routable(self) -> RoutableCidrs:
        """The native-routing CIDRs: the user's, else those of Cilium's ConfigMap."""
        if self.cidrs:
            return RoutableCidrs(tuple(_given(self.cidrs)), (), {})
        from ipmasq_agent.sources.configmap_data import read_data

        named = self.cilium_config or CILIUM_CONFIG
        namespace, _, name = named.partition("/")
        try:
            data = read_data(namespace, name, kubeconfig=self.settings.kubeconfig)
            prefixes = tuple(cilium.native_routing(data))
        except (SourceError, ConfigError) as error:
            if self.cilium_config is not None:
                raise
            note = (
                f"its native-routing CIDRs are taken as unset, as ConfigMap {named} cannot be "
                f"had ({error.message}); give them with --native-routing-cidr"
            )
            return RoutableCidrs((), (note,), {})
        shown = ", ".join(map(str, prefixes)) or NO_CIDR
        return RoutableCidrs(prefixes, (f"native-routing CIDRs in {named}: {shown}",), data)


def _given(texts: Iterable[str]) -> Iterable[Prefix]:
    for text in texts:
        if text == NO_CIDR:
            continue
        try:
            yield cilium.read_prefix(text)
        except ValueError as cause:
            raise UsageError(f"--native-routing-cidr: {text!r} {cause}") from cause
