"""``config``: check a document, show it as understood, show the defaults and the schema."""

from __future__ import annotations

from typing import Any

import click

from ipmasq_agent.cli.options import (
    API,
    MEANING,
    MEANT_BACKEND,
    SOURCE,
    Settings,
    hiding,
    settings_of,
    shared,
)
from ipmasq_agent.cli.output import annotation, emit, output_option, output_option_with, remark


@click.group(
    "config",
    epilog="""\b
Examples:
  ipmasq-agent config defaults > config.yaml
  ipmasq-agent config validate config.yaml
  ipmasq-agent config view --config config.yaml -o json
  ipmasq-agent config schema > document.schema.json
""",
)
def command() -> None:
    """Check a document, show it as understood, show the defaults and the schema."""


@hiding("node_name", "canary_configmap")
@command.command(
    epilog="""\b
Examples:
  ipmasq-agent config validate config.yaml
  ipmasq-agent config validate --strict config.yaml - < config.yaml
  ipmasq-agent config defaults | ipmasq-agent config validate -
  ipmasq-agent config validate -o github config.yaml
  ipmasq-agent config validate --configmap kube-system/ip-masq-agent --enable-ipv6
"""
)
@click.argument("files", metavar="[FILE]...", nargs=-1)
@click.option("--strict", is_flag=True, help="Take a warning for an error.")
@shared(*SOURCE, *API, *MEANING, MEANT_BACKEND)
@output_option_with("text", "github")
def validate(files: tuple[str, ...], strict: bool, output: str, **options: Any) -> int:
    """Say whether documents can be used, and everything that is odd about them.

    Each FILE is a document, a directory of parts that are merged, a ConfigMap's manifest,
    or - for a pipe; without one it is the document of the agent. With `-o github` what is wrong
    or odd is shown by GitHub Actions at its line.

    Exit status: 0 when all can be used (warnings or not), 2 when one cannot.
    """
    from ipmasq_agent.errors import UsageError

    settings = settings_of(options)
    if files and settings.named:
        raise UsageError("the document is named twice", remedy="give FILE, or a flag")
    if files.count("-") > 1:
        raise UsageError("a pipe can be read once", remedy="give - once")
    each = [settings.naming(name) for name in files]
    answers = [_checked(one, strict) for one in each or [settings]]

    def as_text() -> str:
        return "\n".join(
            f"{a['name']} is valid"
            if a["exists"]
            else f"{'; '.join(a['absent'])}: the defaults hold"
            for a in answers
            if a["valid"]
        )

    joined = {
        kind: [line for answer in answers for line in answer[kind]]
        for kind in ("problems", "warnings", "notes")
    }
    valid = all(answer["valid"] for answer in answers)
    shown = "text" if output == "github" else output
    emit({"valid": valid, **joined, "documents": answers}, shown, as_text)
    if output == "github":
        # --strict fails for them, so they are shown as what they are taken for.
        levels = {"problems": "error", "warnings": "error" if strict else "warning"}
        for kind, level in (levels | {"notes": "notice"}).items():
            for line in joined[kind]:
                click.echo(annotation(level, line))
    elif output == "text":
        for kind, word in (("problems", "error"), ("warnings", "warning"), ("notes", "note")):
            remark(word, joined[kind])
        if strict and not valid and not joined["problems"]:
            click.echo("error: --strict takes warnings for errors", err=True)
    return 0 if valid else 2


def _checked(settings: Settings, strict: bool) -> dict[str, Any]:
    """Return what there is to say about one document."""
    from ipmasq_agent.cli.wiring import document_of, understand
    from ipmasq_agent.config.document import oversize
    from ipmasq_agent.errors import AgentError, ConfigError

    about: dict[str, Any] = {"name": settings.source().name, "exists": False, "absent": []}
    found: dict[str, list[str]] = {"problems": [], "warnings": [], "notes": []}
    try:
        document = document_of(settings)
        there, absent = bool(document.parts), list(document.absent)
        about = {"name": document.name, "exists": there, "absent": absent}
        understood = understand(document, settings)
        found["warnings"] = [*understood.warnings, *oversize(document.parts)]
        found["notes"] = [*understood.notes]
    except AgentError as error:
        each = error.problems if isinstance(error, ConfigError) else (str(error),)
        found["problems"] = [*each]
    valid = not found["problems"] and not (strict and found["warnings"])
    return {**about, "valid": valid, **found}


@hiding("node_name", "canary_configmap")
@command.command(
    epilog="""\b
Examples:
  ipmasq-agent config view --config config.yaml
  ipmasq-agent config view --config config.yaml -o json
"""
)
@shared(*SOURCE, *API, *MEANING, MEANT_BACKEND)
@output_option
def view(output: str, **options: Any) -> None:
    """Show the document as it is understood, completed with defaults."""
    from ipmasq_agent.cli.wiring import read_document
    from ipmasq_agent.config.keys import view as view_of

    _show(view_of(read_document(settings_of(options))), output)


@hiding("config", "configmap", "kubeconfig", "node_name", "canary_configmap")
@command.command(
    epilog="""\b
Examples:
  ipmasq-agent config defaults > config.yaml
  ipmasq-agent config defaults --nomasq-all-reserved-ranges
"""
)
@shared(*SOURCE, *API, *MEANING)
@output_option
def defaults(output: str, **options: Any) -> None:
    """Show what a missing or empty document stands for, ready to be edited."""
    from ipmasq_agent.config.document import parse_documents
    from ipmasq_agent.config.keys import view as view_of

    absent = parse_documents([], "default", settings_of(options).flags)
    _show(view_of(absent.config), output)


@command.command(
    epilog="""\b
Examples:
  ipmasq-agent config schema > document.schema.json
  ipmasq-agent config schema -o text
"""
)
@output_option_with("json")
def schema(output: str) -> None:
    """Print a JSON Schema (draft 2020-12) of the document, for editors and CI.

    As text: the table of keys, in Markdown. A schema cannot tell all that `config validate`
    does; what it leaves out stands in its description.
    """
    from ipmasq_agent.config import schema as of_document

    emit(of_document.schema(), output, of_document.markdown)


def _show(document: dict[str, Any], output: str) -> None:
    def as_yaml() -> str:
        import yaml

        return str(yaml.safe_dump(document, sort_keys=False))

    emit(document, output, as_yaml)
