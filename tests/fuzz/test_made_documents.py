"""No document ends the agent: it is refused with ``ConfigError``, or every plane can hold it."""

from __future__ import annotations

import os

import pytest

from ipmasq_agent.config.document import parse_documents
from ipmasq_agent.config.keys import RESYNC_INTERVAL
from ipmasq_agent.errors import ConfigError
from tests.fuzz.documents import compile_everywhere
from tests.fuzz.made_documents import fuzzed

CHUNK = 500


def accepted(seed: int) -> bool:
    """Whether the document of a seed is accepted; fails where it ends anything."""
    document = fuzzed(seed)
    try:
        understood = parse_documents(document.parts, "document", document.flags)
        lines = understood.warnings
        compile_everywhere(understood.config)
    except ConfigError as refusal:
        lines = refusal.problems
    except Exception as cause:
        raise AssertionError(f"fuzzed({seed}): {cause!r}: {document}") from cause
    else:
        assert understood.config[RESYNC_INTERVAL] > 0
        assert all(line.isprintable() and len(line) < 1000 for line in lines), f"fuzzed({seed})"
        return True
    assert lines, f"fuzzed({seed})"
    assert all(line.isprintable() and len(line) < 1000 for line in lines), f"fuzzed({seed})"
    return False


@pytest.mark.parametrize("chunk", range(10))
def test_no_document_raises_anything_but_a_config_error(chunk: int) -> None:
    count = sum(map(accepted, range(chunk * CHUNK, (chunk + 1) * CHUNK)))
    # Documents that are all refused would say nothing about the planes.
    assert CHUNK // 8 < count < CHUNK * 4 // 5


@pytest.mark.long
@pytest.mark.parametrize("chunk", range(20))
def test_none_of_a_great_many_documents_does(chunk: int) -> None:
    # Others in each run: a failure names the seed of its document.
    first = int.from_bytes(os.urandom(6)) + chunk
    for seed in range(first, first + 10_000):
        accepted(seed)
