"""The verb as users call it: what it refuses, what it leaves, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.running import HEARING
from tests.waiting import wait_until

# Other tests run beside these: the machine never becomes quiet, and is not waited for.
RESTLESS = "from ipmasq_agent import cli; from ipmasq_agent.bench import machine"
RESTLESS += "; machine.QUIETENING = 0.0; cli.main()"
PROGRAM = [sys.executable, "-c", RESTLESS, "bench"]
AGENT = [*HEARING, *PROGRAM]
FILES = {"report.html", "report.md", "results.json"}


def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AGENT, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def processes_with(variable: str) -> list[str]:
    """Numbers of the processes that were started with a variable in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if variable.encode() in environment:
            found.append(entry.name)
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a real benchmark, as short as it can be."""
    folder = tmp_path_factory.mktemp("bench") / "report"
    words = ["--quick", "--rounds", "1", "--mode", "none+ct", "--mode", "nftables"]
    done = call(*words, "--folder", str(folder))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "round 1 of 1: nftables, 64 CIDRs" in done.stderr
    assert f"{folder}/report.html" in done.stdout
    return folder


def results(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return told


def test_it_leaves_a_folder_with_report_plots_and_every_run(measured: Path) -> None:
    names = {entry.name for entry in measured.iterdir()}
    assert names >= FILES
    assert any(name.endswith(".png") for name in names)
    found = results(measured)
    assert [mode["name"] for mode in found["modes"]] == ["none+ct", "nftables"]
    assert {(run["mode"], run["measure"]) for run in found["runs"]} >= {
        ("none+ct", "flows"),
        ("nftables", "flows"),
        ("nftables", "connections"),
    }
    assert "nftables" in (measured / "report.md").read_text()


def test_a_folder_with_a_report_is_not_measured_into(measured: Path) -> None:
    before = {entry.name: entry.read_bytes() for entry in measured.iterdir()}
    done = call("--quick", "--folder", str(measured))
    assert done.returncode == 2
    assert f"{measured} has the report of an earlier benchmark" in done.stderr
    assert {entry.name: entry.read_bytes() for entry in measured.iterdir()} == before
    # To write it again from its own results loses nothing.
    again = call("--results", f"{measured}/results.json", "--folder", str(measured))
    assert again.returncode == 0, again.stderr


def test_what_the_machine_did_beside_it_is_in_the_headline(measured: Path) -> None:
    # It was told not to wait for a quiet machine.
    assert "before 2 of 2 turns the machine did not become quiet" in results(measured)["disturbed"]
    assert "the machine did not become quiet" in (measured / "report.md").read_text()


def test_ctrl_c_keeps_what_was_measured_and_leaves_nothing_running(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    with subprocess.Popen(
        [*AGENT, "--quick", "--mode", "none", "--mode", "ipset", "--folder", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("round 1 of 3: ipset"):
                break
        assert processes_with(f"TMPDIR={tmp_path}")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert results(folder)["stopped"] == "Ctrl-C in round 1 of 3"
    assert {run["mode"] for run in results(folder)["runs"]} == {"none"}
    assert "Ctrl-C" in (folder / "report.md").read_text()
    assert "Ctrl-C" in out
    assert list(tmp_path.iterdir()) == [folder]
    assert processes_with(f"TMPDIR={tmp_path}") == []


@pytest.mark.parametrize("moment", ["does none", "round 1 of 3: iptables-nft"])
def test_one_that_is_killed_in_the_background_leaves_nothing(tmp_path: Path, moment: str) -> None:
    words = ["--quick", "--mode", "none", "--mode", "iptables-nft", "--folder", f"{tmp_path}/f"]
    with subprocess.Popen(
        ["nohup", *PROGRAM, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(moment):
                break
        process.send_signal(signal.SIGHUP)
        assert process.stderr.readline()  # it goes on
        wait_until(lambda: len(processes_with(f"TMPDIR={tmp_path}")) > 3, "it is at work")
        process.kill()
    wait_until(lambda: processes_with(f"TMPDIR={tmp_path}") == [], "its processes have ended")
    wait_until(lambda: list(tmp_path.iterdir()) == [], "its files are gone")


def stored(directory: Path, measured: Path, factor: float) -> Path:
    """What was measured, as if in three rounds in which new flows were slower by a factor."""
    found = results(measured)

    def slower(run: dict[str, Any]) -> dict[str, Any]:
        if (run["mode"], run["measure"]) != ("nftables", "flows"):
            return run
        return {**run, "value": run["value"] * factor, "ratio": run["ratio"] * factor}

    found["runs"] = [
        {**slower(run), "round": number} for number in (1, 2, 3) for run in found["runs"]
    ]
    path = directory / f"{factor}.json"
    path.write_text(json.dumps(found))
    return path


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (0.5, 1), (2.0, 0)])
def test_a_regression_beyond_the_noise_is_an_exit_status(
    measured: Path, tmp_path: Path, factor: float, status: int
) -> None:
    before, after = (stored(tmp_path, measured, one) for one in (1.0, factor))
    done = call("--results", str(after), "--against", str(before))
    assert done.returncode == status, done.stdout + done.stderr


def test_results_can_be_had_as_json_and_drawn_again(measured: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    done = call("--results", str(measured / "results.json"), "--folder", str(again), "-o", "json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["runs"] == results(measured)["runs"]
    assert (again / "results.json").read_text() == (measured / "results.json").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mode", "nonesuch"], "there is no mode 'nonesuch'"),
        (["--against", "/nonesuch.json"], "cannot read /nonesuch.json"),
        (["--results", "/etc/hostname"], "is not a benchmark's results.json"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_starts(words: list[str], said: str) -> None:
    done = call(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "→" in done.stderr or "cannot read" in said


def test_missing_programs_are_named_with_their_packages(tmp_path: Path) -> None:
    done = call("--folder", str(tmp_path / "report"), PATH=str(tmp_path))
    assert done.returncode == 2
    assert "apt-get install" in done.stderr
    for package in ("wrk", "nginx-light", "iperf3", "sockperf", "ipset", "iptables", "nftables"):
        assert package in done.stderr
    assert not (tmp_path / "report").exists()
