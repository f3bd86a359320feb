"""The agent as tests run it: its command line in this process, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ipmasq_agent import cli
from ipmasq_agent.planes import detect
from tests.oracle import Variant

# Taken before anyone replaces it: a legacy worker lives in the namespace in which it was
# started, so nobody may be handed a backend that somebody else keeps.
_make = detect.make


# Words of a verb → its exit status, what it printed, and what it said on standard error.
Verb = Callable[..., tuple[int, str, str]]


def status_of(*words: str) -> int:
    """Run a verb in this process and return its exit status."""
    with pytest.raises(SystemExit) as left:
        cli.main(list(words))
    assert isinstance(left.value.code, int)
    return left.value.code


def apply(variant: Variant, document: Path, *flags: str) -> int:
    """Run ``apply`` with a document and return its exit status.

    Named as in the agent's container, where a document that is not there means the defaults.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPMASQ_CONFIG", str(document))
        return status_of("apply", "--backend", f"iptables-{variant}", *flags)


@contextmanager
def kept_backends() -> Iterator[None]:
    """Let the backends that verbs make live on from one verb to the next.

    The agent keeps them from pass to pass, and a legacy worker takes half a second to
    start: a thousand passes in one process must not pay that each time.
    """
    made: dict[Any, Any] = {}
    with pytest.MonkeyPatch.context() as patch:

        def remembered(name: str, placement: Any) -> Any:
            key = (name, placement)
            if key not in made:
                made[key] = _make(name, placement)
                patch.setattr(made[key], "close", lambda: None)
            return made[key]

        patch.setattr(detect, "make", remembered)
        try:
            yield
        finally:
            for backend in made.values():
                type(backend).close(backend)
