"""What the cluster's Node objects say: everybody's addresses, and the own node's pod CIDRs.

Of a Node, which may be 20 kB of labels, annotations and image names, only addresses are
kept. The kubelet reports its status every few minutes; what changes no address wakes nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Generic

from ipmasq_agent.errors import AgentError, SourceError, SourceUnavailable
from ipmasq_agent.policy.addresses import Family, Prefix, parse_address
from ipmasq_agent.policy.cidrs import parse_cidr
from ipmasq_agent.policy.facts import NODE_ADDRESSES, OWN_POD_CIDRS, Fact
from ipmasq_agent.sources import FactEvent, Learnt, NotLearnt
from ipmasq_agent.sources.kube_access import Permission
from ipmasq_agent.sources.kube_api import KubeApi
from ipmasq_agent.sources.kube_list import (
    Found,
    JsonObject,
    Kept,
    Objects,
    one_object,
    read_once,
)
from ipmasq_agent.sources.kube_watch import Watch
from ipmasq_agent.sources.pace import Pace, Paced

logger = logging.getLogger(__name__)

PATH = "/api/v1/nodes"
# The node's own address in the cluster, and the one that others reach it by from outside.
# Hostname, InternalDNS and ExternalDNS are names.
TYPES = frozenset({"InternalIP", "ExternalIP"})
# Nodes to a page: at 20 kB each, which is many images, 2 MB of text for a moment.
PAGE = 100
QUIET, LATE = 0.2, 2.0

Address = tuple[Family, int]
_PERMISSION = Permission("nodes")


def addresses_of(node: JsonObject) -> tuple[Address, ...]:
    """Return the addresses of a Node, by which packets may be sent to it."""
    addresses = []
    for entry in (node.get("status") or {}).get("addresses") or ():
        if entry.get("type") not in TYPES:
            continue
        text = str(entry.get("address"))
        try:
            addresses.append(parse_address(text))
        except ValueError:
            name = node["metadata"]["name"]
            logger.warning("the node %s has the address %r, which is none", name, text)
    return tuple(addresses)


def pod_cidrs_of(node: JsonObject) -> tuple[Prefix, ...]:
    """Return the pod CIDRs of a Node.

    Raises:
        SourceError: one of them is none.
    """
    spec = node.get("spec") or {}
    texts = list(filter(None, spec.get("podCIDRs") or [spec.get("podCIDR")]))
    try:
        return tuple(parse_cidr(str(text)) for text in texts)
    except ValueError as cause:
        name = node["metadata"]["name"]
        said = f"the node {name} has podCIDRs {texts}, one of which {cause}"
        raise SourceError(said) from cause


class ClusterFact(Generic[Kept]):
    """Watches objects of the API that tell a fact.

    While they come and go by the thousand, all that happened is told at once, some dozens
    of times in a minute; a single change is told at once.

    Args:
        value: of the fact, by what is kept of the objects, or raises ``SourceError``.
        way_out: what else to do where it cannot be had, in the mood of a remedy.
    """

    def __init__(
        self,
        fact: Fact[Any],
        wanted: Objects[Kept],
        tell: Callable[[FactEvent], None],
        kubeconfig: str | None,
        value: Callable[[Iterable[Kept]], Any],
        way_out: str | None = None,
    ) -> None:
        self._fact = fact
        self._wanted = wanted
        self._tell = tell
        self._kubeconfig = kubeconfig
        self._value = value
        self._way_out = way_out
        self._watch = Watch(KubeApi(kubeconfig), wanted, self._found, self._failed)
        self._latest: dict[str, Kept] = {}
        self._failure: AgentError | None = None
        self._paced = Paced(self._work, f"{wanted.name}-told", Pace(QUIET, LATE), self._failed)
        self.refresh = self._watch.refresh

    def read(self) -> Any:
        """Return the fact as it is now.

        Raises:
            SourceError: it cannot be had.
        """
        try:
            return self._value(read_once(self._wanted, self._kubeconfig).value.values())
        except SourceError as error:
            raise self._with_way_out(error) from error

    def start(self) -> None:
        """List, then watch, in threads."""
        self._paced.start()
        self._watch.start()

    def stop(self) -> None:
        """End the threads; safe to call twice."""
        self._watch.stop()
        self._paced.stop()

    def _found(self, found: Found[Kept]) -> None:
        self._latest, self._failure = found.value, None
        self._paced.note()

    def _work(self) -> None:
        try:
            self._tell(Learnt(self._fact, self._value(self._latest.values())))
        except SourceError as error:
            self._tell(NotLearnt(self._fact, self._with_way_out(error)))
        if self._failure is not None:  # it came while there was still something to tell
            self._failed(self._failure)

    def _failed(self, error: AgentError) -> None:
        self._failure = error
        self._tell(NotLearnt(self._fact, self._with_way_out(error)))

    def _with_way_out(self, error: AgentError) -> AgentError:
        """Add the way out that needs no API; what is wrong stays the first to be said."""
        way_out, remedy = self._way_out, error.remedy
        if way_out is None or (remedy is not None and way_out in remedy):
            return error
        return type(error)(error.message, remedy=f"{remedy}, or {way_out}" if remedy else way_out)


def node_addresses(
    tell: Callable[[FactEvent], None], kubeconfig: str | None
) -> ClusterFact[tuple[Address, ...]]:
    """Return who watches the addresses of all nodes."""
    wanted = Objects(
        *("nodes", PATH, "the nodes of the cluster", _PERMISSION, addresses_of),
        page=PAGE,
        keys=frozenset({"status", "addresses", "type", "address"}),
    )
    return ClusterFact(NODE_ADDRESSES, wanted, tell, kubeconfig, _all_of)


def _all_of(nodes: Iterable[tuple[Address, ...]]) -> frozenset[Address]:
    return frozenset(address for addresses in nodes for address in addresses)


def own_pod_cidrs(
    tell: Callable[[FactEvent], None], node: str, kubeconfig: str | None
) -> ClusterFact[JsonObject]:
    """Return who watches the pod CIDRs of one node, which a new one has only after a while."""

    def value(found: Iterable[JsonObject]) -> tuple[Prefix, ...]:
        this = next(iter(found), None)
        if this is None:
            raise SourceUnavailable(
                f"the cluster has no node {node}",
                remedy="give the name of this one with NODE_NAME or --node-name",
            )
        cidrs = pod_cidrs_of(this)
        if not cidrs:
            raise SourceUnavailable(
                f"the node {node} has no podCIDRs in its spec yet",
                remedy="where the network plugin gives out addresses without them "
                f"(kube-controller-manager without --allocate-node-cidrs), {way_out}",
            )
        return cidrs

    way_out = "write the CIDRs into the document in place of auto"
    wanted = one_object(node, PATH, f"the node {node}", _PERMISSION)
    return ClusterFact(OWN_POD_CIDRS, wanted, tell, kubeconfig, value, way_out)
