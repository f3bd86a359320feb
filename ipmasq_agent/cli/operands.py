"""What may be compared: a document, the kernel as a backend reads it, or Cilium's maps.

Each kind of operand becomes a ``Side``: a label and a policy for each family.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ipmasq_agent.answers.compare import Side
from ipmasq_agent.answers.in_force import in_force
from ipmasq_agent.cli import wiring
from ipmasq_agent.cli.cilium_sides import CiliumSides
from ipmasq_agent.cli.options import Settings, split_configmap
from ipmasq_agent.config.assemble import assemble_family
from ipmasq_agent.config.keys import (
    EGRESS_INTERFACES,
    EXEMPT_NODE_IPS,
    POD_CIDRS,
    PROFILE,
    TUNNELLED,
)
from ipmasq_agent.config.model import AUTO, Config, Key
from ipmasq_agent.errors import AgentError, SourceError, UsageError
from ipmasq_agent.host.devices import egress_devices
from ipmasq_agent.planes import detect, registry
from ipmasq_agent.planes.hook.read import read_hook
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import Verdict
from ipmasq_agent.policy.facts import NODE_ADDRESSES
from ipmasq_agent.policy.model import Capabilities, FamilyPolicy

FORMS = "a document, kernel[:BACKEND], configmap:NAMESPACE/NAME[:KEY], cilium or cilium:FILE"


class Operands:
    """Reads operands.

    Args:
        settings: what the shared flags say.
        cilium: reads what is Cilium's.
    """

    def __init__(self, settings: Settings, cilium: CiliumSides) -> None:
        # How many entries a data plane can hold does not matter here.
        self.settings = replace(settings, flags=replace(settings.flags, cidr_limit=None))
        self.cilium = cilium
        self.beside_map = False

    def both(self, left: str, right: str) -> tuple[Side, Side]:
        """Return the sides that two operands name.

        A document that is compared with Cilium's map needs no facts that only bear on what is
        not in the map, and its profile tells how Cilium routes where nothing else does.

        Raises:
            UsageError: one names nothing that can be compared.
            AgentError: what one names cannot be read.
        """
        maps = [text for text in (left, right) if text.partition(":")[0] == "cilium"]
        self.beside_map = bool(maps)
        documents_first = sorted({left, right}, key=lambda text: (text in maps, text != left))
        sides = {text: self.read(text) for text in documents_first}
        return sides[left], sides[right]

    def read(self, text: str) -> Side:
        """Return the side that an operand names.

        Raises:
            UsageError: it names nothing that can be compared.
            AgentError: what it names cannot be read.
        """
        kind, colon, rest = text.partition(":")
        readers: dict[str, Callable[[], Side]] = {
            "kernel": lambda: _kernel(text, rest or "auto", self.settings),
            "cilium": lambda: self.cilium.listing(text, rest) if colon else self.cilium.maps(),
            "configmap": lambda: self._configmap(text, rest),
        }
        return readers[kind]() if kind in readers else self._file(text)

    def _file(self, text: str) -> Side:
        if text != "-" and not os.path.lexists(text.removesuffix("/*")):
            # Elsewhere a missing document stands for the defaults. Here it is more likely a
            # slip of the pen, and the answer would not look like one.
            raise UsageError(f"{text!r} does not exist", remedy=f"name {FORMS}")
        label = "standard input" if text == "-" else text
        return self._document(label, self.settings.naming(text))

    def _configmap(self, text: str, rest: str) -> Side:
        split_configmap(rest)
        return self._document(text, self.settings.naming(configmap=rest))

    def _document(self, label: str, settings: Settings) -> Side:
        config = wiring.read_document(settings)
        notes: tuple[str, ...] = ()
        if self.beside_map:
            if config[PROFILE] is not None:
                self.cilium.supposed = "tunnel" if config[PROFILE] == TUNNELLED else "native"
            own: tuple[Key[Any], ...] = (POD_CIDRS, EGRESS_INTERFACES)
            config = _with(config, {key: None for key in own if config[key] is AUTO})
        try:
            facts = wiring.gather(settings, config)
        except SourceError as error:
            if not (self.beside_map and config[EXEMPT_NODE_IPS]):
                raise
            kept = f"packets to {NODE_ADDRESSES.what} are kept, and not compared"
            notes = (f"{kept} ({error.message})",)
            config = _with(config, {EXEMPT_NODE_IPS: False})
            facts = wiring.gather(settings, config)
        policies = {
            family: assemble_family(config, family, Capabilities(), facts)
            for family in config.families
        }
        return Side(label, policies, notes=notes)


def _with(config: Config, values: Mapping[Key[Any], Any]) -> Config:
    return replace(config, written={**config.written, **values})


def _kernel(text: str, requested: str, settings: Settings) -> Side:
    known = registry.choices()
    if requested not in known:
        raise UsageError(f"{text!r} names no backend", remedy=f"name one of {', '.join(known)}")
    chosen, _ = detect.choose(requested)
    if requested != "auto":
        return _held(chosen, settings.placement)
    if not _tells(_held(chosen, settings.placement)):
        # The rules may be another data plane's, of an agent that was told to use it.
        for name in detect.holders(settings.placement):
            with contextlib.suppress(AgentError):  # the one that was chosen could be read
                if _tells(_held(name, settings.placement)):
                    chosen = name
                    break
    return _held(chosen, settings.placement, alone=False)


def _held(name: str, placement: Placement, *, alone: bool = True) -> Side:
    """Return what the kernel holds, as one backend reads it.

    Args:
        name: which backend.
        placement: where our rules are.
        alone: leave out what others have at the hook but for the chains around ours.
    """
    policies: dict[Family, FamilyPolicy] = {}
    notes: list[str] = []
    backend = detect.make(name, placement)
    try:
        egress = egress_devices()
        for family in Family:
            state = backend.read(family)
            hook = read_hook(family, backend.our_base(family), egress)
            kernel = in_force(
                backend.dialect.interpret(state), hook.around_ours() if alone else hook
            )
            idle = kernel.policy.decisions.verdicts == {Verdict.NON_MASQUERADE}
            if backend.dialect.describe(state) or not idle:
                policies[family] = kernel.policy
            notes += (f"for some packets {exception}" for exception in kernel.exceptions)
    finally:
        backend.close()
    if not policies:
        notes.append("it masquerades nothing, and holds no rules of ours")
    return Side(f"kernel:{name}", policies, notes=tuple(notes))


def _tells(side: Side) -> bool:
    """Whether a backend found something, and could read all of it."""
    verdicts = [policy.decisions.verdicts for policy in side.policies.values()]
    return bool(verdicts) and not any(Verdict.UNKNOWN in each for each in verdicts)
