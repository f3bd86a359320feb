"""``kubectl ipmasq diff``: what would a document change, and where?"""

from __future__ import annotations

from typing import Any

import click

from ipmasq_agent.cli.fleet import document_option, fleet_of, fleet_options, publisher_of
from ipmasq_agent.cli.fleet_documents import file_option, new_document, previewed
from ipmasq_agent.cli.output import colour, emit, output_option


@click.command(
    "diff",
    epilog="""\b
Examples:
  kubectl ipmasq diff -f new.yaml
  kubectl ipmasq diff -f new.yaml --live --node node-17
  kubectl get configmap -n kube-system ip-masq-agent -o yaml | kubectl ipmasq diff -f -
""",
)
@file_option
@click.option("--live", is_flag=True, help="Count the connections that would leave otherwise.")
@fleet_options
@document_option
@output_option
def command(filename: str, live: bool, configmap: str, output: str, **options: Any) -> int:
    """Show what a document would change: beside the cluster's, and in the kernel of each node.

    Nodes that would change alike are told of together. Nothing is written. With the cluster's own
    document, as in the last example, it shows what has drifted.

    Exit status: 0 nothing would change, 1 something would, 2 where a node would refuse the
    document, does not answer, or on any other error.
    """
    from ipmasq_agent.answers.unified import unified
    from ipmasq_agent.fleet.published import digest_of

    document = new_document(filename)
    fleet = fleet_of(options)
    publisher = publisher_of(fleet, configmap)
    held = publisher.read()
    preview = previewed(fleet, fleet.agents(), document, live=live)
    names = f"{publisher.place} ({held.digest})", f"{filename} ({digest_of(document)})"
    before, after = (
        (each or b"").decode(errors="backslashreplace").splitlines()
        for each in (held.content, document)
    )
    texts = unified(before, after, *names)
    answer = {"hash": digest_of(document), "before": held.digest, **preview.as_data()}

    def as_text() -> str:
        return "\n".join([*map(colour, texts), *preview.as_lines(rules=True)])

    emit(answer, output, as_text)
    if preview.refused or preview.silent:
        return 2
    return int(preview.changed or held.digest != digest_of(document))
