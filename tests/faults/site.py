"""A node with pods and a world, an agent on it, and traffic through it while things happen.

May not import the package: what is right is counted in the world, and read with other programs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from tests import oracle
from tests.faults.calls import CALLS, Point, Programs, points
from tests.faults.injector import PLANES, Tracing
from tests.kernel.crossing import Crossing
from tests.kernel.flows import KEPT, both
from tests.kernel.pins import PINS
from tests.kernel.running import Running, write
from tests.waiting import wait_until

# They agree on every network that is counted.
DOCUMENTS = tuple(
    json.dumps({"resyncInterval": "1h", "nonMasqueradeCIDRs": both(kept)})
    for kept in (KEPT, "10.10.0.0/23")
)
_PUT_RIGHT = frozenset({"rules healed", "rules applied"})


class Site:
    """One agent on a node, with rules of others beside its own.

    Attributes:
        plane: the data plane, by its name in ``PLANES``.
        place: a directory for it.
        repairs: seconds from the end of what somebody did to the end of what it led to.
        tries: how often it was done.
        random: what is done at random hangs on it alone.
        pause: seconds before each time; who takes rules away in a loop is followed more slowly.
        under: what the next agent is started by.
        more: flags of the next agent.
    """

    def __init__(self, node: Crossing, plane: str, place: Path, seed: int) -> None:
        self.node, self.plane = node, plane
        self.place = place
        self.programs = Programs(place)
        self.document = place / "config"
        self._turn = 0
        self._starts = 0
        self.under: Sequence[str] = ()
        self.more: Sequence[str] = ()
        self.repairs: list[float] = []
        self.tries = 0
        self.pause = 0.0
        self.seed = seed
        self.random = random.Random(seed)
        self.publish(DOCUMENTS[0])
        for variant in oracle.VARIANTS:
            for stem in ("iptables", "ip6tables"):
                rules = [":THEIRS - [0:0]", "-A THEIRS -p tcp -m mark --mark 0x8 -j RETURN"]
                text = "\n".join(["*nat", *rules, "-A POSTROUTING -j THEIRS", "COMMIT\n"])
                self.run([f"{stem}-{variant}-restore", "--noflush"], text)
        self.agent = self._started()
        self.agent.wait_ready()
        self._points: list[Point] = []
        self._rights: dict[int, dict[str, object]] = {}
        self.learn()

    def run(self, argv: list[str], stdin: str | None = None) -> None:
        """Run a program of somebody else's on the node."""
        subprocess.run(argv, input=stdin, text=True, check=True, capture_output=True)

    def _started(self) -> Running:
        self._starts += 1
        return Running(
            self.place / f"log{self._starts}",
            "run",
            *self.source(),
            f"--backend={PLANES[self.plane].backend}",
            "--enable-ipv6",
            "--log-format=json",
            *self.more,
            under=(*self.under, "/usr/bin/env", f"PATH={self.programs.folder}"),
        )

    def restart(self) -> None:
        """Start another agent, when the one before is killed."""
        self.agent.stop(signal.SIGKILL)
        self.agent = self._started()

    @property
    def log(self) -> str:
        return self.agent.log.read_text()

    def source(self) -> tuple[str, ...]:
        """Return the flags that say where the document is."""
        return (f"--config={self.document}",)

    def publish(self, text: str) -> None:
        """Let this be the document."""
        write(self.document, text)

    def change(self) -> None:
        """Publish the other document."""
        self._turn = 1 - self._turn
        self.publish(DOCUMENTS[self._turn])

    @property
    def right(self) -> dict[str, object]:
        """All rules, sets and pins, as they are right with the document."""
        return self._rights[self._turn]

    def learn(self) -> None:
        """See what is right with the document, with nothing in the way."""
        wait_until(self._in_force, "in force")
        self._rights[self._turn] = self._held() | {"unfinished": [], "locked": False}

    def _in_force(self) -> bool:
        """Whether the agent says that this document is."""
        told = (self.agent.status().get("config") or {}).get("inForce") or {}
        digest = hashlib.sha256(DOCUMENTS[self._turn].encode()).hexdigest()
        return self.agent.ready() and digest.startswith(told.get("hash", "nothing"))

    def settle(self) -> None:
        """Wait until the first document is in force, and all is right."""
        self._turn = 0
        self.publish(DOCUMENTS[0])
        self.agent.process.send_signal(signal.SIGHUP)
        self.wait_right()

    def wait_right(self) -> None:
        """Wait until the document is in force, and every rule, ours and others', right with it."""

        def is_right() -> bool:
            return self._in_force() and self._held() == self.right

        try:
            wait_until(is_right, "all is as it was")
        except AssertionError as late:
            now = self._held()
            other = {name: (held, now[name]) for name, held in self.right.items()}
            differing = {name: pair for name, pair in other.items() if pair[0] != pair[1]}
            raise AssertionError(f"{late}: {differing}\n{self.log}") from late

    def lost(self) -> int:
        """Return how many lines of the start, ours and others', are not there any more."""
        lines = [_lines(held) for held in (self.right, self._held())]
        return (lines[0] - lines[1]).total()

    def _held(self) -> dict[str, object]:
        """Return all rules, sets and pins; tables of nf_tables in no order."""
        held = oracle.snapshot()
        listed = held["nft"]
        assert isinstance(listed, list)
        # Which of the tables that are filled in turn hold the policy follows from its history.
        pins = {re.sub(r"_[0-3]$", "", p.name) for p in Path(os.environ[PINS]).rglob("*")}
        kept = Path(os.environ["IPMASQ_STATE_DIR"]).glob(".*")
        return held | {
            "nft": sorted(listed, key=_place),
            "pins": sorted(pins),
            "unfinished": sorted(each.name for each in kept),
            "locked": _is_locked(),
        }

    def killed(self, *, in_sync: bool = False) -> None:
        """Kill the agent as it is, and start another one.

        Args:
            in_sync: it need not be ready, as where nobody can tell it the document.
        """
        self.agent.stop(signal.SIGKILL)
        begun = time.monotonic()
        self.restart()
        if in_sync:
            wait_until(lambda: self.agent.status().get("inSync"), f"in sync\n{self.log}")
        else:
            self.agent.wait_ready()
        self.repairs.append(time.monotonic() - begun)

    def done_to(self, ruin: Callable[[], object]) -> None:
        """Do it, and wait until the agent says that it has healed what that took away."""
        time.sleep(self.pause)
        before = len(self.log)

        def healed() -> list[float]:
            """Return when something was put right; what comes with other news is no healing."""
            lines = (
                json.loads(line) for line in self.log[before:].rpartition("\n")[0].splitlines()
            )
            return [_seconds(each["time"]) for each in lines if each["message"] in _PUT_RIGHT]

        ruin()
        over = time.time()
        try:
            wait_until(healed, "healed")
        except AssertionError as late:
            raise AssertionError(f"{late}: {self.agent.status()}\n{self.log}") from late
        self.wait_right()
        self.repairs.append(max(0.0, max(healed()) - over))
        self.tries += 1

    @contextmanager
    def traced(self, *options: str) -> Iterator[None]:
        """Let strace hold the agent and what it starts; the agent may not survive that."""
        with Tracing(self.agent.process.pid, self.place / "trace", options):
            yield

    def points(self) -> list[Point]:
        """Return the calls of a pass, and see what is right with each document."""
        trace, calls = self.place / "calls", ",".join(CALLS)
        for _ in DOCUMENTS if not self._points else ():
            with Tracing(self.agent.process.pid, trace, ("-e", f"trace={calls}")):
                self.change()
                wait_until(self._in_force, "the change")
            self.learn()
            self._points = points(trace, self.agent.process.pid)
        return self._points

    def clear(self) -> None:
        """End the agent, whatever it is at, and leave the node as it was."""
        self.agent.stop(signal.SIGKILL)
        for argv in (["nft", "flush ruleset"], ["ipset", "destroy"]):
            self.run(argv)
        for stem in ("iptables", "ip6tables"):
            for edit in ("-F", "-X"):
                self.run([f"{stem}-legacy", "-t", "nat", edit])


def _is_locked() -> bool:
    """Whether somebody holds the xtables lock, a program of an agent that is gone perhaps."""
    with open(os.environ["XTABLES_LOCKFILE"], "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _lines(held: dict[str, object]) -> Counter[str]:
    """Return rules, sets, tables and pins one by one."""
    lists = {name: value for name, value in held.items() if isinstance(value, list)}
    found = Counter(f"{name}: {line}" for name, lines in lists.items() for line in lines)
    return found + Counter(f"{name}: {held[name]}" for name in held.keys() - lists)


def _place(item: dict[str, dict[str, str]]) -> tuple[str, str, bool]:
    ((kind, about),) = item.items()
    return about.get("family", ""), about.get("table", about.get("name", "")), kind != "table"


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
