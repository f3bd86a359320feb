"""Alerts and dashboard, by Prometheus' own rule engine: what fires, and what is drawn."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from ipmasq_agent.agent.exposition import exposed
from ipmasq_agent.agent.metrics import Metrics
from ipmasq_agent.agent.status import ConfigStatus, Look, Sighting, Status
from ipmasq_agent.answers.ports import PortLook, PortRow
from ipmasq_agent.planes.usage import FlowTable, Usage
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.flows import End
from ipmasq_agent.policy.ports import IDENTIFIERS, PortUse
from tests.deploy.chart import CHART, template, told_apart
from tests.deploy.manifests import DEPLOY, ROOT, Object, objects, with_components

ALERTS, DASHBOARD = CHART / "files/alerts.yaml", CHART / "files/dashboard.json"
RUNBOOK = ROOT / "docs/runbook.md"
TARGET = 'job="ipmasq-agent", instance="192.0.2.7:9797", node="worker-7"'
Series = dict[str, str]

WELL: Series = {
    "up": "1x200",
    "ipmasq_agent_ready": "1x200",
    "ipmasq_agent_config_accepted": "1x200",
    "ipmasq_agent_in_sync": "1x200",
    "ipmasq_agent_contested": "0x200",
    'ipmasq_agent_document_timestamp_seconds{state="newest"}': "1700000000x200",
    'ipmasq_agent_document_timestamp_seconds{state="in_force"}': "1700000000x200",
    'ipmasq_agent_document_info{state="in_force", hash="aa", revision="1"}': "1x200",
    'ipmasq_agent_drift_total{family="ipv4", cause="removed"}': "3x200",
    'ipmasq_agent_drift_total{family="ipv6", cause="added"}': "0x200",
    'ipmasq_agent_overridden_ranges{family="ipv4"}': "0x200",
    "ipmasq_agent_ports_used_ratio": "0.5x200",
    "ipmasq_agent_conntrack_entries": "1000x200",
    "ipmasq_agent_conntrack_entries_limit": "4000x200",
    'ipmasq_agent_table_flows{table="flows", family="ipv4"}': "300x200",
    'ipmasq_agent_table_flows{table="flows", family="ipv6"}': "300x200",
    'ipmasq_agent_table_capacity{table="flows"}': "1000x200",
    "ipmasq_agent_source_age_seconds": "20x200",
    'ipmasq_agent_passes_total{family="ipv4", result="error"}': "2x200",
    'ipmasq_agent_passes_total{family="ipv4", result="unchanged"}': "0+1x200",
    'ipmasq_agent_thread_failures_total{thread="loop"}': "1x200",
}
"""Series of a node on which nothing is the matter, a value a minute: ``1+2x3`` is 1 3 5 7."""


class Case(NamedTuple):
    """What becomes of one node, and which alerts fire there after a number of minutes."""

    series: Series
    minutes: int
    alerts: frozenset[str]


def case(series: Series, minutes: int, *alerts: str) -> Case:
    return Case(series, minutes, frozenset(alerts))


REFUSED = {"ipmasq_agent_config_accepted": "0x200"}
UNREADY = {"ipmasq_agent_ready": "0x200"}
BROKEN = UNREADY | {"ipmasq_agent_in_sync": "0x200"}
FLOWS = 'ipmasq_agent_table_flows{table="flows", family="ipv6"}'
DRIFT = 'ipmasq_agent_drift_total{family="ipv6", cause="added"}'
ERRORS = 'ipmasq_agent_passes_total{family="ipv4", result="error"}'
THREAD = 'ipmasq_agent_thread_failures_total{thread="loop"}'
RANGES = 'ipmasq_agent_overridden_ranges{family="ipv4"}'
OTHER = 'ipmasq_agent_document_info{state="in_force", hash="bb", revision="2"}'
NEWEST = 'ipmasq_agent_document_info{state="newest", hash="bb", revision="2"}'
SAME = 'ipmasq_agent_document_info{state="in_force", hash="aa", revision="9"}'

CASES = {
    "all is well": case({}, 180),
    "not ready": case(UNREADY, 16, "NotReady"),
    "not ready, a while": case({"ipmasq_agent_ready": "0x13 1x200"}, 16),
    "refused": case(REFUSED, 6, "DocumentRefused"),
    "refused, a moment": case({"ipmasq_agent_config_accepted": "0x3 1x200"}, 6),
    "none was seen yet": case(
        REFUSED | {'ipmasq_agent_document_timestamp_seconds{state="newest"}': "0x200"}, 6
    ),
    "out of step": case(BROKEN, 6, "OutOfStep"),
    "out of step for long": case(BROKEN, 16, "OutOfStep", "NotReady"),
    "stands by": case({"ipmasq_agent_in_sync": "0x200"}, 16),
    "contested": case({"ipmasq_agent_contested": "1x200"}, 6, "Contested"),
    "contested, settled": case({"ipmasq_agent_contested": "1x4 0x200"}, 6),
    "drift": case({DRIFT: "0x60 0+1x30"}, 75, "DriftRepeated"),
    "drift, now and then": case({DRIFT: "0x20 1x20 2x40"}, 75),
    "overridden": case({RANGES: "2x200"}, 31, "Overridden"),
    "overridden, removed": case({RANGES: "2x20 0x200"}, 31),
    "ports": case({"ipmasq_agent_ports_used_ratio": "0.85x200"}, 6, "PortsRunOut"),
    "ports, the last": case({"ipmasq_agent_ports_used_ratio": "0.97x200"}, 2, "PortsRunOut"),
    "ports, a peak": case({"ipmasq_agent_ports_used_ratio": "0.9x3 0.4x200"}, 6),
    "conntrack": case({"ipmasq_agent_conntrack_entries": "3400x200"}, 6, "ConntrackFull"),
    "conntrack, unknown": case(
        {"ipmasq_agent_conntrack_entries": "0x9", "ipmasq_agent_conntrack_entries_limit": "0x9"}, 6
    ),
    "table": case({FLOWS: "550x200"}, 6, "FlowTableFull"),
    "table, not yet": case({FLOWS: "450x200"}, 6),
    "stale": case({"ipmasq_agent_source_age_seconds": "0+60x200"}, 16, "WatchStale"),
    "quiet": case({"ipmasq_agent_source_age_seconds": "0+60x9 0+60x9"}, 16),
    "passes fail": case({ERRORS: "2+1x200"}, 15, "PassesFail"),
    "a pass failed": case({ERRORS: "2x5 3x200"}, 15),
    "thread": case({THREAD: "1x5 2x200"}, 10, "ThreadFails"),
    "thread, long ago": case({THREAD: "1x5 2x200"}, 30),
    "documents": case({OTHER: "1x200"}, 62, "DocumentsDiffer"),
    "documents, a rollout": case({OTHER: "1x50"}, 62),
    "the newest is another": case({NEWEST: "1x200"}, 62),
    "the same with another revision": case({SAME: "1x200"}, 62),
    "down": case({"up": "0x200"}, 16, "Down"),
    "down, a restart": case({"up": "1x3 0x5 1x200"}, 16),
    "absent": case({"ipmasq_agent_ready": "_x200"}, 16, "Absent"),
    "absent, a restart": case({"ipmasq_agent_ready": "1x2 _x9 1x200"}, 16),
}


def rules() -> list[Object]:
    """Return the alerts."""
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    found: list[Object] = group["rules"]
    return found


def labelled(name: str) -> str:
    """Return a series as one of the node."""
    metric, _, labels = name.rstrip("}").partition("{")
    return f"{metric}{{{', '.join(filter(None, (TARGET, labels)))}}}"


def promtool(*words: str | Path) -> None:
    """Let promtool judge."""
    done = subprocess.run(["promtool", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def asked(name: str, about: Case) -> Object:
    """Return a case as promtool has it."""
    firing = 'count by (alertname) (ALERTS{alertstate="firing"})'
    alerts = [{"labels": f'{{alertname="IpmasqAgent{one}"}}', "value": 1} for one in about.alerts]
    test = {"expr": firing, "eval_time": f"{about.minutes}m", "exp_samples": alerts}
    series = WELL | about.series
    return {
        "name": name,
        "interval": "1m",
        "input_series": [
            {"series": labelled(name), "values": series[name]} for name in sorted(series)
        ],
        "promql_expr_test": [test],
    }


def run(place: Path, *tests: Object) -> None:
    """Let Prometheus' rule engine run tests."""
    file = place / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": [*tests]}))
    promtool("test", "rules", file)


def test_prometheus_takes_the_rules() -> None:
    promtool("check", "rules", ALERTS)


def test_each_alert_fires_when_it_should_and_no_other(tmp_path: Path) -> None:
    run(tmp_path, *(asked(name, about) for name, about in CASES.items()))
    fired = {f"IpmasqAgent{alert}" for about in CASES.values() for alert in about.alerts}
    assert fired == {rule["alert"] for rule in rules()}


def test_a_case_that_expects_another_alert_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="IpmasqAgentDown"):
        run(tmp_path, asked("down", case({"up": "0x200"}, 16, "NotReady")))


def test_an_alert_tells_node_and_number(tmp_path: Path) -> None:
    series = {"ipmasq_agent_conntrack_entries": "3400x200", THREAD: "1x5 2x200"}
    told = []
    for name, summary, labels in (
        ("ConntrackFull", "Connection tracking of worker-7 is 85% full.", {}),
        (
            "ThreadFails",
            "The thread loop of worker-7 failed and was begun anew.",
            {"thread": "loop"},
        ),
    ):
        (rule,) = [rule for rule in rules() if rule["alert"] == f"IpmasqAgent{name}"]
        of = dict(re.findall(r'(\w+)="([^"]+)"', TARGET)) | rule["labels"] | labels
        alert = {"exp_labels": of, "exp_annotations": rule["annotations"] | {"summary": summary}}
        told.append({"eval_time": "10m", "alertname": rule["alert"], "exp_alerts": [alert]})
    test = asked("told", case(series, 10, "ConntrackFull", "ThreadFails"))
    run(tmp_path, test | {"alert_rule_test": told})


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_each_alert_says_what_to_do_and_asks_for_what_is_there(rule: Object) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert {"summary", "description", "runbook_url"} == rule["annotations"].keys()
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert page.endswith("/docs/runbook.md")
    assert anchor in {one.lower() for one in re.findall(r"^## (\w+)$", RUNBOOK.read_text(), re.M)}
    assert rule["alert"].lower() == anchor
    assert {*unknown(rule["expr"])} == set()


def test_the_runbook_speaks_of_no_alert_that_there_is_not() -> None:
    headings = re.findall(r"^## (\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert [*dict.fromkeys(rule["alert"] for rule in rules())] == headings


def unknown(expression: str) -> Iterator[str]:
    """Yield metrics of ours in an expression that the agent does not have."""
    known = set(re.findall(r"^\| `(\w+)` \| (\w+)", (ROOT / "docs/metrics.md").read_text(), re.M))
    names = {name for name, _ in known} | {
        f"{name}_{part}"
        for name, kind in known
        if kind == "histogram"
        for part in ("bucket", "sum", "count")
    }
    yield from set(re.findall(r"\bipmasq_agent_\w+", expression)) - names


def test_a_metric_that_there_is_not_is_found() -> None:
    assert [*unknown("rate(ipmasq_agent_pass_seconds_sum[5m]) + ipmasq_agent_redy")] == [
        "ipmasq_agent_redy"
    ]


def test_the_component_is_what_the_chart_makes(tmp_path: Path) -> None:
    wanted = objects(with_components(tmp_path, "", "../monitoring"))
    values = {
        "http": {"address": "0.0.0.0"},
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboard": {"enabled": True},
    }
    (made,) = template(values)
    assert told_apart(made) == told_apart(wanted)
    rule = yaml.safe_load((DEPLOY / "monitoring/prometheusrule.yaml").read_text())
    assert rule["spec"] == yaml.safe_load(ALERTS.read_text()), "run scripts/render-manifest"


def drawn() -> list[str]:
    """Return the expressions of the dashboard, with all nodes selected."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    found = [one["expr"] for panel in panels for one in panel.get("targets", ())]
    return [one.replace("$node", ".*").replace("$__rate_interval", "5m") for one in found]


def test_the_dashboard_is_written_down() -> None:
    made = runpy.run_path(str(ROOT / "scripts/dashboard.py"))["dashboard"]()
    assert json.loads(DASHBOARD.read_text()) == made, "run scripts/dashboard.py"


def test_each_panel_has_a_place_of_its_own() -> None:
    taken: set[tuple[int, int]] = set()
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for place in (panel["gridPos"] for panel in panels):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


def recorded() -> Series:
    """Return what an agent serves, as series that grow by one a minute."""
    held = Sighting("7", "aaaa", 1000.5)
    status = Status(
        ConfigStatus("x", held, held, accepted=True, age=3.0),
        Look("bpf", families=(Family.IPV4,)),
        in_sync=True,
        usage=Usage((FlowTable("flows", 8, {Family.IPV4: 3, Family.IPV6: 0}),)),
    )
    use = PortUse(Family.IPV4, 6, 0xC0000201, End(0x0A000001, 443), IDENTIFIERS)
    status = replace(status, ports=PortLook((PortRow(use, 60000),), tracked=(10, 100)))
    text = exposed(Metrics().all(status))[1].decode()
    found = {}
    for one in (sample for of in text_string_to_metric_families(text) for sample in of.samples):
        labels = ", ".join(f"{key}={json.dumps(value)}" for key, value in one.labels.items())
        found[f"{one.name}{{{labels}}}"] = f"{one.value:f}+1x10"
    return found


def test_each_panel_draws_what_an_agent_serves(tmp_path: Path) -> None:
    asked = [
        {
            "expr": f"count({expression}) > bool 0",
            "eval_time": "10m",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
        for expression in drawn()
    ]
    series = [{"series": labelled(name), "values": values} for name, values in recorded().items()]
    run(tmp_path, {"interval": "1m", "input_series": series, "promql_expr_test": asked})
    assert [name for expression in drawn() for name in unknown(expression)] == []
