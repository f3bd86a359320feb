"""No input ends a reader, hangs it or has it take memory without bound."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipmasq_agent.sources.kube_watch import LONGEST_LINE, _Disconnected, _lines
from tests.fuzz import doors
from tests.fuzz.inputs import CORPUS, kept, mutated
from tests.fuzz.targets import TARGETS, attempt

# Bytes that all inputs of a test together may take beside what there is.
ROOM = 512 << 20
MILLION = 1_000_000
LINE = 1 << 20


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """Whoever takes more meets a MemoryError, which no target may let through."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def shown(data: bytes) -> Iterator[None]:
    """Show the input that a target did not take."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{error!r} from {data[:2000]!r}") from error


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_kept_is_taken_or_refused(name: str) -> None:
    for data in kept(name):
        with shown(data):
            attempt(name, data)


def test_each_target_has_examples_and_nothing_else_has() -> None:
    assert {path.name for path in CORPUS.iterdir()} == TARGETS.keys()
    assert all(len(kept(name)) > 1 for name in TARGETS)


@pytest.mark.parametrize("name", TARGETS)
@given(seed=st.integers(0, (1 << 64) - 1))
@settings(max_examples=100, derandomize=True)  # others in each run are the long test's
def test_what_becomes_of_it_by_chance_is_taken_or_refused(name: str, seed: int) -> None:
    random = Random(seed)
    data = mutated(random.choice(kept(name)), random, random.choice(kept(name)), 20_000)
    with shown(data):
        attempt(name, data)


LARGE: dict[str, Callable[[], bytes]] = {
    "a line of a MiB": lambda: b"x" * LINE,
    "a MiB of digits": lambda: b"9" * LINE,
    "a MiB of zeros": lambda: bytes(LINE),
    "a MiB of ones": lambda: b"\xff" * LINE,
    "a MiB of line feeds": lambda: b"\n" * LINE,
    "a MiB of brackets": lambda: b"[" * LINE,
    "a MiB of quotes": lambda: b'"' * LINE,
    "a MiB of backslashes": lambda: b'"' + b"\\" * LINE,
    "a MiB of keys": lambda: b'{"a":' * (LINE // 5),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_line_of_a_mebibyte_is_taken_or_refused(name: str) -> None:
    attempt(name, LARGE["a line of a MiB"]())


def test_a_line_without_end_ends_a_watch() -> None:
    with pytest.raises(_Disconnected, match="without end"):
        list(_lines(doors.Response(b"x" * (LONGEST_LINE + LINE))))


@pytest.mark.long
@pytest.mark.parametrize("what", LARGE)
@pytest.mark.parametrize("name", TARGETS)
def test_what_is_large_is_taken_or_refused(name: str, what: str) -> None:
    data = LARGE[what]()
    attempt(name, data)
    for each in kept(name)[1:3]:  # behind a beginning that is read
        attempt(name, each[: len(each) // 2] + data)


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_none_of_a_million_inputs_is_let_through(name: str) -> None:
    runs = -(-MILLION // len(TARGETS))
    seed = int.from_bytes(os.urandom(4)) | 1
    print(f"python -m tests.fuzz {name} -runs={runs} -seed={seed}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, f"-runs={runs}", f"-seed={seed}"],
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, f"-seed={seed}: {done.stderr[-4000:]}"
    assert f"Done {runs} runs" in done.stderr
