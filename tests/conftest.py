"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from ipmasq_agent import logs

# No test fails because the machine is slow; `-m long` tests ask for more examples themselves.
settings.register_profile(
    "shared-machine",
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("shared-machine")


@pytest.fixture(autouse=True)
def nobody_to_ask() -> Iterator[None]:
    """No test asks an agent of this machine; where agents run they have sockets of their own."""
    # Not the test's own patch: what that changes is undone before other fixtures end.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPMASQ_SOCKET", "/nonexistent/agent.sock")
        yield


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """No test leaves its handlers, or a log that pytest no longer hears, to the next one."""
    before = logs.logger.handlers[:], logs.logger.level, logs.logger.propagate
    yield
    logs.logger.handlers[:], logs.logger.level, logs.logger.propagate = before
