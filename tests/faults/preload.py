"""A node that is not as it should be, as programs see it; ``preload.c`` makes them see it."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")
_NODE = struct.Struct("=qii")  # struct node


class OddNode:
    """What programs started with ``under`` are told; it may change while they run.

    Args:
        place: a directory for it.
    """

    def __init__(self, place: Path) -> None:
        library, self._told = place / "preload.so", place / "node"
        argv = ["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", os.fspath(library)]
        subprocess.run([*argv, os.fspath(_SOURCE)], check=True)
        self._told.write_bytes(_NODE.pack(0, 0, 0))
        self.under = ("env", f"IPMASQ_TEST_NODE={self._told}", f"LD_PRELOAD={library}")

    def be(self, *, ahead: int = 0, no_ipv6_nat: bool = False, no_ipv6: bool = False) -> None:
        """Let it be so.

        Args:
            ahead: seconds by which the wall clock differs.
            no_ipv6_nat: the kernel has no nat for IPv6.
            no_ipv6: the kernel knows no sockets of IPv6.
        """
        # In place: programs have mapped the file.
        with self._told.open("r+b") as file:
            file.write(_NODE.pack(ahead, no_ipv6_nat, no_ipv6))

    def verb(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a verb on it."""
        argv = [*self.under, sys.executable, "-m", "ipmasq_agent", *words]
        return subprocess.run(argv, capture_output=True, text=True, check=False)
