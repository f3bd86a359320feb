"""The measuring programs beside the package, as their users start them."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from ipmasq_agent.bench.modes import BACKENDS
from tests.deploy.manifests import ROOT


@pytest.mark.parametrize("source", ["file", "api"])
def test_latency_prints_the_stages_of_each_data_plane(source: str) -> None:
    environment = {name: value for name, value in os.environ.items() if "IPMASQ" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "bench.latency", "--changes", "2", "--source", source],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    headings = re.findall(rf"^(\S+), {source}, 64 CIDRs", done.stdout, re.MULTILINE)
    assert headings == [*BACKENDS]
    assert done.stdout.count("write → kernel has the rules") == len(BACKENDS)


def test_footprint_counts_the_resyncs_that_there_were() -> None:
    environment = {name: value for name, value in os.environ.items() if "IPMASQ" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "bench.footprint", "--resyncs", "3"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (counted,) = re.findall(r"^resident after (\d+) resyncs", done.stdout, re.MULTILINE)
    # As many as there were, rather than as many as were asked for.
    assert int(counted) >= 1, done.stdout
