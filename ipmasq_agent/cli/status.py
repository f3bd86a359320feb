"""``status``: does the kernel hold what the document asks for?"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ipmasq_agent.cli.options import OWN, SOCKET, Settings, hiding, settings_of, shared
from ipmasq_agent.cli.output import emit, output_option
from ipmasq_agent.errors import AgentError, UsageError
from ipmasq_agent.policy.addresses import Family

if TYPE_CHECKING:
    from ipmasq_agent.agent.intent import Intent
    from ipmasq_agent.agent.status import Status


@hiding("bpf_flows")
@click.command(
    "status",
    epilog="""\b
Examples:
  ipmasq-agent status
  ipmasq-agent status --configmap kube-system/ip-masq-agent --enable-ipv6 -o json
""",
)
@shared(*OWN, SOCKET)
@output_option
def command(output: str, **options: Any) -> int:
    """Say which data plane masquerades here, and whether it is in step with the document.

    Reads the kernel itself. What is said of the document is what the running agent says, if
    there is one: which revision is in force and since when, and what became of the newest.
    Without one, or with --config or --configmap, the document is read here.

    In sync is not in force: rules of others may come before ours. Which they are, and for
    which destinations they decide, is told as well.

    Exit status: 0 in sync and in force, 1 not, 2 when the kernel cannot be read at all.
    """
    settings = settings_of(options)
    status, intent = _of_document(settings)
    status, differing = _of_kernel(status, intent, settings)

    def as_text() -> str:
        hints = [f"Differs:      {f.value}; see `ipmasq-agent diff`" for f in differing]
        return "\n".join([status.as_text(), *hints])

    emit(status.as_data(), output, as_text)
    return 0 if status.in_force else 1


def _of_document(settings: Settings) -> tuple[Status, Intent | None]:
    """Return what there is to say of the document, and what it means if that is known."""
    from ipmasq_agent.agent.intent import Intent
    from ipmasq_agent.agent.status import ConfigStatus, Status, accepted, seen
    from ipmasq_agent.cli.wiring import document_of, gather, understand

    name, now = settings.source().name, time.time()
    status = Status(ConfigStatus(name))
    try:
        document = document_of(settings)
        status = Status(ConfigStatus(name, seen(document, now)))
        understood = understand(document, settings)
        status = Status(accepted(name, document, understood, now))
        if document is settings.in_force:
            assert settings.agent is not None
            status = settings.agent.status
        return status, Intent(understood.config, gather(settings, understood.config))
    except UsageError:
        raise
    except AgentError as error:
        if status.config.accepted:
            return replace(status, waiting=(*status.waiting, str(error))), None
        return Status(replace(status.config, error=str(error))), None


def _of_kernel(
    status: Status, intent: Intent | None, settings: Settings
) -> tuple[Status, list[Family]]:
    """Return the status with what the kernel holds, and the families that differ."""
    from ipmasq_agent.agent.snat import Replies, replies
    from ipmasq_agent.agent.status import Look
    from ipmasq_agent.answers.overrides import Overridden, shadow
    from ipmasq_agent.answers.ports import looked
    from ipmasq_agent.cli.questions import here
    from ipmasq_agent.host.sysctl import connections
    from ipmasq_agent.planes.live import ports_taken
    from ipmasq_agent.planes.plane import Translator

    errors: dict[Family, str] = {}
    differing: list[Family] = []
    advice: list[str] = []
    overridden: list[Overridden] = []
    partial: list[str] = []
    unknown: list[str] = []
    with here(settings, intent) as node:
        plane = node.plane
        for family in intent.config.families if intent is not None else ():
            assert intent is not None
            try:
                desired = intent.desired(plane, family)
                if plane.dialect.plan(node.read(plane, family), desired):
                    differing.append(family)
                    told = settings.agent.status.look.errors if settings.agent else {}
                    if family in told:
                        errors[family] = told[family]
                if line := plane.dialect.advice(desired):
                    advice.append(f"{family.value}: {line}")
                found = shadow(intent.policy(plane, family), node.hook(family))
                overridden += found.overridden
                partial += found.partial
            except AgentError as error:
                errors[family] = str(error)
        try:
            taken = looked(ports_taken(plane, node.ports()))
            status = replace(status, ports=taken._replace(tracked=connections()))
        except AgentError as error:
            unknown.append(str(error))
        if isinstance(plane, Translator) and not errors:
            status = replace(status, counters=plane.counters(), usage=plane.usage())
        answered = replies(intent.config) if intent is not None else Replies()
        look = Look(
            plane.name,
            node.reason,
            node.egress,
            settings.families,
            in_step=intent is not None and not differing,
            errors=errors,
            left_behind=node.left + node.unread,
            unanswered=answered.unanswered,
            advice=(*advice, *answered.doubtful),
            contested=status.look.contested,
        )
    status = replace(status.looked(look), overridden=tuple(overridden), partial=tuple(partial))
    return replace(status, unknown=tuple(unknown)), differing
