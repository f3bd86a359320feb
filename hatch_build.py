"""Compiles the eBPF programs whenever the package is built; all else is in pyproject.toml."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Bytecode(BuildHookInterface):  # type: ignore[type-arg]
    """Makes what ships beside the modules of a wheel; the source distribution goes without."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the files are collected."""
        if self.target_name == "wheel":
            subprocess.run([Path(self.root, "ipmasq_agent/planes/bpf/compile")], check=True)
