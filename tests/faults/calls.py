"""The calls by which a pass reaches the kernel's tables, one by one, and what befalls one of them.

The agent's own calls are those of its main thread, which strace holds alone. For a program that
it runs, a script that has strace hold it stands in the program's place. So each call is one
that somebody makes: the third of the program that writes IPv6, and no other one.

May not import the package.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from tests.faults.injector import Tracing

if TYPE_CHECKING:
    from tests.faults.site import Site

# Calls by which rules, sets and maps are asked for and changed, by us or by a program of ours.
REACHING = ("bpf", "getsockopt", "sendmsg", "sendto", "setsockopt")
# The beginnings of programs.
STARTING = ("clone", "clone3", "execve", "vfork")
# Those that wait for the kernel's answer.
ANSWERS = ("recvfrom", "recvmsg")
T = TypeVar("T")
FOR_EVER = "delay_enter=10000s"
CALLS = (*REACHING, *STARTING, *ANSWERS)
PROGRAMS = (
    *(
        f"{stem}-{variant}{verb}"
        for stem in ("iptables", "ip6tables")
        for variant in ("legacy", "nft")
        for verb in ("", "-restore", "-save")
    ),
    "ipset",
)
_HELD = """#!/bin/sh
echo >>{place}/runs
runs=0
while read -r _; do runs=$((runs + 1)); done <{place}/runs
[ $runs = {run} ] || exec {real} "$@"
exec {strace} -D -qq -o {place}/trace {options} {real} "$@"
"""


class Point(NamedTuple):
    """One system call of a pass.

    Attributes:
        program: that makes it; empty for the agent itself.
        run: which run of that program in the pass, from 1; 0 for the agent.
        call: its name.
        number: of such calls of that process, from 1.
    """

    program: str
    run: int
    call: str
    number: int

    def __str__(self) -> str:
        return f"{self.call} {self.number} of {self.program or 'the agent'} {self.run or ''}"


class Programs:
    """A directory in which an agent finds its programs, and nothing else."""

    def __init__(self, place: Path) -> None:
        self.folder = place / "programs"
        self.folder.mkdir()
        self._place = place
        for name in PROGRAMS:
            self.put_back(name)

    def put_back(self, name: str) -> None:
        """Let a program be the real one."""
        (self.folder / name).unlink(missing_ok=True)
        (self.folder / name).symlink_to(_real(name))

    def replace(self, name: str, script: str) -> None:
        """Let a shell script run in a program's place."""
        new = self.folder / f".{name}"
        new.write_text(script)
        new.chmod(0o755)
        new.rename(self.folder / name)

    def remove(self, name: str) -> None:
        """Let there be no such program."""
        (self.folder / name).unlink()

    def hold(self, point: Point, options: str) -> Path:
        """Have strace hold one run of a program; return what it notes."""
        (self._place / "runs").write_text("")
        trace = self._place / "trace"
        trace.write_text("")
        script = _HELD.format(
            place=self._place,
            run=point.run,
            strace=shutil.which("strace"),
            options=options,
            real=_real(point.program),
        )
        self.replace(point.program, script)
        return trace


def _real(name: str) -> str:
    found = shutil.which(name)
    assert found, name
    return found


def points(trace: Path, agent: int) -> list[Point]:
    """Return the calls of a pass, in order: those of an agent's main thread and its programs."""
    names: dict[int, tuple[str, int]] = {agent: ("", 0)}
    runs: Counter[str] = Counter()
    made: Counter[tuple[int, str]] = Counter()
    found: list[Point] = []
    for line in trace.read_text(errors="replace").splitlines():
        seen = re.match(r'(\d+)\s+(\w+)\((?:"([^"]*)")?', line)
        if not seen:
            continue
        pid, call, path = int(seen[1]), seen[2], seen[3]
        if call == "execve" and pid not in names:
            program = os.path.basename(path)
            runs[program] += 1
            names[pid] = program, runs[program]
        if pid in names:  # else another thread's
            made[pid, call] += 1
            found.append(Point(*names[pid], call, made[pid, call]))
    return found


def some(found: Sequence[T], most: int) -> Sequence[T]:
    """Return some of them that lie evenly."""
    if len(found) <= most:
        return found
    return [found[(2 * number + 1) * len(found) // (2 * most)] for number in range(most)]


@contextmanager
def befalling(site: Site, point: Point, what: str) -> Iterator[Path]:
    """Let something befall a call, in strace's words; yields what strace notes of it."""
    options = ("-e", f"trace={point.call}", "-e", f"inject={point.call}:{what}:when={point.number}")
    if not point.program:
        trace = site.place / "trace"
        with Tracing(site.agent.process.pid, trace, options, threads=False):
            yield trace
        return
    try:
        yield site.programs.hold(point, " ".join(options))
    finally:
        site.programs.put_back(point.program)


def hangs(trace: Path, point: Point) -> bool:
    """Whether the call that is to hang has been made, and has not come back."""
    said = trace.read_text(errors="replace")
    if point.program:
        return "--- stopped by SIGSTOP ---" in said
    made = re.findall(rf"^{point.call}\(", said, re.MULTILINE)
    return len(made) == point.number and not said.endswith("\n")
