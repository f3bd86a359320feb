"""Facts that documents may need: from the host's links and routes, and from the cluster."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ipmasq_agent.policy.facts import NO_FACTS, OWN_POD_CIDRS, Fact, Facts
from ipmasq_agent.sources import FactEvent
from ipmasq_agent.sources.network import HOST, READERS, NetworkWatch

if TYPE_CHECKING:
    from ipmasq_agent.sources.nodes import ClusterFact


def node_name(said: str | None) -> str:
    """Return the name of this node's Node: what was said, else $NODE_NAME, else the host's."""
    # kubelet's own default (pkg/util/node, GetHostname).
    return said or os.environ.get("NODE_NAME") or socket.gethostname().strip().lower()


class HostAndCluster:
    """Watches what is required, and nothing else.

    So the API of the cluster is asked, and permission to read its nodes is needed, only
    where a document depends on them.

    Args:
        node: the name of this node's Node; without it $NODE_NAME, then the host's name.
    """

    def __init__(self, *, kubeconfig: str | None = None, node: str | None = None) -> None:
        self._kubeconfig = kubeconfig
        self._node = node_name(node)
        self._lock = threading.Lock()
        self._sink: Callable[[FactEvent], None] | None = None
        self._watchers: dict[frozenset[Fact[Any]], NetworkWatch | ClusterFact[Any]] = {}

    def start(self, sink: Callable[[FactEvent], None]) -> None:
        """Say where to deliver. Nothing is asked of anybody before ``require``."""
        self._sink = sink

    def require(self, needs: frozenset[Fact[Any]]) -> None:
        """Watch these facts from now on; what was watched before is told again only if new."""
        assert self._sink is not None  # who requires has started
        with self._lock:
            # Devices and routes come through one socket, and so from one watcher.
            groups = {needs & HOST, *(frozenset({need}) for need in needs - HOST)}
            for group in self._watchers.keys() - groups:
                self._watchers.pop(group).stop()
            for group in groups - self._watchers.keys() - {frozenset()}:
                watcher = self._watchers[group] = self._watcher(group, self._sink)
                watcher.start()

    def gather(self, needs: frozenset[Fact[Any]]) -> Facts:
        """Return these facts once, without ``start``, for verbs that do not watch.

        Raises:
            SourceError: one of them cannot be had.
        """
        facts = NO_FACTS
        for fact in sorted(needs):
            facts = facts.with_(fact, self._read(fact))
        return facts

    def refresh(self) -> None:
        """Look again now at all that is required."""
        with self._lock:
            for watcher in self._watchers.values():
                watcher.refresh()

    def stop(self) -> None:
        """End all watches and their threads; safe to call twice."""
        with self._lock:
            while self._watchers:
                self._watchers.popitem()[1].stop()

    # The library of the Kubernetes API is 30 MB of memory: loaded for those who ask it.

    def _watcher(
        self, group: frozenset[Fact[Any]], sink: Callable[[FactEvent], None]
    ) -> NetworkWatch | ClusterFact[Any]:
        if group <= HOST:
            return NetworkWatch(group, sink)
        [fact] = group
        return self._of_nodes(fact, sink)

    def _read(self, fact: Fact[Any]) -> Any:
        return READERS[fact]() if fact in HOST else self._of_nodes(fact, _nowhere).read()

    def _of_nodes(self, fact: Fact[Any], sink: Callable[[FactEvent], None]) -> ClusterFact[Any]:
        from ipmasq_agent.sources.nodes import node_addresses, own_pod_cidrs

        if fact is OWN_POD_CIDRS:
            return own_pod_cidrs(sink, self._node, self._kubeconfig)
        return node_addresses(sink, self._kubeconfig)


def _nowhere(event: FactEvent) -> None:
    """Take what nobody waits for."""
