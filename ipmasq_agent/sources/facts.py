"""Facts that documents may need: from the host's links and routes, and from the cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ipmasq_agent.policy.assemble import NO_FACTS, Facts, Need
from ipmasq_agent.sources import FactEvent
from ipmasq_agent.sources.network import READERS, NetworkWatch, read_network


class HostAndCluster:
    """Implements ``FactSource``: watches what is required, and nothing else.

    Args:
        kubeconfig: see ``KubeApi``.
    """

    def __init__(self, *, kubeconfig: str | None = None) -> None:
        self._kubeconfig = kubeconfig
        self._lock = threading.Lock()
        self._sink: Callable[[FactEvent], None] | None = None
        self._network: NetworkWatch | None = None

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
            self._require_network(needs & READERS.keys(), self._sink)

    def gather(self, needs: frozenset[Need]) -> Facts:
        """Return these facts once.

        Raises:
            SourceError: one of them cannot be had.
        """
        facts = NO_FACTS
        for need in sorted(needs, key=lambda need: need.value):
            facts = facts.with_(need, read_network(need))
        return facts

    def refresh(self) -> None:
        """Look again now at all that is required."""
        with self._lock:
            if self._network is not None:
                self._network.refresh()

    def stop(self) -> None:
        """End all watches and their threads; safe to call twice."""
        with self._lock:
            if self._network is not None:
                self._network.stop()
                self._network = None

    def _require_network(self, needs: frozenset[Need], sink: Callable[[FactEvent], None]) -> None:
        if self._network is not None and self._network.needs != needs:
            self._network.stop()
            self._network = None
        if needs and self._network is None:
            self._network = NetworkWatch(needs, sink)
            self._network.start()
