"""A node with pods and a world, an agent on it, and traffic through it while things happen.

May not import the package: what is right is counted in the world, and read with other programs.
"""

from __future__ import annotations

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
from tests.faults.injector import PLANES, Tracing, calls_in
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
# The calls by which a pass reaches the kernel's tables, itself or by a program.
REACHING = ("bpf", "clone", "clone3", "execve", "sendmsg", "sendto", "setsockopt", "vfork")


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
        self.right = self._held()

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
            under=self.under,
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

    def settle(self) -> None:
        """Wait until the agent says that the first document is in force."""
        self._turn = 0
        self.publish(DOCUMENTS[0])
        self.agent.process.send_signal(signal.SIGHUP)
        self.wait_right()

    def wait_right(self) -> None:
        """Wait until the agent is in step, and every rule, ours and others', as at the start."""

        def is_right() -> bool:
            return self.agent.ready() and self._held() == self.right

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
        return held | {"nft": sorted(listed, key=_place), "pins": sorted(pins)}

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

    def points(self, most: int) -> list[tuple[str, int]]:
        """Return calls of a pass that reach the kernel's tables, each with its number."""
        trace = self.place / "calls"
        with Tracing(self.agent.process.pid, trace, ("-e", f"trace={','.join(REACHING)}")):
            changes = self.agent.status()["changes"]
            self.change()
            wait_until(lambda: self.agent.status()["changes"] > changes, "the change")
        counts = calls_in(trace)
        every = [(call, n) for call, most in sorted(counts.items()) for n in range(1, most + 1)]
        return every if len(every) <= most else [every[n * len(every) // most] for n in range(most)]

    def clear(self) -> None:
        """End the agent, whatever it is at, and leave the node as it was."""
        self.agent.stop(signal.SIGKILL)
        for argv in (["nft", "flush ruleset"], ["ipset", "destroy"]):
            self.run(argv)
        for stem in ("iptables", "ip6tables"):
            for edit in ("-F", "-X"):
                self.run([f"{stem}-legacy", "-t", "nat", edit])


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
