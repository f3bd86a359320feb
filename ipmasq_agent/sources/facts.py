"""Facts that documents may need: from the host's links and routes, and from the cluster."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ipmasq_agent.policy.assemble import NO_FACTS, Facts, Need
from ipmasq_agent.sources import FactEvent
from ipmasq_agent.sources.network import HOST, NetworkWatch, read_network

if TYPE_CHECKING:
    from ipmasq_agent.sources.nodes import NodeAddresses, OwnPodCidrs


class _Watcher(Protocol):
    """What tells one fact or several, from a thread of its own."""

    def start(self) -> None: ...

    def refresh(self) -> None: ...

    def stop(self) -> None: ...


class HostAndCluster:
    """Implements ``FactSource``: watches what is required, and nothing else.

    So the API of the cluster is asked, and permission to read its nodes is needed, only
    where a document depends on them.

    Args:
        kubeconfig: see ``KubeApi``.
        node: the name of this node's Node; without it $NODE_NAME, then the host's name.
    """

    def __init__(self, *, kubeconfig: str | None = None, node: str | None = None) -> None:
        self._kubeconfig = kubeconfig
        # kubelet's own default (pkg/util/node, GetHostname).
        self._node = node or os.environ.get("NODE_NAME") or socket.gethostname().strip().lower()
        self._lock = threading.Lock()
        self._sink: Callable[[FactEvent], None] | None = None
        self._watchers: dict[frozenset[Need], _Watcher] = {}

    def start(self, sink: Callable[[FactEvent], None]) -> None:
        """Say where to deliver."""
        self._sink = sink

    def require(self, needs: frozenset[Need]) -> None:
        """Watch these facts from now on; what was watched before is told again only if new.

        Raises:
            RuntimeError: nobody has said where to deliver.
        """
        if self._sink is None:
            raise RuntimeError("start comes before require")
        with self._lock:
            # Devices and routes come through one socket, and so from one watcher.
            groups = {needs & HOST, *(frozenset({need}) for need in needs - HOST)}
            for group in self._watchers.keys() - groups:
                self._watchers.pop(group).stop()
            for group in groups - self._watchers.keys() - {frozenset()}:
                watcher = self._watchers[group] = self._watcher(group, self._sink)
                watcher.start()

    def gather(self, needs: frozenset[Need]) -> Facts:
        """Return these facts once.

        Raises:
            SourceError: one of them cannot be had.
        """
        facts = NO_FACTS
        for need in Need:
            if need in needs:
                facts = facts.with_(need, self._read(need))
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

    def _watcher(self, group: frozenset[Need], sink: Callable[[FactEvent], None]) -> _Watcher:
        if group <= HOST:
            return NetworkWatch(group, sink)
        [need] = group
        return self._of_nodes(need, sink)

    def _read(self, need: Need) -> Any:
        return read_network(need) if need in HOST else self._of_nodes(need, _nowhere).read()

    def _of_nodes(
        self, need: Need, sink: Callable[[FactEvent], None]
    ) -> NodeAddresses | OwnPodCidrs:
        from ipmasq_agent.sources import nodes

        if need is Need.POD_CIDRS:
            return nodes.OwnPodCidrs(sink, self._node, kubeconfig=self._kubeconfig)
        return nodes.NodeAddresses(sink, kubeconfig=self._kubeconfig)


def _nowhere(event: FactEvent) -> None:
    """Take what nobody waits for."""
