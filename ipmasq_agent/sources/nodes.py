"""What the cluster's Node objects say: everybody's addresses, and the own node's pod CIDRs.

Of a Node, which may be 20 kB of labels, annotations and image names, only addresses are
kept. The kubelet reports its status every few minutes; what changes no address wakes nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from ipmasq_agent.errors import AgentError, SourceError, SourceUnavailable
from ipmasq_agent.policy.addresses import Family, Prefix, parse_address
from ipmasq_agent.policy.cidrs import parse_cidr
from ipmasq_agent.policy.facts import NODE_ADDRESSES, OWN_POD_CIDRS
from ipmasq_agent.sources import FactEvent, Learnt, NotLearnt
from ipmasq_agent.sources.kube_access import Permission, explained
from ipmasq_agent.sources.kube_api import ApiRefusal, KubeApi
from ipmasq_agent.sources.kube_list import Found, JsonObject, OneObject
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
Addresses = dict[str, tuple[Address, ...]]
Tell = Callable[[FactEvent], None]


class _AllNodes:
    """A view of all nodes: name → addresses."""

    name = "nodes"
    page = PAGE
    keeps = frozenset({"name", "status", "addresses", "type", "address"})

    def __init__(self) -> None:
        self.query: dict[str, str] = {}

    def listed(self, objects: Iterator[JsonObject]) -> Addresses:
        return {node["metadata"]["name"]: addresses_of(node) for node in objects}

    def changed(self, before: Addresses, kind: str, subject: JsonObject) -> Addresses:
        name = subject["metadata"]["name"]
        if kind == "DELETED":
            return {n: a for n, a in before.items() if n != name} if name in before else before
        addresses = addresses_of(subject)
        return before if before.get(name) == addresses else before | {name: addresses}


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


class NodeAddresses:
    """Watches the addresses of all nodes.

    While nodes come and go by the thousand, all that happened is told at once, some dozens
    of times in a minute; a single change is told at once.
    """

    def __init__(self, tell: Tell, *, kubeconfig: str | None = None) -> None:
        self._tell = tell
        self._api = KubeApi(kubeconfig)
        self._watch = Watch(self._api, PATH, _AllNodes(), self._explain, self._found, self._failed)
        self._latest: Addresses = {}
        self._failure: AgentError | None = None
        self._paced = Paced(self._work, "nodes-told", Pace(QUIET, LATE), self._failed)

    def read(self) -> frozenset[Address]:
        """Return the addresses as they are now.

        Raises:
            SourceError: they cannot be had.
        """
        try:
            return _all_of(self._watch.read().value)
        finally:
            self._api.close()

    def start(self) -> None:
        """List, then watch, in threads."""
        self._paced.start()
        self._watch.start()

    def refresh(self) -> None:
        """Ask the API now, beside the watch."""
        self._watch.refresh()

    def stop(self) -> None:
        """End the threads; safe to call twice."""
        self._watch.stop()
        self._paced.stop()

    def _found(self, found: Found[Addresses]) -> None:
        self._latest, self._failure = found.value, None
        self._paced.note()

    def _work(self) -> None:
        self._tell(Learnt(NODE_ADDRESSES, _all_of(self._latest)))
        failure = self._failure
        if failure is not None:  # it came while there was still something to tell
            self._tell(NotLearnt(NODE_ADDRESSES, failure))

    def _failed(self, error: AgentError) -> None:
        self._failure = error
        self._tell(NotLearnt(NODE_ADDRESSES, error))

    def _explain(self, refusal: ApiRefusal) -> SourceError:
        return explained(refusal, self._api, "the nodes of the cluster", Permission("nodes"))


def _all_of(nodes: Addresses) -> frozenset[Address]:
    return frozenset(address for addresses in nodes.values() for address in addresses)


class OwnPodCidrs:
    """Watches the pod CIDRs of one node, which a new one has only after a while.

    Args:
        tell: where to deliver.
        node: the name of the Node.
        kubeconfig: see ``KubeApi``.
    """

    def __init__(self, tell: Tell, node: str, *, kubeconfig: str | None = None) -> None:
        self._tell = tell
        self._node = node
        self._api = KubeApi(kubeconfig)
        self._watch = Watch(
            self._api, PATH, OneObject(node), self._explain, self._found, self._failed
        )

    def read(self) -> tuple[Prefix, ...]:
        """Return the pod CIDRs as they are now.

        Raises:
            SourceError: they cannot be had, or the node has none yet.
        """
        try:
            return self._cidrs(self._watch.read().value)
        except SourceError as error:
            raise _instead(error) from error
        finally:
            self._api.close()

    def start(self) -> None:
        """List, then watch, in a thread."""
        self._watch.start()

    def refresh(self) -> None:
        """Ask the API now, beside the watch."""
        self._watch.refresh()

    def stop(self) -> None:
        """End the threads; safe to call twice."""
        self._watch.stop()

    def _found(self, found: Found[JsonObject | None]) -> None:
        try:
            event: FactEvent = Learnt(OWN_POD_CIDRS, self._cidrs(found.value))
        except SourceError as error:
            event = NotLearnt(OWN_POD_CIDRS, error)
        self._tell(event)

    def _failed(self, error: AgentError) -> None:
        self._tell(NotLearnt(OWN_POD_CIDRS, _instead(error)))

    def _cidrs(self, node: JsonObject | None) -> tuple[Prefix, ...]:
        """Return what a Node says.

        Raises:
            SourceError: it says nothing, or nothing of use.
        """
        if node is None:
            raise SourceUnavailable(
                f"the cluster has no node {self._node}",
                remedy="give the name of this one with NODE_NAME or --node-name",
            )
        cidrs = pod_cidrs_of(node)
        if not cidrs:
            raise SourceUnavailable(
                f"the node {self._node} has no podCIDRs in its spec yet",
                remedy="where the network plugin gives out addresses without them "
                "(kube-controller-manager without --allocate-node-cidrs), write the CIDRs "
                "into the document in place of auto",
            )
        return cidrs

    def _explain(self, refusal: ApiRefusal) -> SourceError:
        return explained(refusal, self._api, f"the node {self._node}", Permission("nodes"))


def _instead(error: AgentError) -> AgentError:
    """Add the way out that needs no API; what is wrong stays the first to be said."""
    way_out = "or write the CIDRs into the document in place of auto"
    if error.remedy is not None and way_out.removeprefix("or ") in error.remedy:
        return error
    remedy = f"{error.remedy}, {way_out}" if error.remedy else way_out.removeprefix("or ")
    return type(error)(error.message, remedy=remedy)
