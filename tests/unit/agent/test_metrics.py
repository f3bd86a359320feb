"""The agent's metrics as Prometheus reads them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from ipmasq_agent.agent.exposition import exposed
from ipmasq_agent.agent.metrics import Metrics
from ipmasq_agent.agent.numbers import Numbers
from ipmasq_agent.agent.reconcile import Outcome
from ipmasq_agent.agent.status import ConfigStatus, Healed, Look, Sighting, Status
from ipmasq_agent.errors import HostError
from ipmasq_agent.host.threads import Guarded, caught
from ipmasq_agent.planes.usage import FlowTable, Usage
from ipmasq_agent.policy.addresses import Family

STATUS = Status(
    ConfigStatus("x"),
    Look("nftables", families=(Family.IPV4,)),
    counters={(Family.IPV4, "masqueraded"): 5, (Family.IPV6, "flows_kept"): 7},
    usage=Usage((FlowTable("flows", 8, {Family.IPV4: 3, Family.IPV6: 0}),)),
)


def samples(metrics: Metrics, status: Status = STATUS) -> Mapping[str, float]:
    """Return what Prometheus reads: name and labels → number."""
    text = exposed(metrics.all(status))[1].decode()
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {" ".join((each.name, *sorted(each.labels.values()))): each.value for each in found}


def wait(event: threading.Event) -> None:
    event.wait()


def test_what_has_not_happened_is_counted_as_none() -> None:
    ending = threading.Event()
    thread = Guarded(lambda: wait(ending), "idle")
    thread.start()
    found = samples(Metrics())
    ending.set()
    thread.stop()
    assert found["ipmasq_agent_thread_failures_total idle"] == 0
    assert found["ipmasq_agent_documents_total refused"] == 0
    assert found["ipmasq_agent_passes_total error ipv6"] == 0
    assert found["ipmasq_agent_drift_total ipv6 removed"] == 0
    assert found["ipmasq_agent_flows_total ipv4 translated"] == 0
    assert found["ipmasq_agent_last_success_timestamp_seconds"] == 0
    assert found["ipmasq_agent_document_timestamp_seconds in_force"] == 0
    assert not [name for name in found if "_created" in name]


def test_every_name_that_dashboards_may_use_is_there() -> None:
    metrics = Metrics()
    metrics.documents.inc(1, "accepted")
    metrics.passed({Family.IPV4: Outcome()}, 0.0123)
    names = {name.split()[0] for name in samples(metrics)}
    assert names >= {
        *("process_virtual_memory_bytes", "process_resident_memory_bytes"),
        *("process_start_time_seconds", "process_cpu_seconds_total"),
        *("process_open_fds", "process_max_fds"),
        *("ipmasq_agent_ready", "ipmasq_agent_config_accepted", "ipmasq_agent_contested"),
        *("ipmasq_agent_documents_total", "ipmasq_agent_passes_total"),
        "ipmasq_agent_undone_total",
        *(f"ipmasq_agent_pass_seconds_{of}" for of in ("bucket", "count", "sum")),
        *(f"ipmasq_agent_change_seconds_{of}" for of in ("bucket", "count", "sum")),
        *("ipmasq_agent_backend", "ipmasq_agent_overridden_ranges"),
        "ipmasq_agent_non_masquerade_cidrs",
        *("ipmasq_agent_packets_total", "ipmasq_agent_flows_total"),
        *("ipmasq_agent_table_flows", "ipmasq_agent_table_capacity"),
        *("ipmasq_agent_ports_used_ratio", "ipmasq_agent_build_info"),
        *("ipmasq_agent_conntrack_entries", "ipmasq_agent_conntrack_entries_limit"),
        *("ipmasq_agent_drift_total", "ipmasq_agent_source_age_seconds"),
        "ipmasq_agent_document_timestamp_seconds",
        *(f"ipmasq_agent_last_{what}_timestamp_seconds" for what in ("success", "change")),
    }


def test_numbers_are_read_as_they_were_counted() -> None:
    metrics = Metrics()
    for seconds in (0.001, 0.02, 0.02, 60):
        metrics.passed({Family.IPV4: Outcome(error=HostError("no"))}, seconds)
    found = samples(metrics)
    assert found["ipmasq_agent_passes_total error ipv4"] == 4
    assert found["ipmasq_agent_undone_total"] == 0
    assert found["ipmasq_agent_backend nftables"] == 1
    assert found["ipmasq_agent_packets_total ipv4 masqueraded"] == 5
    assert found["ipmasq_agent_flows_total ipv6 kept"] == 7
    assert found["ipmasq_agent_table_flows flows ipv4"] == 3
    assert found["ipmasq_agent_table_flows flows ipv6"] == 0
    assert found["ipmasq_agent_table_capacity flows"] == 8
    buckets = {
        name.split()[1]: count for name, count in found.items() if "pass_seconds_bucket" in name
    }
    # A bound belongs to its bucket, and each bucket counts those before it.
    assert (buckets["0.001"], buckets["0.01"], buckets["0.025"]) == (1, 1, 3)
    assert (buckets["10.0"], buckets["+Inf"]) == (3, 4)
    assert found["ipmasq_agent_pass_seconds_sum"] == 60.041


def test_the_backend_that_was_left_is_told_no_more() -> None:
    metrics = Metrics()
    samples(metrics)
    assert "ipmasq_agent_backend nftables" not in samples(metrics, Status(ConfigStatus("x")))


def test_what_interrupts_a_thread_is_counted() -> None:
    before = samples(Metrics()).get("ipmasq_agent_thread_failures_total spider", 0)
    caught(KeyError("x"), "a test", "spider")
    assert samples(Metrics())["ipmasq_agent_thread_failures_total spider"] == before + 1


def test_what_no_data_plane_counts_is_not_there() -> None:
    text = exposed(Metrics().all(Status(ConfigStatus("x"))))[1].decode()
    assert "ipmasq_agent_ready 0.0\n" in text
    assert "ipmasq_agent_packets_total" not in text
    assert "ipmasq_agent_table" not in text


def test_a_label_may_hold_any_text() -> None:
    numbers = Numbers("gauge", "x", "y", ("label",))
    numbers.set(1, 'a "quoted"\\\nline')
    families = text_string_to_metric_families(exposed([numbers])[1].decode())
    [family] = [family for family in families if family.name == "x"]
    assert family.samples[0].labels == {"label": 'a "quoted"\\\nline'}


def test_a_node_that_nobody_scrapes_does_not_load_the_client_library() -> None:
    code = (
        "import sys, ipmasq_agent.cli.run, ipmasq_agent.agent.loop, ipmasq_agent.agent.http\n"
        "sys.exit('prometheus_client' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_documents_are_told_by_their_hash_and_since_when() -> None:
    held, newest = Sighting("7", "aaaa", 1000.5), Sighting("8", "bbbb", 2000.0)
    config = ConfigStatus("x", newest, held, age=12.5)
    found = samples(Metrics(), Status(config))
    assert found["ipmasq_agent_document_info 7 aaaa in_force"] == 1
    assert found["ipmasq_agent_document_info 8 bbbb newest"] == 1
    assert found["ipmasq_agent_document_timestamp_seconds in_force"] == 1000.5
    assert found["ipmasq_agent_source_age_seconds"] == 12.5


@pytest.mark.parametrize(
    ("unexpected", "missing", "cause"),
    [
        ((), ("-A x",), "removed"),
        (("-A y",), (), "added"),
        (("a",), ("b",), "replaced"),
        ((), (), "other"),
    ],
)
def test_drift_is_counted_by_what_it_was(
    unexpected: Sequence[str], missing: Sequence[str], cause: str
) -> None:
    metrics = Metrics()
    healed = Healed("now", "nftables", Family.IPV4, unexpected, missing)
    metrics.passed({Family.IPV4: Outcome(healed=healed)}, 0.01)
    found = samples(metrics)
    drift = {name: count for name, count in found.items() if "drift_total" in name and count}
    assert drift == {" ".join(("ipmasq_agent_drift_total", *sorted((cause, "ipv4")))): 1}
    assert found["ipmasq_agent_last_success_timestamp_seconds"] > 1.7e9


def test_a_pass_that_fails_is_no_success() -> None:
    metrics = Metrics()
    metrics.passed({Family.IPV4: Outcome(error=HostError("no"))}, 1)
    assert samples(metrics)["ipmasq_agent_last_success_timestamp_seconds"] == 0


def everything() -> Status:
    """Return a status in which every metric has a number."""
    held = Sighting("7", "aaaa", 1000.5)
    return replace(STATUS, config=ConfigStatus("x", held, held))


def test_who_asks_for_openmetrics_gets_it() -> None:
    kind, body = exposed(Metrics().all(everything()), "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    assert b"_created" not in body
    assert [*openmetrics_families(body.decode())]  # type: ignore[no-untyped-call]
    assert exposed(Metrics().all(everything()), "*/*")[0].startswith("text/plain")


def test_prometheus_own_linter_finds_nothing() -> None:
    body = exposed(Metrics().all(everything()))[1]
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=body, check=False, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    spoiled = body.replace(b"ipmasq_agent_ready", b"ipmasq_agent_ready_total")
    worse = subprocess.run(
        ["promtool", "check", "metrics"], input=spoiled, check=False, capture_output=True
    )
    assert worse.returncode != 0
