"""``status``: does the kernel hold what the document asks for?"""

from __future__ import annotations

from typing import Any

import click

from ipmasq_agent.cli.options import agent_options, settings_of
from ipmasq_agent.cli.output import emit, output_option


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
    Exit status: 0 in sync, 1 not, 2 when the kernel cannot be read at all.
    """
    from ipmasq_agent.agent.status import ConfigStatus, Status
    from ipmasq_agent.cli.questions import family_diff
    from ipmasq_agent.cli.wiring import backend_choice
    from ipmasq_agent.config.document import parse_document
    from ipmasq_agent.errors import AgentError
    from ipmasq_agent.host.links import egress_devices
    from ipmasq_agent.policy.addresses import Family
    from ipmasq_agent.policy.assemble import assemble_family

    settings = settings_of(options)
    source = settings.source()
    wish = None
    config = ConfigStatus(source.name)
    try:
        document = source.read()
        config = ConfigStatus(source.name, document.revision)
        understood = parse_document(document.content, document.name, settings.flags)
        wish = understood.config.wish(settings.flags)
        config = ConfigStatus(
            source.name, document.revision, accepted=True, warnings=understood.warnings
        )
    except AgentError as error:
        config = ConfigStatus(source.name, config.revision, error=str(error))

    choice = backend_choice(settings)
    errors = {}
    differing = []
    try:
        backend, _ = choice.current()
        if wish is not None:
            for family in wish.families:
                try:
                    policy = assemble_family(wish, family, backend.capabilities(family))
                    if family_diff(backend, family, policy).changed:
                        differing.append(family)
                except AgentError as error:
                    errors[family] = str(error)
    finally:
        choice.close()
    families = (Family.IPV4, Family.IPV6) if settings.flags.enable_ipv6 else (Family.IPV4,)
    status = Status(
        config=config,
        mode=backend.name,
        mode_reason=choice.reason,
        devices=egress_devices(),
        families=families,
        in_sync=wish is not None and not differing and not errors,
        errors=errors,
    )

    def as_text() -> str:
        hints = [f"Differs:      {f.value}; see `ipmasq-agent diff`" for f in differing]
        return "\n".join([status.as_text(), *hints])

    emit(status.as_data(), output, as_text)
    return 0 if status.in_sync else 1
