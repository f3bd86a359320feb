"""What the verifiers of the oldest kernel and of this one say of a compiled object.

Without an argument it is that of the package. The exit status is 1 where one refuses.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.oldest import guest

BYTECODE = guest.ROOT / "ipmasq_agent/planes/bpf/masq.bpf.o"


def verdicts(bytecode: Path) -> list[dict[str, Any]]:
    """Return what ``verifier.py`` says in the guest, and here."""
    argv = [guest.python(), str(Path(__file__).with_name("verifier.py")), str(bytecode)]
    there = guest.run(argv, [bytecode])
    assert there.returncode == 0, there.stderr
    here = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert here.returncode == 0, here.stderr
    return [json.loads(there.stdout), json.loads(here.stdout)]


def table(found: list[dict[str, Any]]) -> str:
    """Return a line for each program, a column for each kernel, and why it is refused."""
    lines = [_line("instructions and stack", [said["release"] for said in found])]
    words = []
    for name in found[0]["programs"]:
        answers = [said["programs"][name] for said in found]
        shown = [
            "REFUSED" if "refused" in a else f"{a['instructions']:,}  {a['stack']:>3} B"
            for a in answers
        ]
        lines.append(_line(name, shown))
        for said, answer in zip(found, answers, strict=True):
            if "refused" in answer:
                words.append(f"\nLinux {said['release']} refuses {name}:\n{answer['refused']}")
    return "\n".join(lines + words)


def _line(name: str, cells: list[str]) -> str:
    return f"{name:<23}" + "".join(f"{cell:>25}" for cell in cells)


def main() -> int:
    """Print the table."""
    try:
        found = verdicts(Path(sys.argv[1] if len(sys.argv) > 1 else BYTECODE).resolve())
    except guest.NoGuest as missing:
        print(missing, file=sys.stderr)
        return 2
    print(table(found))
    return int(any("refused" in one for said in found for one in said["programs"].values()))


if __name__ == "__main__":
    sys.exit(main())
