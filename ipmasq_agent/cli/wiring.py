"""Settings made into the parts that verbs work with."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ipmasq_agent.agent.choice import PlaneChoice
from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.cli.options import Settings
from ipmasq_agent.cli.output import remark
from ipmasq_agent.config.assemble import needs
from ipmasq_agent.config.document import Understood, parse_documents
from ipmasq_agent.config.model import Config
from ipmasq_agent.errors import AgentError, UsageError
from ipmasq_agent.host import seat
from ipmasq_agent.planes import detect, registry
from ipmasq_agent.policy.facts import Facts
from ipmasq_agent.sources import Document, Source

if TYPE_CHECKING:
    from ipmasq_agent.agent.kept import Kept
    from ipmasq_agent.sources.facts import HostAndCluster


def backend_choice(settings: Settings) -> PlaneChoice:
    """Return the choice of backend that the flags leave open."""
    return PlaneChoice(
        detect=lambda large: detect.choose(settings.backend, large=large),
        make=lambda name: detect.make(name, settings.placement),
        holders=lambda: detect.holders(settings.placement),
        leavings=lambda: detect.leavings(settings.placement),
        home=registry.home,
    )


def fact_source(settings: Settings) -> HostAndCluster:
    """Return who knows what documents may need beside themselves."""
    from ipmasq_agent.sources.facts import HostAndCluster

    return HostAndCluster(kubeconfig=settings.kubeconfig, node=settings.node_name)


def kept_in(state_dir: str, source: Source, settings: Settings) -> Kept:
    """Return what is kept in a directory for this source, credentials, node and namespace."""
    from ipmasq_agent.agent.kept import Kept
    from ipmasq_agent.sources.state_dir import StateDir

    credentials = settings.kubeconfig or os.environ.get("KUBECONFIG") or ""
    namespace = os.stat("/proc/self/ns/net").st_ino
    purpose = [source.name, credentials, settings.node_name or "", str(namespace)]
    return Kept(StateDir(state_dir, "; ".join(purpose)), documents=not source.cheap)


def gather(settings: Settings, config: Config) -> Facts:
    """Return the facts that a configuration needs, of the agent that was asked where it can.

    Raises:
        SourceError: one of them cannot be had.
    """
    wanted = needs(config)
    known = Facts(settings.agent.facts if settings.agent is not None else {}).only(wanted)
    for fact, value in fact_source(settings).gather(frozenset(known.missing(wanted))):
        known = known.with_(fact, value)
    return known


def refuse_beside_agent(places: Iterable[str]) -> None:
    """Fail where an agent is at work.

    Raises:
        UsageError: it keeps one of the places, and would undo what we write there.
    """
    kept = seat.kept(places)
    if kept:
        raise UsageError(
            f"an agent is running here, which keeps {' and '.join(kept)} in step with its document",
            remedy="change its document, or stop it first; --beside-agent writes all the same",
        )


def document_of(settings: Settings) -> Document:
    """Read the document once: of an agent that was asked, the one in force.

    Where nobody named one, or the environment that an agent shares with us did, a document
    that is not there means the defaults, as it does to the agent.

    Raises:
        SourceError: it cannot be had.
        UsageError: it was named on the command line, and is not there: a slip of the pen
            must not put the defaults in place of a policy.
    """
    if settings.in_force is not None:
        return settings.in_force
    document = settings.source().read()
    if settings.named and document.absent:
        raise UsageError(
            document.absent[0],
            remedy="correct its name, or leave it out for that of the agent; where the defaults "
            "are meant, pipe them in: `ipmasq-agent config defaults | ... --config -`",
        )
    return document


def understand(document: Document, settings: Settings) -> Understood:
    """Return what a document, or several that are merged, says.

    Raises:
        ConfigError: it cannot be used.
    """
    parts = [(part.name, part.content) for part in document.parts]
    return parse_documents(parts, document.name, settings.flags)


def read_document(settings: Settings) -> Config:
    """Read and understand the document once, and say on standard error what is odd about it.

    Raises:
        AgentError: as ``document_of`` and ``understand`` do.
    """
    document = document_of(settings)
    config = settings.agent.status.config if settings.agent is not None else None
    if document is settings.in_force and config and config.newest and not config.accepted:
        told = f"revision {config.revision} is refused, and the one before it is in force"
        remark("warning", [f"{told}: {config.error}"])
    understood = understand(document, settings)
    remark("note", understood.notes)
    remark("warning", (*document.warnings, *understood.warnings))
    return understood.config


def read_intent(settings: Settings) -> Intent:
    """Read the document and what it depends on, once.

    Raises:
        AgentError: as ``read_document`` and ``gather`` do.
    """
    config = read_document(settings)
    return Intent(config, gather(settings, config))


def try_intent(settings: Settings) -> tuple[Intent | None, AgentError | None]:
    """Return it, or why it cannot be had, for who has something to say without it too.

    Raises:
        UsageError: the document was named, and is not there.
    """
    try:
        return read_intent(settings), None
    except UsageError:
        raise
    except AgentError as error:
        return None, error


def warn_of_replies(config: Config) -> None:
    """Say on standard error where replies to the document's source address may not come back."""
    from ipmasq_agent.agent.snat import replies

    for lines in replies(config):
        remark("warning", lines)
