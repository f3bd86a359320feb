"""Compiles the eBPF programs whenever the package is built; all else is in pyproject.toml."""

from __future__ import annotations

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithBytecode(build_py):
    """The usual build of modules, after the bytecode that ships beside them."""

    def run(self) -> None:
        """Compile, then collect."""
        subprocess.run([Path("ipmasq_agent/planes/bpf/compile").absolute()], check=True)
        super().run()


setup(cmdclass={"build_py": WithBytecode})
