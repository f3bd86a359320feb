"""Gathers what ``doctor`` judges by. Nothing is changed by looking, and no table is made."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.agent.snat import Replies, replies
from ipmasq_agent.answers.doctor.facts import Device, Node, Probing, Role
from ipmasq_agent.bpf import bpffs
from ipmasq_agent.cli.options import Settings, parsed
from ipmasq_agent.cli.questions import Here, here
from ipmasq_agent.cli.wiring import try_intent
from ipmasq_agent.errors import AgentError, ConfigError, HostError, UsageError
from ipmasq_agent.host import probe
from ipmasq_agent.host.devices import egress_devices, leads_to_pods, pod_networks
from ipmasq_agent.host.routes import dropped_replies
from ipmasq_agent.host.sysctl import connections, setting
from ipmasq_agent.netlink.rt import Link, list_addresses, list_links, list_routes, tunnel_ends
from ipmasq_agent.planes import registry
from ipmasq_agent.planes.cilium.decide import MAP_NAMES
from ipmasq_agent.planes.cilium.maps import BELOW
from ipmasq_agent.planes.hook.read import first_of_nat_chain, populated
from ipmasq_agent.planes.rules.owners import owner_of_bridge
from ipmasq_agent.planes.rules.rule import Rule
from ipmasq_agent.policy.addresses import Family, parse_address
from ipmasq_agent.policy.decisions import Verdict
from ipmasq_agent.policy.facts import DroppedReply, PodNetwork
from ipmasq_agent.policy.flows import End, parse_end
from ipmasq_agent.policy.model import FamilyPolicy

# Where Cilium's agent keeps what it was configured with, for who restores its endpoints.
CILIUM_STATE = Path("/var/run/cilium/state/agent-runtime-config.json")
_METADATA = parse_address("169.254.169.254")[1]
_SAMPLES = 64  # destinations, of those that see pod addresses
_PODS = 4  # networks of pods, of which a node may have one for each pod


def gather_node(settings: Settings, probes: Sequence[str]) -> tuple[Node, list[str]]:
    """Return what is known of this node, and why the rest is not known.

    Raises:
        UsageError: flags, the document's name or an address to probe cannot be used.
    """
    like = "10.10.1.200 or 10.10.1.200:443"
    targets = {text: parsed("--probe", parse_end, text, like) for text in probes}
    facts: dict[str, Any] = {"kernel": _kernel(), "conntrack": connections()}
    if settings.agent is not None:
        told = settings.agent.status.look
        facts |= {"contested": told.contested, "failing": told.errors}
    unseen: list[str] = []

    @contextmanager
    def looking(at: str) -> Iterator[None]:
        try:
            yield
        except UsageError:
            raise
        except AgentError as error:
            unseen.append(f"{at}: {error}")

    intent, refused = try_intent(settings)
    if refused is not None:
        problems = refused.problems if isinstance(refused, ConfigError) else (refused.message,)
        facts["refused"] = "\n".join(problems), refused.remedy
    facts["families"] = families = settings.families
    facts["forwarding"] = {
        Family.IPV4: setting("ipv4/ip_forward") != 0,
        Family.IPV6: setting("ipv6/conf/all/forwarding") != 0,
    }
    with looking("devices and routes"):
        facts |= _network(families)
    with looking("the data plane"), here(settings, intent) as found:
        facts |= _rules(found, settings, intent)
        unseen += found.unread
    with looking("iptables"):
        facts["iptables"] = {family: populated(family) for family in families}
        facts["services"] = {family: _service_rules(family) for family in families}
    with looking("replies to snatAddress"):
        answered = replies(intent.config) if intent is not None else Replies()
        facts |= {"unanswered": answered.unanswered, "doubtful": answered.doubtful}
    facts["cilium"] = tuple(_cilium())
    node = Node(**facts)
    policy = node.policies.get(Family.IPV4)
    if policy is not None:
        with looking("the way of replies"):
            facts["dropped"] = tuple(_dropped(node, policy))
    sent: list[Probing] = []
    for text, target in targets.items():
        with looking(f"--probe {text}"):
            sent.append(_probe(node, *target))
    facts["probes"] = tuple(sent)
    return Node(**facts), unseen


def _kernel() -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


# -- rules ------------------------------------------------------------------------------


def _rules(node: Here, settings: Settings, intent: Intent | None) -> dict[str, Any]:
    """Return what stands at the hook, what is ours, and what the document asks for."""
    plane, families = node.plane, settings.families
    return {
        "backend": plane.name,
        "oldest": max(row.oldest for row in registry.rows_of(plane.name)),
        "place": settings.placement.chain,
        "hooks": {f: node.hook(f) for f in families},
        "policies": {f: intent.policy(plane, f) for f in families} if intent else {},
        "own": {f: plane.dialect.describe(node.read(plane, f)) for f in families},
        "left": node.left,
    }


def _service_rules(family: Family) -> Sequence[Rule]:
    """Return kube-proxy's rules for the first of the services in its chain of all."""
    for rule in first_of_nat_chain(family, "KUBE-SERVICES"):
        if (rule.target or "").startswith("KUBE-SVC-"):
            return first_of_nat_chain(family, rule.target or "")
    return ()


def _cilium() -> Iterator[str]:
    """Yield what tells that Cilium's programs masquerade here."""
    try:
        state = json.loads(CILIUM_STATE.read_text())
    except (OSError, ValueError, RecursionError):  # Cilium does not run here, or unseen
        state = {}
    if not isinstance(state, dict) or (state and not state.get("EnableBPFMasquerade")):
        return
    for name in ("EnableIPv4Masquerade", "EnableIPv6Masquerade"):
        if state.get(name):
            yield f"{CILIUM_STATE}: EnableBPFMasquerade, {name}"
    for root in bpffs.mounts():
        for place in (root / BELOW, root):
            yield from (str(p) for n in MAP_NAMES.values() if os.path.exists(p := place / n))


# -- devices and routes -------------------------------------------------------------------


def _network(families: Sequence[Family]) -> dict[str, Any]:
    links, egress = list_links(), egress_devices()
    pods = pod_networks(links, lambda name: owner_of_bridge(name) is not None)
    # Only where rules are asked about bridged frames does the bridge itself send them back.
    asked = any(setting(f"bridge/bridge-nf-call-ip{six}tables") for six in ("", "6"))
    return {
        "devices": tuple(_device(link, links, egress, pods, asked=asked) for link in links),
        "pods": tuple(one for one in pods if one.prefix.family in families),
        "addresses": frozenset((one.family, one.address) for one in list_addresses()),
        "tunnel_ends": frozenset(_ends(links)),
        "metadata": tuple(_to_metadata(links)),
    }


def _ends(links: Iterable[Link]) -> Iterator[tuple[Family, int]]:
    if any(link.kind == "vxlan" for link in links):
        yield from tunnel_ends()
    yield from (link.remote for link in links if link.remote is not None)


def _device(
    link: Link,
    links: Sequence[Link],
    egress: Sequence[str],
    pods: Sequence[PodNetwork],
    *,
    asked: bool,
) -> Device:
    here = {one.here for one in pods if one.device == link.name}
    role, lower = Role.OTHER, tuple[str, ...]()
    if link.name in egress:
        role = Role.OUT
    elif here:
        role = Role.PODS if True in here else Role.OVERLAY
    if link.kind == "vxlan":
        lower = tuple(one.name for one in links if one.number == link.lower) or tuple(egress)
    ports = [one for one in links if one.master == link.number and leads_to_pods(one)]
    stuck = [port.name for port in ports if asked and not port.hairpin]
    forwards = setting(f"ipv4/conf/{link.name}/forwarding") != 0
    return Device(link.name, link.mtu, role, lower, tuple(stuck), forwards)


def _to_metadata(links: Iterable[Link]) -> Iterator[str]:
    """Yield routes that lead to the metadata service in particular."""
    names = {link.number: link.name for link in links}
    family = Family.IPV4
    for route in list_routes(family):
        if route.length >= 16 and (route.first ^ _METADATA) >> 32 - route.length == 0:
            for device, gateway in route.hops.items():
                via = f" via {family.show(gateway)}" if gateway is not None else ""
                to = f"{family.show(route.first)}/{route.length}"
                yield f"{to}{via} dev {names.get(device)}"


def _dropped(node: Node, policy: FamilyPolicy) -> Iterator[DroppedReply]:
    """Return what the reverse path filter drops of replies from destinations that see pods."""
    numbers = {link.name: link.number for link in list_links()}
    spans = list(policy.decisions.stretches(Verdict.NON_MASQUERADE))[:_SAMPLES]
    routes = [route.first + 1 for route in list_routes(Family.IPV4) if route.length][:_SAMPLES]
    kept = [a for a in routes if policy.decisions.decide(a).verdict is Verdict.NON_MASQUERADE]
    destinations = [min(first + 1, last) for first, last in spans] + kept
    here = [one for one in node.pods if one.here and one.prefix.family is Family.IPV4]
    pods = [
        (min(one.prefix.first + 2, one.prefix.last), numbers.get(one.device, 0))
        for one in here[:_PODS]
    ]
    return dropped_replies(pods, destinations)


# -- sending ------------------------------------------------------------------------------


def _probe(node: Node, family: Family, end: End) -> Probing:
    address, port = end.address, end.port or None
    target = family.show(address) if port is None else f"{family.show(address)} port {port}"
    here = node.pod_networks(family, here=True)
    if not here:
        raise HostError(
            f"no {family.value} pods are on this node, whose address could be taken",
            remedy="start a pod here first, or ask on another node",
        )
    click.echo(f"sending to {target} ...", err=True)
    inside = [a for f, a in node.addresses if f is family and any(p.holds(a) for p in here)]
    pod = min(inside, default=min(here[0].first + 2, here[0].last))
    own = probe.own_address(family, address)
    sent, from_node = probe.ask(family, pod, address, port), probe.ask(family, own, address, port)
    if sent.translated:
        click.echo(f"from {family.show(pod)}: masqueraded, so replies find the node", err=True)
    return Probing(
        target,
        sent.translated,
        family.show(pod),
        sent.answered,
        family.show(own),
        from_node.answered,
    )
