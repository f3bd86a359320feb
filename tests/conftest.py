"""What all tests share."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No test fails because the machine is slow; `-m long` tests ask for more examples themselves.
settings.register_profile(
    "shared-machine",
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("shared-machine")
