"""The story of a lab on a terminal."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ipmasq_agent.lab.probes import Check
from ipmasq_agent.lab.scene import PROTOCOLS, shown
from ipmasq_agent.lab.story import PlayedScene

_PICTURE = """\
  curl-pod  webpod                       w1-pod              b-pod
  172.20.0.10 │ .20                172.20.1.10 │       172.30.0.10 │  another
       └──────┴─ k8s-ctr ─────┬───── k8s-w1 ───┘   ┌─── k8s-b1 ────┘  cluster
             192.168.10.100   │  192.168.10.101    │ 192.168.10.130
                              ├────────────────────┘
                        router 192.168.10.200
                        loop1 10.10.1.200, loop2 10.10.2.200, internet 203.0.113.200
  eth0 of the nodes: 10.0.2.15, .16 and .45. egress-ip: 192.168.10.150, second on k8s-ctr"""
_WIDTH = 132
# Share of lines that two documents must have in common for their difference to tell more.
_MUCH_THE_SAME = 0.7


class Shown:
    """Prints each step as it ends, and at last all of them in one table."""

    def __init__(self, backend: str, *, ipv6: bool) -> None:
        """Say who is who.

        Args:
            backend: that the agents use.
            ipv6: the story is told in IPv6.
        """
        self._steps: list[PlayedScene] = []
        # A pipe has no width, and tables should not be cut to 80 columns because of it.
        self._out = Console(highlight=False, markup=False, width=None if os.isatty(1) else _WIDTH)
        self._out.print(_PICTURE, style="cyan")
        note = " (in IPv6: 172.20.0.10 is fd00:172:20::10, and so on)" if ipv6 else ""
        self._out.print(f"\nThe agents in both nodes use {backend}{note}.")

    def step(self, step: PlayedScene) -> None:
        """Show a step: the document, what arrived, and what it means."""
        out = self._out
        before = self._steps[-1].config if self._steps else ""
        self._steps.append(step)
        out.print(f"\n{len(self._steps)}. {step.scene.title}", style="bold")
        for line in _changed_lines(before, step.config):
            out.print(f"     {line}", style={"+": "green", "-": "red"}.get(line[0], ""))
        if len(step.scene.nodes) == 1:
            out.print(f"     on {step.scene.nodes[0]} alone")
        if step.scene.second is not None:
            out.print("     and in the second cluster:")
            for line in shown(step.scene.second).splitlines():
                out.print(f"       {line}")
        if step.error:
            said = f"the agent says: {_after_path(step.error)}"
            out.print(Padding(said, (0, 0, 0, 3)), style="yellow")
        out.print(_checks(step.checks))
        for line in step.explained:
            out.print(f"   {line}", style="yellow")
        out.print(Padding(step.scene.why, (0, 0, 0, 3)))
        for failure in step.failures:
            out.print(f"   NOT AS IT SHOULD BE: {failure}", style="bold red")

    def closing(self) -> None:
        """Show whose address each destination saw, step by step."""
        steps, out = self._steps, self._out
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("from → to", no_wrap=True)
        for number in range(1, len(steps) + 1):
            table.add_column(f"{number}", no_wrap=True)
        pairs = dict.fromkeys((c.sender, c.to) for s in steps for c in s.checks if not c.kept)
        for sender, to in pairs:
            table.add_row(f"{sender} → {to}", *(_cell(step, sender, to) for step in steps))
        out.print("\nWhose address did destinations see, step by step?", style="bold")
        out.print("o the sender's own, n one of its node, † no reply returned")
        out.print(table)
        checks = [check for step in steps for check in step.checks]
        wrong = sum(not check.ok for check in checks)
        if wrong or any(step.failures for step in steps):
            out.print(f"{wrong} of {len(checks)} checks are wrong", style="bold red")
        else:
            out.print(f"all {len(checks)} checks are as they should be", style="bold green")


def _checks(checks: Sequence[Check]) -> Table:
    """Return one row for each destination; protocols share it where they agree."""
    table = Table(show_edge=False, pad_edge=False, box=None, padding=(0, 2, 0, 0))
    for column in ("   from", "to", "protocols", "source seen", "that is", "reply", ""):
        table.add_column(column, no_wrap=True, style="" if column else "bold")
    rows: dict[tuple[object, ...], list[Check]] = {}
    for check in checks:
        key = (check.sender, check.to, check.kept, check.seen, check.reply, check.ok)
        rows.setdefault(key, []).append(check)
    for same in rows.values():
        check = same[0]
        protocols = [p for p in PROTOCOLS if p in {c.protocol for c in same}]
        table.add_row(
            f"   {check.sender}",
            check.to,
            " ".join(protocols) + (" (opened before)" if check.kept else ""),
            check.seen or "nothing arrived",
            _owner(check),
            "yes" if check.reply else "none",
            Text("ok", "green") if check.ok else Text(f"expected {check.expected}", "red"),
        )
    return table


def _owner(check: Check) -> str:
    if check.verdict == "non-masquerade":
        return "the pod's own" if check.sender.endswith("pod") else "the sender's own"
    return "masqueraded" if check.seen else ""


def _cell(step: PlayedScene, sender: str, to: str) -> str:
    found = [c for c in step.checks if (c.sender, c.to, c.kept) == (sender, to, False)]
    marks = {"non-masquerade": "o", "masquerade": "n", "lost": "-"}
    seen = dict.fromkeys(marks[check.verdict] for check in found)
    return "/".join(seen) + ("" if all(check.reply for check in found) else "†")


def _changed_lines(before: str, after: str) -> list[str]:
    """Return what is new in a document; all of it where little of the one before is left."""
    old, new = before.splitlines(), after.splitlines()
    if difflib.SequenceMatcher(None, old, new).ratio() < _MUCH_THE_SAME:
        return [f"  {line}" for line in new]
    lines = difflib.ndiff(old, new)
    return [line for line in lines if line[0] in "+-"] or ["  (the document stays)"]


def _after_path(error: str) -> str:
    """Return an error without the lab's path in front: ``config:2:5: …``."""
    path, mark, rest = error.partition("/config:")
    return f"config:{rest}" if mark and "\n" not in path else error
