"""The agent with one data plane more: ``python -m tests.fakeplane VERB --backend fake``."""

from __future__ import annotations

from ipmasq_agent.planes import registry
from tests.fakeplane.row import ROW

registry.PLANES += (ROW,)

from ipmasq_agent.cli import main  # noqa: E402  (what --backend takes is read at import)

main()
