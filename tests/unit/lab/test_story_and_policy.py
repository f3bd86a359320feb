"""What the story expects is what its documents mean, and each of their keys matters.

The story is played on a kernel elsewhere. Here each packet is followed on paper: which node
it passes, through which device it leaves, and what the policy of that node says.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

import pytest
import yaml

from ipmasq_agent.config.assemble import assemble_family
from ipmasq_agent.config.document import parse_documents
from ipmasq_agent.config.model import Flags
from ipmasq_agent.errors import ConfigError
from ipmasq_agent.lab.mirror import mirrored
from ipmasq_agent.lab.scene import Expectation, Scene
from ipmasq_agent.lab.scenes import ALONE, ROUTINGS, SCENES, told
from ipmasq_agent.lab.topology import (
    ENDPOINTS,
    FIRST_CLUSTER,
    NODES,
    POD_CIDRS,
    PODS,
    SECOND_CLUSTER,
)
from ipmasq_agent.policy.addresses import Family, Prefix, parse_address
from ipmasq_agent.policy.decisions import Verdict
from ipmasq_agent.policy.facts import LINKS, NODE_ADDRESSES, OWN_POD_CIDRS, ROUTES, Facts, Links
from ipmasq_agent.policy.model import Capabilities, FamilyPolicy

Documents = Mapping[str, str]
NODE_OF = {pod.name: node for node, pods in PODS.items() for pod in pods}
ADDRESS = {
    node.name: {device: address.partition("/")[0] for device, address in node.links.items()}
    for node in NODES
}
KEYS = [scene for scene in SCENES if scene.document is not None and not scene.refused]


def written(text: str, family: Family) -> str:
    return text if family is Family.IPV4 else mirrored(text)


def prefix(text: str, family: Family) -> Prefix:
    network = ipaddress.ip_network(written(text, family))
    return Prefix(family, int(network.network_address), network.prefixlen)


def policy_of(node: str, documents: Documents, family: Family, joined: set[str]) -> FamilyPolicy:
    flags = Flags(enable_ipv6=family is Family.IPV6)
    parts = [(key, written(text, family).encode()) for key, text in sorted(documents.items())]
    config = parse_documents(parts, "documents", flags).config
    host = next(n for n in NODES if n.name == node)
    routes = [route.split() for route in host.routes if not route.startswith("default")]
    facts = Facts(
        {
            NODE_ADDRESSES: frozenset(
                parse_address(written(ADDRESS[name]["eth1"], family)) for name in joined
            ),
            OWN_POD_CIDRS: (prefix(POD_CIDRS[node], family),),
            LINKS: Links(("cni0", "eth0", "eth1", "lo"), ("eth0", "eth1")),
            ROUTES: tuple(
                (
                    prefix(words[0], family),
                    parse_address(written(words[-1], family))[1] if "src" in words else None,
                )
                for words in routes
            ),
        }
    )
    return assemble_family(config, family, Capabilities(), facts)


def way(expectation: Expectation) -> tuple[str | None, str]:
    """Return the node that may translate a packet, and through which device it leaves."""
    sender, receiver = ENDPOINTS[expectation.sender][0], ENDPOINTS[expectation.to][0]
    if NODE_OF.get(sender, sender) == NODE_OF.get(receiver):
        return None, "cni0"  # a bridge between two pods of one node
    if sender == "router":
        return NODE_OF[receiver], "cni0"
    device = "eth0" if expectation.to.endswith("/eth0") else "eth1"
    return NODE_OF.get(sender, sender), device


def seen(expectation: Expectation, policies: Mapping[str, FamilyPolicy], family: Family) -> int:
    """Return the source that the receiver sees."""
    _, source = parse_address(written(ENDPOINTS[expectation.sender][1], family))
    _, destination = parse_address(written(ENDPOINTS[expectation.to][1], family))
    node, device = way(expectation)
    if node is None:
        return source
    policy = policies[node]
    guards, decision = policy.guards, policy.decisions.decide(destination)
    if (
        decision.verdict is Verdict.NON_MASQUERADE
        or (guards.devices is not None and device not in guards.devices)
        or (
            guards.sources is not None
            and not any(p.first <= source <= p.last for p in guards.sources)
        )
    ):
        return source
    for first, last, address in policy.action.fixed:
        if first <= destination <= last:
            return address
    return parse_address(written(ADDRESS[node][device], family))[1]


def expected(expectation: Expectation, family: Family) -> int:
    return parse_address(written(ENDPOINTS[expectation.seen_as][1], family))[1]


def as_said(scene: Scene, documents: Documents, second: Documents, family: Family) -> bool:
    joined = {node.name for node in FIRST_CLUSTER} | ({scene.joins} if scene.joins else set())
    policies = {n.name: policy_of(n.name, documents, family, joined) for n in FIRST_CLUSTER}
    policies |= {n.name: policy_of(n.name, second, family, joined) for n in SECOND_CLUSTER}
    return all(
        seen(expectation, policies, family) == expected(expectation, family)
        for expectation in scene.expect
        if not expectation.kept
    )


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("family", Family)
def test_every_scene_expects_what_its_documents_mean(family: Family, routing: str) -> None:
    documents: Documents = {}
    second: Documents = ALONE
    for scene in told(routing):
        second = scene.second or second
        if scene.document is not None and not scene.refused:
            documents = scene.document
        assert as_said(scene, documents, second, family), scene.title


@pytest.mark.parametrize("scene", KEYS, ids=lambda scene: scene.title)
def test_each_key_of_a_document_matters_to_what_is_seen(scene: Scene) -> None:
    assert scene.document is not None
    second = scene.second or ALONE
    for name, text in scene.document.items():
        keys = yaml.safe_load(text)
        for key in keys.keys() - {"resyncInterval"}:
            less = yaml.safe_dump({k: v for k, v in keys.items() if k != key})
            try:
                same = as_said(scene, {**scene.document, name: less}, second, Family.IPV4)
            except ConfigError:
                continue  # it matters to what may be written
            assert not same, key


def test_the_second_clusters_entry_matters_too() -> None:
    mesh = next(scene for scene in SCENES if scene.second is not None)
    assert mesh.document is not None
    assert not as_said(mesh, mesh.document, ALONE, Family.IPV4)
