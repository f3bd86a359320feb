"""``doctor``: what on this node will bite?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ipmasq_agent.cli.options import OWN, SOCKET, hiding, settings_of, shared
from ipmasq_agent.cli.output import emit, output_option, remark, styled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipmasq_agent.answers.doctor.facts import Symptom

_COLOURS = {"error": "red", "warning": "yellow", "info": "cyan"}


@hiding("bpf_flows")
@click.command(
    "doctor",
    epilog="""\b
Examples:
  ipmasq-agent doctor
  ipmasq-agent doctor --document new.yaml -o json
  ipmasq-agent doctor --probe 10.10.1.200 --probe 10.10.2.200:443
""",
)
@click.option(
    "--document",
    metavar="FILE",
    help="Judge by this document, before it is rolled out, and not by the one in force.",
)
@click.option(
    "--probe",
    "probes",
    metavar="ADDRESS[:PORT]",
    multiple=True,
    help="Send to this address from a pod's, by ping or to a TCP port, and see whether a reply "
    "comes back. Nothing is sent anywhere without this.",
)
@shared(*OWN, SOCKET)
@output_option
def command(output: str, document: str | None, probes: tuple[str, ...], **options: Any) -> int:
    """Look for what will bite on this node, and say why and how to mend it.

    Looks at rules of others, settings, devices and routes, and changes none of them. Each
    finding has a section in docs/doctor.md.

    Exit status: 0 nothing found but what is good to know (info), 1 something found, 2 part of
    the node could not be looked at.
    """
    from ipmasq_agent.answers.doctor import examine
    from ipmasq_agent.answers.doctor.facts import Severity
    from ipmasq_agent.cli.doctor_facts import gather_node

    settings = settings_of(options)
    if document is not None:
        settings = settings.naming(document)
    node, unseen = gather_node(settings, probes)
    findings = examine(node)
    remark("error", unseen)
    data = [one.as_data() for one in findings]
    emit(data, output, lambda: as_text(findings, complete=not unseen))
    if unseen:
        return 2
    return int(any(one.severity is not Severity.INFO for one in findings))


def as_text(findings: Sequence[Symptom], *, complete: bool) -> str:
    """Return what was found for people; ``complete`` says that all could be looked at."""
    lines: list[str] = []
    for one in findings:
        lines += [
            f"{styled(one.severity, _COLOURS[one.severity])}: {one.title}",
            *(f"    {line}" for line in one.evidence),
            f"  {one.why}",
            f"  → {one.remedy}",
            f"  {one.page}",
            "",
        ]
    if not findings:
        return "nothing found" if complete else "nothing found in what could be looked at"
    counts = {kind: sum(one.severity == kind for one in findings) for kind in _COLOURS}
    return "\n".join([*lines, ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)])
