"""What may be compared: a document, the kernel as a backend reads it, or Cilium's maps.

Each kind of operand becomes a ``Side``: a label and a policy for each family.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ipmasq_agent.answers.compare import Side
from ipmasq_agent.answers.in_force import in_force
from ipmasq_agent.cli import wiring
from ipmasq_agent.cli.cilium_sides import CiliumSides
from ipmasq_agent.cli.options import Settings, split_configmap
from ipmasq_agent.cli.questions import here
from ipmasq_agent.config.assemble import assemble_family
from ipmasq_agent.config.keys import (
    EGRESS_INTERFACES,
    EXEMPT_NODE_IPS,
    POD_CIDRS,
    PROFILE,
    TUNNELLED,
)
from ipmasq_agent.config.model import AUTO, Config, Key
from ipmasq_agent.errors import SourceError, UsageError
from ipmasq_agent.planes import registry
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import Verdict
from ipmasq_agent.policy.facts import NODE_ADDRESSES
from ipmasq_agent.policy.model import Capabilities, FamilyPolicy

FORMS = "a document, kernel[:BACKEND], configmap:NAMESPACE/NAME[:KEY], cilium or cilium:FILE"


def sides(left: str, right: str, settings: Settings, cilium: CiliumSides) -> tuple[Side, Side]:
    """Return the sides that two operands name.

    A document that is compared with Cilium's map needs no facts that only bear on what is
    not in the map, and its profile tells how Cilium routes where nothing else does.

    Raises:
        UsageError: one names nothing that can be compared.
        AgentError: what one names cannot be read.
    """
    # How many entries a data plane can hold does not matter here.
    settings = replace(settings, flags=replace(settings.flags, cidr_limit=None))
    maps = [text for text in (left, right) if text.partition(":")[0] == "cilium"]
    documents_first = sorted({left, right}, key=lambda text: (text in maps, text != left))
    found = {text: _side(text, settings, cilium, beside_map=bool(maps)) for text in documents_first}
    return found[left], found[right]


def _side(text: str, settings: Settings, cilium: CiliumSides, *, beside_map: bool) -> Side:
    kind, colon, rest = text.partition(":")
    label = text
    if kind == "kernel":
        return _kernel(text, rest or "auto", settings)
    if kind == "cilium":
        return cilium.listing(text, rest) if colon else cilium.maps()
    if kind == "configmap":
        split_configmap(rest)
        settings = settings.naming(configmap=rest)
    elif text == "-" or os.path.lexists(text.removesuffix("/*")):
        label = "standard input" if text == "-" else text
        settings = settings.naming(text)
    else:
        # Elsewhere a missing document stands for the defaults. Here it is more likely a
        # slip of the pen, and the answer would not look like one.
        raise UsageError(f"{text!r} does not exist", remedy=f"name {FORMS}")
    return _document(label, settings, cilium if beside_map else None)


def _document(label: str, settings: Settings, beside: CiliumSides | None) -> Side:
    config = wiring.read_document(settings)
    notes: tuple[str, ...] = ()
    if beside is not None:
        if config[PROFILE] is not None:
            beside.supposed = "tunnel" if config[PROFILE] == TUNNELLED else "native"
        own: tuple[Key[Any], ...] = (POD_CIDRS, EGRESS_INTERFACES)
        config = _with(config, {key: None for key in own if config[key] is AUTO})
    try:
        facts = wiring.gather(settings, config)
    except SourceError as error:
        if beside is None or not config[EXEMPT_NODE_IPS]:
            raise
        kept = f"packets to {NODE_ADDRESSES.what} are kept, and not compared"
        notes = (f"{kept} ({error.message})",)
        config = _with(config, {EXEMPT_NODE_IPS: False})
        facts = wiring.gather(settings, config)
    policies = {f: assemble_family(config, f, Capabilities(), facts) for f in config.families}
    return Side(label, policies, notes=notes)


def _with(config: Config, values: Mapping[Key[Any], Any]) -> Config:
    return replace(config, written={**config.written, **values})


def _kernel(text: str, requested: str, settings: Settings) -> Side:
    """Return what the kernel does; where a backend is named, of what others have there.

    Raises:
        UsageError: there is no such backend.
        AgentError: what it holds cannot be read.
    """
    known = registry.choices()
    if requested not in known:
        raise UsageError(f"{text!r} names no backend", remedy=f"name one of {', '.join(known)}")
    policies: dict[Family, FamilyPolicy] = {}
    notes: list[str] = []
    with here(replace(settings, backend=requested), at_work=True) as node:
        for family in Family:
            hook, ours = node.hook(family), node.held(node.plane, family)
            own = node.plane.dialect.interpret(node.read(node.plane, family))
            kernel = in_force(own, hook if requested == "auto" else hook.around_ours())
            if ours is not None or kernel.policy.decisions.verdicts != {Verdict.NON_MASQUERADE}:
                policies[family] = kernel.policy
            notes += (f"for some packets {exception}" for exception in kernel.exceptions)
        label = f"kernel:{node.plane.name}"
    if not policies:
        notes.append("it masquerades nothing, and holds no rules of ours")
    return Side(label, policies, notes=tuple(notes))
