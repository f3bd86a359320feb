"""The plugin as people start it: a program of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

SCRIPTS = Path(sysconfig.get_path("scripts"))
PLUGIN = (sys.executable, "-c", "from ipmasq_agent.__main__ import plugin; plugin()")


class Done(NamedTuple):
    """What it left: its exit status, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """What it printed as JSON."""
        return json.loads(self.out)


def started(
    kubeconfig: Path, *words: str, program: Sequence[str] = PLUGIN, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    """Start it."""
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubeconfig),
        "PATH": f"{kubeconfig.parent}:{SCRIPTS}:{os.environ['PATH']}",
        "HOME": str(kubeconfig.parent),
    }
    return subprocess.Popen(
        [*program, *words],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def run(kubeconfig: Path, *words: str, program: Sequence[str] = PLUGIN, stdin: str = "") -> Done:
    """Run it to its end."""
    with started(kubeconfig, *words, program=program, stdin=subprocess.PIPE) as child:
        try:
            out, err = child.communicate(stdin, timeout=120)
        except BaseException:
            child.kill()
            raise
    return Done(child.returncode, out, err)
