"""The story of a lab on a terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ipmasq_agent.lab import telling
from ipmasq_agent.lab.probes import Check
from ipmasq_agent.lab.scene import shown
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
        lines = telling.compared(before, step.config)
        if any(line[0] in "+-" for line in lines):
            lines = [line for line in lines if line[0] in "+-"]
        elif before == step.config:
            lines = ["  (the document stays)"]
        for line in lines:
            out.print(f"     {line}", style={"+": "green", "-": "red"}.get(line[0], ""))
        if len(step.scene.nodes) == 1:
            out.print(f"     on {step.scene.nodes[0]} alone")
        if step.scene.second is not None:
            out.print("     and in the second cluster:")
            for line in shown(step.scene.second).splitlines():
                out.print(f"       {line}")
        if step.error:
            said = f"the agent says: {telling.after_path(step.error)}"
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
        for (sender, to), cells in telling.overview([step.checks for step in steps]).items():
            table.add_row(f"{sender} → {to}", *cells)
        out.print(f"\n{telling.QUESTION}", style="bold")
        out.print(telling.MARKS)
        out.print(table)
        checks = [check for step in steps for check in step.checks]
        failures = sum(len(step.failures) for step in steps)
        ok = all(step.ok for step in steps)
        out.print(telling.verdict(checks, failures), style="bold green" if ok else "bold red")


def _checks(checks: Sequence[Check]) -> Table:
    """Return one row for each destination; protocols share it where they agree."""
    table = Table(show_edge=False, pad_edge=False, box=None, padding=(0, 2, 0, 0))
    for column in ("   from", "to", "protocols", "source seen", "that is", "reply", ""):
        table.add_column(column, no_wrap=True, style="" if column else "bold")
    for row in telling.rows(checks):
        check = row[0]
        table.add_row(
            f"   {check.sender}",
            check.to,
            telling.protocols(row) + (" (opened before)" if check.kept else ""),
            check.seen or "nothing arrived",
            telling.owner(check),
            "yes" if check.reply else "none",
            Text("ok", "green") if check.ok else Text(f"expected {check.expected}", "red"),
        )
    return table
