"""Settings made into the parts that verbs work with."""

from __future__ import annotations

import click

from ipmasq_agent.agent.choice import BackendChoice
from ipmasq_agent.backends import detect
from ipmasq_agent.cli.options import Settings
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.config.model import Config


def backend_choice(settings: Settings) -> BackendChoice:
    """Return the choice of backend that the flags leave open."""
    return BackendChoice(
        detect=lambda: detect.choose(settings.backend),
        make=lambda name: detect.make(name, settings.placement),
        holders=detect.holders,
    )


def read_document(settings: Settings) -> Config:
    """Read and understand the document once, and say on standard error what is odd about it.

    Raises:
        SourceError: it cannot be had.
        ConfigError: it cannot be used.
    """
    document = settings.source().read()
    if document.content is None:
        click.echo(f"warning: {document.name} does not exist: the defaults stand for it", err=True)
    understood = parse_document(document.content, document.name, settings.flags)
    for warning in understood.warnings:
        click.echo(f"warning: {warning}", err=True)
    return understood.config
