"""``config``: check a document, show it as understood, show the defaults."""

from __future__ import annotations

from typing import Any

import click

from ipmasq_agent.cli.options import document_options, settings_of
from ipmasq_agent.cli.output import emit, output_option


@click.group(
    "config",
    epilog="""\b
Examples:
  ipmasq-agent config defaults > config.yaml
  ipmasq-agent config validate --config config.yaml
  ipmasq-agent config view --config config.yaml -o json
""",
)
def command() -> None:
    """Check a document, show it as understood, show the defaults."""


@command.command(
    epilog="""\b
Examples:
  ipmasq-agent config validate --config config.yaml
  ipmasq-agent config defaults | ipmasq-agent config validate --config -
  ipmasq-agent config validate --configmap kube-system/ip-masq-agent --enable-ipv6
"""
)
@document_options
@output_option
def validate(output: str, **options: Any) -> int:
    """Say whether the document can be used, and everything that is odd about it.

    Exit status: 0 when it can be used (warnings or not), 2 when it cannot.
    """
    from ipmasq_agent.cli.wiring import understand
    from ipmasq_agent.config.document import oversize
    from ipmasq_agent.errors import ConfigError

    settings = settings_of(options)
    document = settings.source().read()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    try:
        warnings = understand(document, settings).warnings
        warnings += tuple(oversize(document.parts))
    except ConfigError as error:
        problems = error.problems
    missing = not document.parts

    def as_text() -> str:
        if missing:
            return f"{document.name} does not exist: the defaults are in force"
        return "" if problems else f"{document.name} is valid"

    emit(
        {"valid": not problems, "problems": list(problems), "warnings": list(warnings)},
        output,
        as_text,
    )
    if output == "text":
        for problem in problems:
            click.echo(f"error: {problem}", err=True)
        for warning in warnings:
            click.echo(f"warning: {warning}", err=True)
    return 2 if problems else 0


@command.command(
    epilog="""\b
Examples:
  ipmasq-agent config view --config config.yaml
  ipmasq-agent config view --config config.yaml -o json
"""
)
@document_options
@output_option
def view(output: str, **options: Any) -> None:
    """Show the document as it is understood, completed with defaults."""
    from ipmasq_agent.cli.wiring import read_document

    settings = settings_of(options)
    _show(read_document(settings).view(), output)


@command.command(
    epilog="""\b
Examples:
  ipmasq-agent config defaults > config.yaml
  ipmasq-agent config defaults --nomasq-all-reserved-ranges
"""
)
@document_options
@output_option
def defaults(output: str, **options: Any) -> None:
    """Show what a missing or empty document stands for, ready to be edited."""
    from ipmasq_agent.config.document import default_config

    _show(default_config(settings_of(options).flags).view(), output)


def _show(document: dict[str, Any], output: str) -> None:
    def as_yaml() -> str:
        import yaml

        return str(yaml.safe_dump(document, sort_keys=False))

    emit(document, output, as_yaml)
