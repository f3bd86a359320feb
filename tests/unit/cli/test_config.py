"""``config validate``: which documents can be used, for people and for pipelines."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipmasq_agent.cli.output import annotation
from tests.kernel.agent import status_of

Validate = Callable[..., tuple[int, str, str]]

MANIFEST = """\
kind: ConfigMap
metadata: {name: ip-masq-agent}
data:
  config: |
    nonMasqueradeCIDRs: [%s]
---
kind: ServiceAccount
"""


@pytest.fixture
def validate(capsys: pytest.CaptureFixture[str]) -> Validate:
    def run(*words: str) -> tuple[int, str, str]:
        status = status_of("config", "validate", *words)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "good.yaml": "nonMasqueradeCIDRs: [10.0.0.0/8]\n",
        "odd.yaml": "colour: blue\nmasqLinkLocal: true\n",
        "bad.yaml": "nonMasqueradeCIDRs: [10.0.0.1/8]\n",
        "cm.yaml": MANIFEST % "10.0.0.0/8",
        "broken.yaml": MANIFEST % "10.0.0.1/8",
    }.items():
        Path(name).write_text(text)
    Path("parts").mkdir()
    Path("parts/a").write_text("masqLinkLocal: true\n")
    Path("parts/b").write_text("cidrLimit: x\n")


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.usefixtures("files")
def test_files_are_named_as_arguments(validate: Validate) -> None:
    assert validate("good.yaml") == (0, "good.yaml is valid\n", "")
    status, out, err = validate("good.yaml", "bad.yaml", "parts", "none.yaml")
    assert (status, out) == (2, "good.yaml is valid\n")
    assert "error: bad.yaml:1:22: " in err
    assert "error: parts/b:1:12: cidrLimit" in err
    assert "error: none.yaml does not exist; " in err


@pytest.mark.usefixtures("files")
def test_a_manifest_is_checked_for_what_is_in_it(validate: Validate) -> None:
    status, out, err = validate("cm.yaml", "--strict")
    assert (status, out) == (0, "cm.yaml is valid\n")
    assert err == "note: cm.yaml:7:1: ServiceAccount is passed over\n"
    status, out, err = validate("broken.yaml")
    assert (status, out) == (2, "")
    assert "error: broken.yaml:5:26: nonMasqueradeCIDRs" in err


@pytest.mark.usefixtures("files")
def test_strict_takes_warnings_for_errors(validate: Validate) -> None:
    assert validate("odd.yaml")[0] == 0
    status, out, err = validate("--strict", "odd.yaml")
    assert (status, out) == (2, "")
    assert "warning: odd.yaml:1:1: unknown key 'colour' is ignored" in err
    assert "error: --strict takes warnings for errors" in err


@pytest.mark.usefixtures("files")
def test_github_shows_each_line_in_its_place(validate: Validate) -> None:
    status, out, err = validate("-o", "github", "broken.yaml", "odd.yaml", "cm.yaml")
    assert (status, err) == (2, "")
    lines = out.splitlines()
    assert lines[:2] == ["odd.yaml is valid", "cm.yaml is valid"]
    (error,) = [line for line in lines if line.startswith("::error")]
    assert error.startswith("::error file=broken.yaml,line=5,col=26::nonMasqueradeCIDRs: ")
    (warning,) = [line for line in lines if line.startswith("::warning")]
    assert warning.startswith("::warning file=odd.yaml,line=1,col=1::")
    assert any(line.startswith("::notice file=cm.yaml,line=7,") for line in lines)
    status, out, _ = validate("-o", "github", "--strict", "odd.yaml")
    assert (status, out.split(" ", 1)[0]) == (2, "::error")


def test_no_name_or_text_can_give_github_another_command() -> None:
    assert annotation("error", "a:1,b.yaml:3:4: 100%\n::stop-commands::x") == (
        "::error file=a%3A1%2Cb.yaml,line=3,col=4::100%25%0A::stop-commands::x"
    )
    assert annotation("warning", "standing alone") == "::warning::standing alone"


@pytest.mark.usefixtures("files")
def test_the_data_of_several_files_hold_what_is_said_of_each_and_of_all(validate: Validate) -> None:
    def answer(*words: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(validate("-o", "json", *words)[1])
        return answer

    one = answer("good.yaml")
    assert (one["valid"], one["problems"], one["warnings"]) == (True, [], [])
    both = answer("odd.yaml", "bad.yaml")
    assert both["valid"] is False
    assert [d["valid"] for d in both["documents"]] == [True, False]
    assert [d["name"] for d in both["documents"]] == ["odd.yaml", "bad.yaml"]
    assert both["warnings"] == both["documents"][0]["warnings"] != []
    assert both["problems"] == both["documents"][1]["problems"] != []
    assert answer("none.yaml")["documents"][0]["exists"] is False


@pytest.mark.usefixtures("files")
def test_a_pipe_is_read_once_and_is_never_empty(
    validate: Validate, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, b"masqLinkLocal: true\n")
    assert validate("-")[:2] == (0, "standard input is valid\n")
    # What a program leaves that failed before the pipe is no wish for the defaults.
    piped(monkeypatch, b"")
    status, _, err = validate("-")
    assert status == 2
    assert "standard input is empty" in err
    assert validate("-", "-")[0] == 2


@pytest.mark.usefixtures("files")
def test_a_document_is_named_in_one_way(
    validate: Validate, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "named twice" in validate("good.yaml", "--config", "bad.yaml")[2]
    # What the agent's environment says gives way to what is on the command line.
    monkeypatch.setenv("IPMASQ_CONFIGMAP", "kube-system/ip-masq-agent")
    assert validate("good.yaml")[0] == 0


@pytest.mark.usefixtures("files")
def test_a_document_is_held_to_the_limit_of_the_data_plane_that_it_is_for(
    validate: Validate, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = ", ".join(f"10.0.{number}.0/24" for number in range(65))
    Path("large.yaml").write_text(f"nonMasqueradeCIDRs: [{entries}]\n")
    status, _, error = validate("large.yaml")
    assert (status, "cidrLimit allows 64" in error) == (2, True)
    assert validate("--backend", "nftables", "large.yaml")[0] == 0
    monkeypatch.setenv("IPMASQ_BACKEND", "ipset")  # as in the pod of an agent that takes it
    assert validate("large.yaml")[0] == 0
    assert status_of("config", "view", "--config", "large.yaml") == 0
    assert validate("--backend", "iptables", "large.yaml")[0] == 2


@pytest.mark.usefixtures("files")
def test_the_hook_for_pre_commit_is_a_command_that_is_taken(validate: Validate) -> None:
    (hook,) = yaml.safe_load((Path(__file__).parents[3] / ".pre-commit-hooks.yaml").read_text())
    program, *words = hook["entry"].split()
    assert (program, words[:2], hook["language"]) == (
        "ipmasq-agent",
        ["config", "validate"],
        "system",
    )
    assert validate(*words[2:], "good.yaml")[0] == 0
    assert validate(*words[2:], "good.yaml", "odd.yaml")[0] == 2
    for name in ("clusters/a/ip-masq-agent.yaml", "ip-masq-agent-config.yml"):
        assert re.search(hook["files"], name)
    assert not re.search(hook["files"], "deployment.yaml")
