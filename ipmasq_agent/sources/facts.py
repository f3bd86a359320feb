"""Facts that documents may need: from the host's links and routes, and from the cluster."""

from __future__ import annotations

from collections.abc import Callable

from ipmasq_agent.policy.assemble import NO_FACTS, Facts, Need
from ipmasq_agent.sources import FactEvent


class HostAndCluster:
    """Implements ``FactSource``."""

    def __init__(self, *, kubeconfig: str | None = None) -> None:
        self._kubeconfig = kubeconfig

    def start(self, sink: Callable[[FactEvent], None]) -> None:
        """Say where to deliver."""

    def require(self, needs: frozenset[Need]) -> None:
        """Watch these facts from now on."""

    def gather(self, needs: frozenset[Need]) -> Facts:
        """Return these facts once."""
        return NO_FACTS

    def refresh(self) -> None:
        """Look again."""

    def stop(self) -> None:
        """End all watches."""
