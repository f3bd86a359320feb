"""What may be compared: a document, the kernel as a backend reads it, or Cilium's maps.

Each kind of operand becomes a ``Side``: a label and a policy for each family.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace

from ipmasq_agent.answers.compare import Side
from ipmasq_agent.answers.in_force import in_force
from ipmasq_agent.cli.cilium_sides import CiliumSides
from ipmasq_agent.cli.options import Settings, split_configmap
from ipmasq_agent.cli.wiring import read_intent
from ipmasq_agent.config.assemble import assemble_family
from ipmasq_agent.errors import AgentError, UsageError
from ipmasq_agent.host.devices import egress_devices
from ipmasq_agent.planes import detect, registry
from ipmasq_agent.planes.hook.read import read_hook
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import Verdict
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
        return _document(label, replace(self.settings, config=text))

    def _configmap(self, text: str, rest: str) -> Side:
        split_configmap(rest)
        return _document(text, replace(self.settings, configmaps=(rest,), named=True))


def _document(label: str, settings: Settings) -> Side:
    intent = read_intent(settings)
    policies = {
        family: assemble_family(intent.config, family, Capabilities(), intent.facts)
        for family in intent.config.families
    }
    return Side(label, policies)


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
