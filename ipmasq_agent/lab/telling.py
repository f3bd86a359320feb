"""How the story's checks and documents are told, on a terminal and on a page. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Iterable, Sequence

from ipmasq_agent.lab.probes import Check
from ipmasq_agent.lab.scene import PROTOCOLS

QUESTION = "Whose address did destinations see, step by step?"
MARKS = "o the sender's own, n one of its node, † no reply returned"
# Share of lines that two documents must have in common for their difference to tell more.
_MUCH_THE_SAME = 0.7


def rows(checks: Iterable[Check], also: Callable[[Check], Hashable] = bool) -> list[list[Check]]:
    """Return checks by destination; protocols share a row where they agree.

    Args:
        checks: of one step.
        also: what else they have to agree in.
    """
    found: dict[tuple[object, ...], list[Check]] = {}
    for check in checks:
        key = (check.sender, check.to, check.kept, check.seen, check.reply, check.ok, also(check))
        found.setdefault(key, []).append(check)
    return list(found.values())


def protocols(row: Iterable[Check]) -> str:
    """Return those of a row, in the order of the story."""
    there = {check.protocol for check in row}
    return " ".join(protocol for protocol in PROTOCOLS if protocol in there)


def owner(check: Check) -> str:
    """Return whose address was seen; nothing where none was."""
    if check.verdict == "non-masquerade":
        return "the pod's own" if check.sender.endswith("pod") else "the sender's own"
    return "masqueraded" if check.seen else ""


def overview(steps: Sequence[Sequence[Check]]) -> dict[tuple[str, str], list[str]]:
    """Return, for each sender and destination, what became of new packets in each step.

    In the signs of ``MARKS``; nothing where nothing was sent.
    """
    pairs = dict.fromkeys((c.sender, c.to) for step in steps for c in step if not c.kept)
    return {pair: [_cell(step, *pair) for step in steps] for pair in pairs}


def _cell(checks: Iterable[Check], sender: str, to: str) -> str:
    found = [c for c in checks if (c.sender, c.to, c.kept) == (sender, to, False)]
    marks = {"non-masquerade": "o", "masquerade": "n", "lost": "-"}
    seen = dict.fromkeys(marks[check.verdict] for check in found)
    return "/".join(seen) + ("" if all(check.reply for check in found) else "†")


def compared(before: str, after: str) -> list[str]:
    """Return the lines of a document, each with what became of it in front.

    That is ``+ ``, ``- `` or two blanks; these alone where little of the one before is left.
    """
    old, new = before.splitlines(), after.splitlines()
    if difflib.SequenceMatcher(None, old, new).ratio() < _MUCH_THE_SAME:
        return [f"  {line}" for line in new]
    return [line for line in difflib.ndiff(old, new) if line[0] != "?"]


def after_path(error: str) -> str:
    """Return an error without the lab's path in front: ``config:2:5: …``."""
    path, mark, rest = error.partition("/config:")
    return f"config:{rest}" if mark and "\n" not in path else error


def verdict(checks: Sequence[Check], failures: int) -> str:
    """Return how all of it went, in a sentence."""
    wrong = sum(not check.ok for check in checks)
    if wrong or failures:
        return f"{wrong} of {len(checks)} checks are wrong"
    return f"all {len(checks)} checks are as they should be"
