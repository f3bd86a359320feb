"""The measuring programs beside the package, as their users start them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from ipmasq_agent.bench.modes import BACKENDS
from ipmasq_agent.bench.testrun import paths
from ipmasq_agent.policy.addresses import Family
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


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.value)
def test_each_packet_of_a_path_meets_what_the_path_is_named_after(family: Family) -> None:
    # More packets than there are frames in a deck, where each must begin a flow.
    arguments = [family.value, "3", "20000", str(1 << 16)]
    done = subprocess.run(
        [sys.executable, "-m", "ipmasq_agent.bench.testrun", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    counted = {path: outcomes for path, (_, outcomes) in found.items()}
    for path, outcomes in {
        paths.NEW_UDP: {"out_translated", "flows_translated"},
        paths.NEW_TCP: {"out_translated", "flows_translated"},
        paths.NEW_KEPT: {"out_kept_by_policy", "flows_kept"},
        paths.MANY_OUT: {"out_translated"},
        paths.MANY_BACK: {"in_translated"},
        paths.DECIDED: {"out_kept_by_policy"},
        paths.OTHER_DEVICE: set(),
    }.items():
        # The kernel itself sends a packet now and then, to find neighbours.
        often = {name: share for name, share in counted[path].items() if share > 0.01}
        assert often == dict.fromkeys(outcomes, 1.0), path


def test_packets_prints_each_path_of_each_tree() -> None:
    options = ["--family", "ipv4", "--cidrs", "3", "--packets", "500", "--flows", "16384"]
    options += ["--rounds", "1", "--tree", str(ROOT), "--tree", f"{ROOT}/../{ROOT.name}"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.packets", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for path in (paths.NEW_UDP, paths.OUT, paths.BACK):
        figures = rf"^  {path} +[\d,]+ \([\d,]+-[\d,]+\)( +[\d.]+)?   "
        of_first, of_second = re.findall(figures, done.stdout, re.MULTILINE)
        assert (of_first, bool(of_second)) == ("", True), done.stdout
    assert "sweep of a full one" in done.stdout
