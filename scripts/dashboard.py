"""Writes the dashboard for Grafana: deploy/helm/ipmasq-agent/files/dashboard.json.

A row of the dashboard is a row here: what a panel shows, of which expressions, in which unit. The
rest is what Grafana asks of any panel.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

PLACE = Path(__file__).parents[1] / "deploy/helm/ipmasq-agent/files/dashboard.json"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_ACROSS, _TALL, _SHORT = 24, 8, 4  # Grafana's grid: columns, and rows of a panel
_OF = 'node=~"$node"'
_PROCESS = f'job="ipmasq-agent",{_OF}'


class Panel(NamedTuple):
    """What one panel shows: expressions with the names of their series."""

    title: str
    about: str
    lines: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"


def _ours(expression: str) -> str:
    """Return an expression with the selection of nodes in the place of ``$``."""
    return expression.replace("{$", "{" + _OF).replace("[~]", "[$__rate_interval]")


def _quantile(part: str, metric: str) -> tuple[str, str]:
    return (
        f"histogram_quantile({part}, sum by (le) (rate(ipmasq_agent_{metric}_bucket{{$}}[~])))",
        f"{float(part):.0%}",
    )


ROWS: dict[str, Sequence[Panel]] = {
    "The fleet": (
        Panel(
            "Agents",
            "Those that Prometheus sees.",
            [("count(ipmasq_agent_ready{$})", "")],
            kind="stat",
        ),
        Panel(
            "Not ready",
            "Their newest document is not in force, or their kernel does not match it.",
            [("count(ipmasq_agent_ready{$}) - sum(ipmasq_agent_ready{$})", "")],
            kind="stat",
        ),
        Panel(
            "Documents in force",
            "One, but while a change or a canary goes round.",
            [('count(count by (hash) (ipmasq_agent_document_info{$,state="in_force"}))', "")],
            kind="stat",
        ),
        Panel(
            "Fought over",
            "Nodes on which somebody undoes our rules again and again.",
            [("sum(ipmasq_agent_contested{$})", "")],
            kind="stat",
        ),
        Panel(
            "Ready, by node",
            "Green: the newest document is in force there.",
            [("ipmasq_agent_ready{$}", "{{node}}")],
            kind="state-timeline",
        ),
        Panel(
            "Nodes by document in force",
            "By the hash of its content: a rollout is one line that falls and one that rises.",
            [
                (
                    'count by (hash) (ipmasq_agent_document_info{$,state="in_force"})',
                    "{{hash}}",
                )
            ],
        ),
        Panel(
            "Nodes by data plane",
            "What masquerades there.",
            [("count by (backend) (ipmasq_agent_backend{$})", "{{backend}}")],
        ),
    ),
    "Others": (
        Panel(
            "Undone by others, and healed",
            "In five minutes, by node and cause.",
            [
                (
                    "sum by (node, cause) (increase(ipmasq_agent_drift_total{$}[5m]))",
                    "{{node}} {{cause}}",
                )
            ],
        ),
        Panel(
            "Ranges that others decide",
            "Destinations about which a rule of others decides otherwise than the document.",
            [("sum by (node) (ipmasq_agent_overridden_ranges{$})", "{{node}}")],
        ),
    ),
    "Traffic": (
        Panel(
            "New flows",
            "By what was decided about them.",
            [("sum by (outcome) (rate(ipmasq_agent_flows_total{$}[~]))", "{{outcome}}")],
            "cps",
        ),
        Panel(
            "New flows that are masqueraded, by node",
            "",
            [
                (
                    'sum by (node) (rate(ipmasq_agent_flows_total{$,outcome="translated"}[~]))',
                    "{{node}}",
                )
            ],
            "cps",
        ),
    ),
    "Limits": (
        Panel(
            "Source ports in use",
            "Toward the fullest destination of a node. At 100 % new connections there fail.",
            [("ipmasq_agent_ports_used_ratio{$}", "{{node}}")],
            "percentunit",
        ),
        Panel(
            "The fullest destinations",
            "Ports in use, of those that there are.",
            [
                (
                    "topk(5, ipmasq_agent_ports_used{$} / ipmasq_agent_ports_available{$})",
                    "{{node}} to {{destination}}",
                )
            ],
            "percentunit",
        ),
        Panel(
            "Connection tracking",
            "How full its table is; past it new connections of any program are dropped.",
            [
                (
                    "ipmasq_agent_conntrack_entries{$} / ipmasq_agent_conntrack_entries_limit{$}",
                    "{{node}}",
                )
            ],
            "percentunit",
        ),
        Panel(
            "Tables of eBPF",
            "How full they are.",
            [
                (
                    "sum without (family) (ipmasq_agent_table_flows{$})"
                    " / ipmasq_agent_table_capacity{$}",
                    "{{node}} {{table}}",
                )
            ],
            "percentunit",
        ),
    ),
    "The agents": (
        Panel(
            "Passes",
            "By what they led to. Unchanged: the kernel held what it should.",
            [("sum by (result) (rate(ipmasq_agent_passes_total{$}[~]))", "{{result}}")],
            "ops",
        ),
        Panel(
            "A pass takes",
            "",
            [_quantile("0.5", "pass_seconds"), _quantile("0.99", "pass_seconds")],
            "s",
        ),
        Panel(
            "A changed document is in the kernel after",
            "From the moment at which an agent notices it.",
            [_quantile("0.5", "change_seconds"), _quantile("0.99", "change_seconds")],
            "s",
        ),
        Panel(
            "Last word of the API",
            "How long ago.",
            [("ipmasq_agent_source_age_seconds{$}", "{{node}}")],
            "s",
        ),
        Panel(
            "CPU",
            "Part of one.",
            [(f"rate(process_cpu_seconds_total{{{_PROCESS}}}[~])", "{{node}}")],
            "percentunit",
        ),
        Panel(
            "Memory",
            "",
            [(f"process_resident_memory_bytes{{{_PROCESS}}}", "{{node}}")],
            "bytes",
        ),
    ),
}


def _drawn(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    """Return a panel as Grafana has it."""
    field: dict[str, Any] = {"unit": panel.unit}
    if panel.unit == "percentunit":
        field |= {"min": 0, "max": 1} if panel.title != "CPU" else {"min": 0}
    elif panel.kind != "state-timeline":
        field |= {"min": 0}
    if panel.kind == "state-timeline":
        words = {"0": ("not ready", "red"), "1": ("ready", "green")}
        options = {key: {"text": text, "color": color} for key, (text, color) in words.items()}
        field |= {"mappings": [{"type": "value", "options": options}]}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": field, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + n),
                "datasource": _SOURCE,
                "expr": _ours(expression),
                "legendFormat": name or "__auto",
            }
            for n, (expression, name) in enumerate(panel.lines)
        ],
    }


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": top, "w": _ACROSS, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "gridPos": place})
        top += 1
        for stat in (True, False):
            some = [panel for panel in row if (panel.kind == "stat") is stat]
            columns, height = (len(some), _SHORT) if stat else (2 + len(some) % 2, _TALL)
            for n, panel in enumerate(some):
                x, y = n % columns, n // columns
                wide = _ACROSS // columns
                place = {"x": x * wide, "y": top + y * height, "w": wide, "h": height}
                panels.append(_drawn(panel, len(panels) + 1, place))
            top += -(-len(some) // columns) * height if some else 0
    return panels


def dashboard() -> dict[str, Any]:
    """Return it as Grafana imports it, from version 9 on."""
    nodes = "label_values(ipmasq_agent_ready, node)"
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource"}
    return {
        "uid": "ipmasq-agent",
        "title": "ipmasq-agent",
        "tags": ["ipmasq-agent", "kubernetes", "network"],
        "schemaVersion": 37,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                source | {"query": "prometheus", "current": {}},
                {
                    "name": "node",
                    "label": "Node",
                    "type": "query",
                    "datasource": _SOURCE,
                    "query": {"query": nodes, "refId": "nodes"},
                    "refresh": 2,
                    "sort": 7,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".*",
                    "current": {"text": ["All"], "value": ["$__all"]},
                },
            ]
        },
        "links": [
            {
                "title": "Runbook",
                "type": "link",
                "url": "https://github.com/OWNER/ipmasq-agent/blob/main/docs/runbook.md",
                "targetBlank": True,
            }
        ],
        "panels": _panels(),
    }


if __name__ == "__main__":
    PLACE.write_text(json.dumps(dashboard(), indent=1) + "\n")
