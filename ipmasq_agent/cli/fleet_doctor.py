"""``kubectl ipmasq doctor``: what on the nodes of a cluster will bite?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ipmasq_agent.cli.fleet import FleetProgress, fleet_of, fleet_options
from ipmasq_agent.cli.output import emit, output_option, remark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipmasq_agent.fleet.agents import AgentPod
    from ipmasq_agent.fleet.cluster import Fleet
    from ipmasq_agent.fleet.findings import Findings

_PATIENCE = 60.0  # seconds in which a node looks at itself


@click.command(
    "doctor",
    epilog="""\b
Examples:
  kubectl ipmasq doctor
  kubectl ipmasq doctor --node node-17 -o json
""",
)
@fleet_options
@output_option
def command(output: str, **options: Any) -> int:
    """Look for what will bite on any node, and say where, why and how to mend it.

    What several nodes have alike is told once, with the evidence of the first of them.

    Exit status: 0 nothing found but what is good to know (info), 1 something found, 2 not all of
    each node could be looked at.
    """
    from ipmasq_agent.answers.doctor.facts import Severity
    from ipmasq_agent.cli.doctor import as_text
    from ipmasq_agent.fleet.findings import located
    from ipmasq_agent.fleet.preview import grouped

    fleet = fleet_of(options)
    findings, unseen = looked_at(fleet, fleet.agents())
    remark("error", grouped("could not be looked at in full", unseen))
    found = findings.folded()
    shown = [located(one, nodes) for one, nodes in found]
    emit(
        [{**one.as_data(), "nodes": nodes} for one, nodes in found],
        output,
        lambda: as_text(shown, complete=not unseen),
    )
    if unseen:
        return 2
    return int(any(one.severity is not Severity.INFO for one in shown))


def looked_at(fleet: Fleet, agents: Sequence[AgentPod]) -> tuple[Findings, dict[str, str]]:
    """Return what ``doctor`` finds on nodes, and where it could not look at all, and why.

    Raises:
        AccessDenied: we may not ask.
    """
    from ipmasq_agent.errors import MALFORMED, AgentError, SourceUnavailable
    from ipmasq_agent.fleet.cluster import said
    from ipmasq_agent.fleet.findings import Findings

    findings = Findings()

    def ask(agent: AgentPod) -> None:
        ran = fleet.run(agent, ["doctor", "-o", "json"], seconds=max(_PATIENCE, fleet.seconds))
        try:
            findings.add(agent.node, ran.out)
        except MALFORMED as cause:
            raise SourceUnavailable(said(ran)) from cause
        if ran.status not in (0, 1):
            raise SourceUnavailable(said(ran))

    progress = FleetProgress("looking at nodes", len(agents))
    try:
        answers = fleet.each(agents, ask, progress)
    finally:
        progress.end()
    failures = ((node, each) for node, each in answers.items() if isinstance(each, AgentError))
    return findings, {node: str(error) for node, error in failures}
