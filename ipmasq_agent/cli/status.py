"""``status``: does the kernel hold what the document asks for?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ipmasq_agent.cli.options import agent_options, settings_of
from ipmasq_agent.cli.output import emit, output_option

if TYPE_CHECKING:
    from ipmasq_agent.answers.overrides import Overridden
    from ipmasq_agent.policy.addresses import Family


@click.command(
    "status",
    epilog="""\b
Examples:
  ipmasq-agent status
  ipmasq-agent status --configmap kube-system/ip-masq-agent --enable-ipv6 -o json
""",
)
@agent_options
@output_option
def command(output: str, **options: Any) -> int:
    """Say which data plane masquerades here, and whether it is in step with the document.

    Reads the document and the kernel itself, so it works with or without an agent running.
    In sync is not in force: rules of others may come before ours. Which they are, and for
    which destinations they decide, is told as well.

    Exit status: 0 in sync and in force, 1 not, 2 when the kernel cannot be read at all.
    """
    from ipmasq_agent.agent.intent import Intent
    from ipmasq_agent.agent.moves import deciding
    from ipmasq_agent.agent.snat import Replies, replies
    from ipmasq_agent.agent.status import ConfigStatus, Status
    from ipmasq_agent.answers.overrides import shadow
    from ipmasq_agent.cli.wiring import backend_choice, document_of, gather, understand
    from ipmasq_agent.config.keys import NATIVE_ROUTING_CIDRS
    from ipmasq_agent.errors import AgentError, UsageError
    from ipmasq_agent.host.devices import egress_devices
    from ipmasq_agent.planes.hook.read import read_hook
    from ipmasq_agent.policy.addresses import Family

    settings = settings_of(options)
    name = settings.source().name
    intent = None
    native: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    config = ConfigStatus(name)
    try:
        document = document_of(settings)
        config = ConfigStatus(name, document.revision)
        understood = understand(document, settings)
        config = ConfigStatus(name, document.revision, accepted=True, warnings=understood.warnings)
        native = tuple(str(prefix) for prefix, _ in understood.config[NATIVE_ROUTING_CIDRS])
        try:
            intent = Intent(understood.config, gather(settings, understood.config))
        except AgentError as error:
            waiting = (str(error),)
    except UsageError:
        raise
    except AgentError as error:
        config = ConfigStatus(name, config.revision, error=str(error))

    choice = backend_choice(settings)
    errors = {}
    differing = []
    overridden: list[Overridden] = []
    partial: list[str] = []
    advice = []
    counters: Mapping[tuple[Family, str], int] = {}
    try:
        backend, others = choice.current(large=intent is not None and intent.is_large)
        if intent is not None:
            for family in intent.config.families:
                try:
                    desired = intent.desired(backend, family)
                    if backend.plan(backend.read(family), desired):
                        differing.append(family)
                    advice.append(backend.advice(desired))
                    hook = read_hook(family, backend.place, settings.placement)
                    found = shadow(intent.policy(backend, family), hook, egress_devices())
                    overridden += found.overridden
                    partial += found.partial
                except AgentError as error:
                    errors[family] = str(error)
        left = choice.unseen + deciding(others)
        if not errors:
            counters = backend.counters()
    finally:
        choice.close()
    answers = replies(intent.config) if intent is not None else Replies()
    families = (Family.IPV4, Family.IPV6) if settings.flags.enable_ipv6 else (Family.IPV4,)
    status = Status(
        config=config,
        mode=backend.name,
        mode_reason=choice.reason,
        devices=egress_devices(),
        families=families,
        native_routing=native,
        waiting=waiting,
        left_behind=left,
        unanswered=answers.unanswered,
        advice=(*(line for line in advice if line), *answers.doubtful),
        in_sync=intent is not None and not differing and not errors,
        errors=errors,
        overridden=tuple(overridden),
        partial=tuple(partial),
        counters=counters,
    )

    def as_text() -> str:
        hints = [f"Differs:      {f.value}; see `ipmasq-agent diff`" for f in differing]
        return "\n".join([status.as_text(), *hints])

    emit(status.as_data(), output, as_text)
    return 0 if status.in_force else 1
