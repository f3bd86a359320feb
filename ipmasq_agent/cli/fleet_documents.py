"""The new document of a fleet, as a command line names it, and what nodes say that it would do."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ipmasq_agent.cli.fleet import FleetProgress
from ipmasq_agent.cli.output import remark

if TYPE_CHECKING:
    from ipmasq_agent.fleet.agents import AgentPod
    from ipmasq_agent.fleet.cluster import Fleet
    from ipmasq_agent.fleet.preview import Preview

F = TypeVar("F", bound=Callable[..., Any])

# Seconds in which a node looks at what would change, with all of its connections.
_PREVIEW = 60.0
_MANIFEST = re.compile(rb"(?m)^\s*[\"']?kind[\"']?\s*:")


def file_option(function: F) -> F:
    """Add the option that names the new document."""
    return click.option(
        *("-f", "--filename"),
        metavar="FILE",
        required=True,
        help="The document, or the manifest of its ConfigMap; - for a pipe.",
    )(function)


def new_document(filename: str) -> bytes:
    """Return the document of a file, having told what its author may want to know.

    Raises:
        ConfigError: it cannot be used.
        SourceError: it cannot be read.
    """
    from ipmasq_agent.config.document import parse_document
    from ipmasq_agent.config.model import Flags
    from ipmasq_agent.errors import SourceError

    try:
        content = sys.stdin.buffer.read() if filename == "-" else Path(filename).read_bytes()
    except OSError as cause:
        raise SourceError(f"{filename} cannot be read: {cause.strerror}") from cause
    # What nodes make of it depends on their flags; each is asked.
    flags = Flags(enable_ipv6=True, cidr_limit=None)
    remark("warning", parse_document(content, filename, flags).warnings)
    return _unwrapped(content, filename) if _MANIFEST.search(content) else content


def _unwrapped(content: bytes, filename: str) -> bytes:
    """Return the document in a manifest, byte for byte; what is no manifest is one itself."""
    import yaml

    from ipmasq_agent.errors import UsageError
    from ipmasq_agent.sources.configmap import content_of
    from ipmasq_agent.sources.location import KEYS

    roots = [each for each in yaml.safe_load_all(content) if isinstance(each, dict)]
    manifests = [item for root in roots for item in root.get("items") or [root]]
    held = [content_of(each) for each in manifests if each.get("kind") == "ConfigMap"]
    found = [data[key] for data in held for key in [*KEYS, *data] if key in data][:1]
    if len(held) > 1 or (held and not found):
        raise UsageError(f"{filename} holds {len(held)} ConfigMaps", remedy="give a document")
    return found[0] if found else content


def previewed(
    fleet: Fleet, agents: Sequence[AgentPod], document: bytes, *, live: bool = True
) -> Preview:
    """Return what nodes say that a document would change there.

    Raises:
        AccessDenied: we may not ask.
    """
    from ipmasq_agent.errors import MALFORMED, AgentError, SourceUnavailable
    from ipmasq_agent.fleet.cluster import said
    from ipmasq_agent.fleet.preview import Preview

    preview = Preview()
    words = ["diff", "--config", "-", "-o", "json", *(["--live"] if live else [])]

    def ask(agent: AgentPod) -> None:
        ran = fleet.run(agent, words, document=document, seconds=max(_PREVIEW, fleet.seconds))
        if ran.status not in (0, 1):
            preview.refused[agent.node] = said(ran)
            return
        try:
            preview.add(agent.node, ran.out)
        except MALFORMED as cause:
            raise SourceUnavailable("it does not answer as an agent does") from cause

    progress = FleetProgress("asking nodes what would change", len(agents))
    try:
        answers = fleet.each(agents, ask, progress)
    finally:
        progress.end()
    failures = ((node, each) for node, each in answers.items() if isinstance(each, AgentError))
    preview.silent.update({node: error.message for node, error in failures})
    return preview
