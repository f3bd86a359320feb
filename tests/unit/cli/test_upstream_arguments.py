"""Arguments in every form that upstream's containers may have them, and what becomes of each.

The outcomes follow Go's flag package: one dash or two, ``=`` or the next word for a value,
only ``=`` for a boolean, the last one wins, and a word that is no flag ends the reading.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from ipmasq_agent import logs
from ipmasq_agent.cli import klog
from ipmasq_agent.cli.entry import cli
from ipmasq_agent.cli.goflags import KLOG_BOOLEANS, KLOG_VALUES, normalise
from ipmasq_agent.cli.options import settings_of
from ipmasq_agent.errors import UsageError

GKE = (
    "--v=2 --logtostderr=false --log_file=/dev/stdout --log_file_max_size=0 "
    "--masq-chain=IP-MASQ --random-fully=false"
)
CHAIN, V6, RESERVED, RANDOM, PORTS = "chain", "enable_ipv6", "reserved", "random_fully", "ports"

TAKEN: list[tuple[str, dict[str, Any]]] = [
    ("", {CHAIN: "IP-MASQ", V6: False, RESERVED: False, RANDOM: True, PORTS: 0}),
    (GKE, {CHAIN: "IP-MASQ", RANDOM: False, "klog_v": 2, "klog_log_file": "/dev/stdout"}),
    *(
        (f"{dash}{flag}{form}", {key: expected})
        for dash in ("-", "--")
        for flag, key in (
            ("enable-ipv6", V6),
            ("nomasq-all-reserved-ranges", RESERVED),
            ("random-fully", RANDOM),
        )
        for form, expected in (
            ("", True),
            *((f"={yes}", True) for yes in ("1", "t", "T", "true", "TRUE", "True")),
            *((f"={no}", False) for no in ("0", "f", "F", "false", "FALSE", "False")),
        )
    ),
    *(
        (f"{dash}masq-chain{between}IP-MASQ-AGENT", {CHAIN: "IP-MASQ-AGENT"})
        for dash in ("-", "--")
        for between in ("=", " ")
    ),
    *(
        (f"{dash}to-ports{between}1024-29999,32768-65535", {PORTS: 2})
        for dash in ("-", "--")
        for between in ("=", " ")
    ),
    ("--to-ports=", {PORTS: 0}),
    *((f"{form}", {"klog_v": 5}) for form in ("-v=5", "--v=5", "-v 5", "--v 5")),
    ("--v=-1", {"klog_v": -1}),
    *(
        (f"{dash}{name.replace('_', mark)}{form}", {f"klog_{name}": expected})
        for dash in ("-", "--")
        for mark in ("_", "-")
        for name in sorted(KLOG_BOOLEANS)
        for form, expected in (("", True), ("=true", True), ("=false", False))
    ),
    *(
        (f"{dash}{name.replace('_', mark)}{between}7", {f"klog_{name}": kind("7")})
        for dash in ("-", "--")
        for mark in ("_", "-")
        for between in ("=", " ")
        for name in sorted(KLOG_VALUES)
        for kind in (int if name in ("v", "log_file_max_size") else str,)
    ),
    # The last one wins.
    ("--masq-chain=A --masq-chain=B", {CHAIN: "B"}),
    ("--enable-ipv6 --enable-ipv6=false", {V6: False}),
    ("-v=2 -logtostderr --enable-ipv6=true -masq-chain X", {CHAIN: "X", V6: True, "klog_v": 2}),
    # What follows a word that is no flag is not read, there or here.
    ("--enable-ipv6 true --masq-chain=X", {V6: True, CHAIN: "IP-MASQ"}),
    ("--random-fully false", {RANDOM: True}),
    ("--v=2 - --masq-chain=X", {CHAIN: "IP-MASQ"}),
    ("--v=2 -- --masq-chain=X", {CHAIN: "IP-MASQ"}),
    ("--masq-chain X Y --enable-ipv6", {CHAIN: "X", V6: False}),
    ("--logtostderr true --nonsense=1", {"klog_logtostderr": True}),
    # A value is the next word, whatever it looks like.
    ("--log_dir --enable-ipv6", {"klog_log_dir": "--enable-ipv6", V6: False}),
]
REFUSED = [
    "--enable-ipv6=yes",
    "--enable-ipv6=",
    "--random-fully=2",
    "--logtostderr=maybe",
    "--v=two",
    "--v",
    "--masq-chain=",
    "--masq-chain",
    "--to-ports=0-70000",
    "--nonsense",
    "---v=2",
]


def parsed(words: list[str]) -> dict[str, Any]:
    verb, *rest = normalise(words)
    with cli.make_context("ipmasq-agent", [verb], resilient_parsing=True) as root:
        command = cli.get_command(root, verb)
        assert isinstance(command, click.Command)
        with command.make_context(verb, rest, parent=root) as context:
            settings = settings_of(context.params)
    assert verb == "run"
    return {
        **context.params,
        CHAIN: settings.placement.chain,
        V6: settings.flags.enable_ipv6,
        RESERVED: settings.flags.nomasq_all_reserved_ranges,
        RANDOM: settings.flags.random_fully,
        PORTS: len(settings.flags.to_ports),
    }


@pytest.mark.parametrize(("line", "expected"), TAKEN, ids=[line for line, _ in TAKEN])
def test_every_form_that_upstream_takes_means_the_same_here(
    line: str, expected: dict[str, Any]
) -> None:
    found = parsed(line.split())
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("line", REFUSED)
def test_what_upstream_refuses_is_refused(line: str) -> None:
    with pytest.raises((click.ClickException, UsageError)):
        parsed(line.split())


@pytest.mark.parametrize("form", ["--version", "-version", "--version=true", "-v=2 --version=raw"])
def test_the_version_is_told_in_upstreams_forms(form: str) -> None:
    assert normalise(form.split()) == ["--version"]


def test_what_is_not_read_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    normalise(["--enable-ipv6", "true", "--masq-chain=a b"])
    assert capsys.readouterr().err == (
        "warning: ignored, as upstream's agent does: true '--masq-chain=a b'\n"
    )


def test_with_a_verb_a_stray_word_is_an_error() -> None:
    with pytest.raises(click.ClickException, match="unexpected extra argument"):
        parsed(["run", "--enable-ipv6", "true"])


# -- where the log goes ---------------------------------------------------------------------


@contextlib.contextmanager
def log_of(line: str) -> Iterator[None]:
    before, level = logs.logger.handlers[:], logs.logger.level
    options = {key: value for key, value in parsed(line.split()).items() if "klog" in key}
    try:
        klog.configure("text", "info", options)
        yield
    finally:
        for handler in logs.logger.handlers:
            handler.close()
        logs.logger.handlers[:] = before
        logs.logger.setLevel(level)


def say() -> None:
    logs.event(logging.DEBUG, "a detail")
    logs.event(logging.INFO, "news")
    logs.event(logging.ERROR, "a fault")


@pytest.mark.parametrize(
    ("line", "out", "err", "file"),
    [
        ("", "", "news,a fault", ""),
        ("--v=4", "", "a detail,news,a fault", ""),
        ("--logtostderr=true --log_file=FILE", "", "WARNING,news,a fault", ""),
        ("--log_file=FILE", "", "WARNING,news,a fault", ""),
        ("--logtostderr=false", "", "WARNING,news,a fault", ""),
        (GKE, "news,a fault", "", ""),
        ("--logtostderr=false --log_file=/dev/stderr", "", "news,a fault", ""),
        ("--logtostderr=false --log_file=FILE", "", "", "news,a fault"),
        ("--logtostderr=false --log_dir=DIR", "", "", "news,a fault"),
        ("--logtostderr=false --log_file=FILE --alsologtostderr", "", "news,a fault", "both"),
        ("--logtostderr=false --log_file=FILE --stderrthreshold=ERROR", "", "a fault", "both"),
        ("--logtostderr=false --log_file=/none/such", "", "WARNING,news,a fault", ""),
        ("--logtostderr=false --log_file=DIR", "", "WARNING,news,a fault", ""),
        ("--alsologtostderr --vmodule=x=2 --skip_headers", "", "WARNING,news,a fault", ""),
        ("--skip_headers=false --one_output=false", "", "news,a fault", ""),
    ],
)
def test_the_log_goes_where_klogs_would(
    line: str,
    out: str,
    err: str,
    file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = line.replace("FILE", str(tmp_path / "ipmasq-agent.log")).replace("DIR", str(tmp_path))
    with log_of(line):
        say()
    said = capsys.readouterr()
    written = tmp_path / "ipmasq-agent.log"
    in_file = written.read_text() if written.exists() else ""

    def told(text: str) -> str:
        lines = [one.split(None, 2)[1:] for one in text.splitlines()]
        # A warning comes first, in one line, whatever it is about.
        return ",".join("WARNING" if level == "warning" else message for level, message in lines)

    assert told(said.out) == out
    assert told(said.err) == err
    assert told(in_file) == file.replace("both", "news,a fault")


def test_what_changes_nothing_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with log_of("--vmodule=x=2 --log_backtrace_at=a.go:1 --add_dir_header --v=2"):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "these flags of klog change nothing here "
        'flags="--add_dir_header --log_backtrace_at --vmodule"'
    )


def test_a_log_file_grows_to_its_size_and_one_of_before_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log_of(f"--logtostderr=false --log_file={log} --log_file_max_size=1"):
        for _ in range(5):
            logs.event(logging.INFO, "x" * 300_000)
    assert {path.name for path in tmp_path.iterdir()} == {"log", "log.1"}
    assert all(path.stat().st_size < 1 << 20 for path in tmp_path.iterdir())


def test_the_program_itself_starts_with_gkes_arguments(tmp_path: Path) -> None:
    """Up to the address that nobody can listen on, and all of its log on standard output."""
    argv = [sys.executable, "-P", "-m", "ipmasq_agent", *GKE.split(), "--log-format=json"]
    argv += ["--http-address=192.0.2.1:1", f"--config={tmp_path}/none"]
    argv += [f"--masq-chain=NOBODYS-{os.getpid()}"]  # or it would wait for an agent of this machine
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot listen" in done.stderr
    messages = [json.loads(line)["message"] for line in io.StringIO(done.stdout)]
    assert messages[-1] == "starting"  # warnings may come first
