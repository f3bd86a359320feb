"""The pages as a site, and their commands as the command line takes them."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ipmasq_agent.cli.entry import VERBS, cli
from ipmasq_agent.cli.goflags import normalise
from tests.deploy.manifests import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_BLOCK = re.compile(r"```(?:sh|console)?\n(.*?)```", re.DOTALL)
_COMMAND = re.compile(rf"\bipmasq-agent ((?:{'|'.join(VERBS)})\b[^\n`|;&<>#()…\]]*)")
_LAB = re.compile(r"lab exec \S+ (?!ipmasq-agent).*")


def commands() -> Iterator[tuple[str, str]]:
    """Yield page and command of each that is in a block, or quoted in the text."""
    for page in PAGES:
        text = page.read_text()
        quoted = "\n".join(re.findall(r"`(ipmasq-agent [^`]+)`", text.replace("\n", " ")))
        blocks = "\n".join(_BLOCK.findall(text)).replace("\\\n", " ")
        for found in dict.fromkeys(_COMMAND.findall(f"{blocks}\n{quoted}")):
            if " " in found.strip():  # else it only names a verb
                yield page.name, found.strip()


def takes(words: list[str]) -> None:
    """Let the real parser read a command line, without running it."""
    command: click.Command = cli
    context = cli.make_context("ipmasq-agent", [], resilient_parsing=True)
    words = normalise(words)
    while isinstance(command, click.Group) and words:
        name, *words = words
        below = command.get_command(context, name)
        assert below is not None, name
        command = below
    with contextlib.suppress(click.exceptions.Exit):  # as of --help
        command.make_context(command.name, words, parent=context)


@pytest.mark.parametrize(("page", "line"), [*commands()])
def test_every_command_of_every_page_is_one_that_the_command_line_takes(
    page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("new.yaml", "bad.yaml"):  # which the reader has written
        Path(name).touch()
    if _LAB.match(line):
        line = line.partition(" exec ")[0] + " exec host true"
    # What stands for something that a reader knows.
    for word, value in (("ADDRESS:PORT", "192.0.2.1:443"), ("ADDRESS", "192.0.2.1")):
        line = line.replace(word, value)
    takes(shlex.split(line))


def test_commands_are_found() -> None:
    assert len([*commands()]) > 45


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    mkdocs = Path(sysconfig.get_path("scripts"), "mkdocs")
    done = subprocess.run(
        [mkdocs, "build", "--quiet", "--strict", "--site-dir", place],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "NO_MKDOCS_2_WARNING": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr  # a link, an anchor or a page that is not there
    return place


def test_every_page_is_in_the_site_and_asks_nothing_of_other_servers(site: Path) -> None:
    for page in sorted((ROOT / "docs").glob("*.md")):
        html = (site / page.with_suffix(".html").name).read_text()
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"([^\"]+)", html)
        loaded += re.findall(
            r"<link[^>]*rel=\"(?:stylesheet|icon|preload)\"[^>]*href=\"([^\"]+)", html
        )
        assert loaded
        for address in loaded:
            assert not re.match(r"(https?:)?//", address), address
            assert (site / address.partition("?")[0]).exists(), address


def test_each_verb_has_a_page_for_man(tmp_path: Path) -> None:
    python = Path(sysconfig.get_path("scripts"), "python")
    subprocess.run([python, ROOT / "scripts/reference.py", "man", tmp_path], check=True)
    pages = {path.stem for path in tmp_path.iterdir()}
    assert {f"ipmasq-agent-{verb}" for verb in VERBS} | {"ipmasq-agent"} <= pages
    text = (tmp_path / "ipmasq-agent-config-validate.1").read_text()
    assert text.startswith('.TH "IPMASQ-AGENT CONFIG VALIDATE"')
    assert r"\-\-strict" in text
