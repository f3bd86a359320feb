"""ConfigMapSource against a Kubernetes API over HTTP."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
import urllib3

from ipmasq_agent.errors import AccessDenied, SourceError, SourceUnavailable
from ipmasq_agent.host.patience import Backoff
from ipmasq_agent.sources import Document, kube_list, kube_watch
from ipmasq_agent.sources.configmap import ConfigMapSource
from tests.kernel.agent import status_of
from tests.kube.cluster import (
    DEADLINE,
    NAME,
    NAMESPACE,
    Cluster,
    established,
    write_kubeconfig,
)
from tests.unit.sources.heard import Heard, content_of

FORBIDDEN = (
    f'configmaps is forbidden: User "system:serviceaccount:{NAMESPACE}:masq" cannot list '
    f'resource "configmaps" in API group "" in the namespace "{NAMESPACE}"'
)


@pytest.fixture
def kubeconfig(cluster: Cluster, tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("first")
    return write_kubeconfig(tmp_path / "kubeconfig", cluster.port, f"tokenFile: {tmp_path}/token")


class Watching(Protocol):
    def __call__(self, key: str | None = None) -> tuple[ConfigMapSource, Heard]: ...


@pytest.fixture
def watching(kubeconfig: Path) -> Iterator[Watching]:
    sources: list[ConfigMapSource] = []

    def watch(key: str | None = None) -> tuple[ConfigMapSource, Heard]:
        source = ConfigMapSource(NAMESPACE, NAME, key, kubeconfig=str(kubeconfig))
        heard = Heard()
        sources.append(source)
        source.start(heard)
        return source, heard

    yield watch
    for source in sources:
        source.stop()


def followed(cluster: Cluster, watching: Watching) -> tuple[ConfigMapSource, Heard]:
    """Return a source that has told the first document and watches for the next."""
    cluster.put({"config": "first"})
    source, heard = watching()
    established(cluster, heard)
    return source, heard


# States


def test_the_first_state_is_delivered_with_its_version(
    cluster: Cluster, watching: Watching
) -> None:
    version = cluster.put({"config": "first"})
    before = time.monotonic()
    _, heard = watching()
    document = heard.content(b"first")
    assert document.name == f"ConfigMap {NAMESPACE}/{NAME} key config"
    assert document.revision == version
    assert before <= document.noticed <= time.monotonic()


def test_a_missing_configmap_is_a_document_without_content(watching: Watching) -> None:
    _, heard = watching()
    assert heard.content(None).revision == "absent"


def test_update_delete_and_recreation_are_delivered_in_order(
    cluster: Cluster, watching: Watching
) -> None:
    cluster.put({"config": "first"})
    _, heard = watching()
    cluster.wait_for_watch()
    version = cluster.put({"config": "second"})
    assert heard.content(b"second").revision == version
    cluster.delete()
    heard.content(None)
    cluster.put({"config": "again"})
    heard.content(b"again")
    assert heard.contents == [b"first", b"second", None, b"again"]
    assert len(cluster.asked("list")) == 1


def test_a_burst_is_delivered_whole_and_in_order(cluster: Cluster, watching: Watching) -> None:
    cluster.put({"config": "0"})
    _, heard = watching()
    cluster.wait_for_watch()
    for number in range(1, 200):
        cluster.put({"config": str(number)})
    heard.content(b"199")
    assert heard.contents == [b"%d" % number for number in range(200)]


def test_a_document_of_one_mebibyte_comes_through_list_and_watch(
    cluster: Cluster, watching: Watching
) -> None:
    line = '- "10.0.0.0/8"\n'
    large = line * ((1 << 20) // len(line))
    cluster.put({"config": large})
    _, heard = watching()
    heard.content(large.encode())
    cluster.wait_for_watch()
    cluster.put({"config": large + "# é\n"})
    heard.content((large + "# é\n").encode())


def test_every_request_names_the_one_object_as_rbac_demands(
    cluster: Cluster, watching: Watching
) -> None:
    cluster.put({"config": "first"})
    source, heard = watching()
    call = cluster.wait_for_watch()
    source.refresh()
    heard.wait(lambda events: len(events) == 2)
    assert {each.params["fieldSelector"] for each in cluster.calls} == {f"metadata.name={NAME}"}
    assert call.params["allowWatchBookmarks"] == "true"
    shortest, longest = kube_watch.WATCH_SECONDS
    assert shortest <= int(call.params["timeoutSeconds"]) <= longest


# Connections that end


def test_after_a_disconnect_the_watch_starts_from_what_the_server_holds_now(
    cluster: Cluster, watching: Watching
) -> None:
    _, heard = followed(cluster, watching)
    version = cluster.bookmark()
    cluster.end_watches()
    assert cluster.wait_for_watch(2).params["resourceVersion"] == version
    cluster.put({"config": "third"})
    heard.content(b"third")
    assert heard.contents == [b"third"], "what has not changed is not told again"


def test_changes_made_while_disconnected_are_not_missed(
    cluster: Cluster, watching: Watching
) -> None:
    _, heard = followed(cluster, watching)
    cluster.down()
    cluster.put({"config": "meanwhile"})
    cluster.delete()
    cluster.up()
    heard.content(None)


def test_a_watch_that_the_server_ends_in_time_goes_on_without_a_failure(
    cluster: Cluster, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_watch, "SHORT", 0.0)
    cluster.put({"config": "first"})
    _, heard = watching()
    for number in range(2, 6):
        cluster.wait_for_watch(number - 1)
        cluster.end_watches()
        cluster.wait_for_watch(number)
    cluster.put({"config": "second"})
    heard.content(b"second")
    assert heard.contents == [b"first", b"second"]
    assert len(cluster.asked("list")) == len(cluster.asked("watch"))


def test_watches_that_end_at_once_are_not_repeated_in_a_busy_loop(
    cluster: Cluster, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []

    class Counted(Backoff):
        def next(self) -> float:
            waits.append(1)
            return super().next()

    monkeypatch.setattr(kube_watch, "Backoff", lambda: Counted(0.001, 0.002))
    cluster.ends_watches_at_once = True
    cluster.put({"config": "first"})
    watching()
    cluster.wait_for_watch(10)
    assert len(waits) >= 9


def test_a_connection_that_is_silent_for_too_long_counts_as_dead(
    cluster: Cluster, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_watch, "WATCH_SECONDS", (0, 0))
    monkeypatch.setattr(kube_watch, "OVERTIME", 0.05)
    cluster.put({"config": "first"})
    _, heard = watching()
    cluster.wait_for_watch(3)
    cluster.put({"config": "second"})
    heard.content(b"second")
    assert heard.contents == [b"first", b"second"]


def test_a_server_restarted_on_its_port_is_found_again_and_the_document_told_anew(
    cluster: Cluster, watching: Watching
) -> None:
    _, heard = followed(cluster, watching)
    cluster.down()
    failed = heard.failure("cannot be reached: Connection refused")
    assert isinstance(failed.error, SourceUnavailable)
    cluster.up()
    heard.content(b"first")
    # A request that was on its way may have been told as reset before that.
    *before, last, again = heard.contents
    assert (last, again) == (str(failed.error), b"first")
    assert all("reset by peer" in str(each) for each in before)


def test_half_an_event_is_never_taken_for_a_whole_one(cluster: Cluster, watching: Watching) -> None:
    _, heard = followed(cluster, watching)
    cluster.send(b'{"type":"MODIFIED","object":{"metadata":{"name":"ip-masq-agent","resour')
    cluster.end_watches()
    cluster.wait_for_watch(2)
    cluster.put({"config": "second"})
    heard.content(b"second")
    assert set(heard.contents) <= {b"first", b"second"}


# Versions that expire


def test_410_as_the_status_of_a_watch_leads_to_a_new_list(
    cluster: Cluster, watching: Watching
) -> None:
    _, heard = followed(cluster, watching)
    cluster.down()
    cluster.put({"config": "second"})
    cluster.compact()
    cluster.up()
    heard.content(b"second")
    cluster.put({"config": "third"})
    heard.content(b"third")
    assert len(cluster.asked("list")) == 2


@pytest.mark.parametrize("ending", [b"\n", b""], ids=["as an event", "as the whole body"])
def test_410_within_a_watch_leads_to_a_new_list(
    cluster: Cluster, watching: Watching, ending: bytes
) -> None:
    _, heard = followed(cluster, watching)
    expired = b'{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}'
    cluster.send(expired + ending)
    cluster.end_watches()
    cluster.wait(lambda calls: sum(call.verb == "list" for call in calls) == 2)
    cluster.wait_for_watch(2)
    cluster.put({"config": "second"})
    heard.content(b"second")
    assert heard.contents == [b"second"]


def test_another_error_within_a_watch_leads_to_a_new_list_after_a_wait(
    cluster: Cluster, watching: Watching
) -> None:
    _, heard = followed(cluster, watching)
    cluster.send({"type": "ERROR", "object": {"code": 500, "message": "etcd is away"}})
    cluster.wait_for_watch(2)
    assert len(cluster.asked("list")) == 2
    cluster.put({"config": "second"})
    heard.content(b"second")
    assert heard.contents == [b"second"]


def test_a_server_that_asks_for_a_pause_is_given_it(cluster: Cluster, watching: Watching) -> None:
    followed(cluster, watching)
    asked = {"code": 429, "message": "too many requests", "details": {"retryAfterSeconds": 0.3}}
    before = time.monotonic()
    cluster.send({"type": "ERROR", "object": asked})
    cluster.wait_for_watch(2)
    assert time.monotonic() - before >= 0.3


@pytest.mark.parametrize("code", [410, 500])
@pytest.mark.parametrize("within", [False, True], ids=["as a status", "within a watch"])
def test_watches_that_are_always_refused_are_not_begun_anew_in_a_busy_loop(
    cluster: Cluster,
    watching: Watching,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    within: bool,
) -> None:
    asked: list[str] = []

    class Counted(Backoff):
        def next(self) -> float:
            asked.append("wait")
            return super().next()

        def reset(self) -> None:
            asked.append("reset")
            super().reset()

    monkeypatch.setattr(kube_watch, "Backoff", lambda: Counted(0.001, 0.002))
    monkeypatch.setattr(kube_watch, "SHORT", DEADLINE)
    if within:
        refusal = {"kind": "Status", "code": code, "message": "too old"}
        cluster.ends_watches_with = {"type": "ERROR", "object": refusal}
    else:
        cluster.refusals["watch"] = (code, "too old")
    watching()
    cluster.wait_for_watch(10)
    assert asked.count("wait") >= 9
    assert "reset" not in asked


def test_a_watch_that_ends_just_when_it_is_hung_up_is_no_failure(
    cluster: Cluster, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_read, hung_up = threading.Event(), threading.Event()
    lines = kube_watch._lines

    def lingering(response: urllib3.BaseHTTPResponse) -> Iterator[tuple[bytes, float]]:
        yield from lines(response)
        all_read.set()
        assert hung_up.wait(DEADLINE)

    monkeypatch.setattr(kube_watch, "_lines", lingering)
    monkeypatch.setattr(kube_watch, "STOP_TIMEOUT", 0)
    source = ConfigMapSource(NAMESPACE, NAME, None, kubeconfig=str(kubeconfig))
    source.start(Heard())
    try:
        cluster.wait_for_watch()
        cluster.end_watches()
        assert all_read.wait(DEADLINE)
        source.stop()
    finally:
        hung_up.set()
        monkeypatch.undo()
        source.stop()


# Versions that go back, and servers that hang


@pytest.mark.parametrize("breaks", [True, False], ids=["broken off", "ended in time"])
def test_after_a_restore_of_etcd_the_restored_document_is_told_and_followed(
    cluster: Cluster, watching: Watching, breaks: bool
) -> None:
    source, heard = followed(cluster, watching)
    version = cluster.restore({"config": "restored"})
    if breaks:
        cluster.break_watches()
    else:
        cluster.end_watches()
    assert heard.content(b"restored").revision == version
    assert int(cluster.wait_for_watch(2).params["resourceVersion"]) == 5
    cluster.put({"config": "after it"})
    heard.content(b"after it")
    source.refresh()
    heard.wait(lambda events: len(events) == 3)
    assert heard.contents == [b"restored", b"after it", b"after it"]


def test_a_refresh_that_finds_versions_gone_back_begins_the_watch_anew(
    cluster: Cluster, watching: Watching
) -> None:
    source, heard = followed(cluster, watching)
    cluster.restore({"config": "restored"})
    source.refresh()
    heard.content(b"restored")
    cluster.wait_for_watch(2)
    cluster.put({"config": "after it"})
    heard.content(b"after it")


def test_versions_that_go_back_within_a_watch_lead_to_a_new_list(
    cluster: Cluster, watching: Watching
) -> None:
    _, heard = followed(cluster, watching)
    cluster.restore({"config": "restored"})
    cluster.send({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "5"}}})
    heard.content(b"restored")


def test_a_version_that_is_too_large_for_the_server_leads_to_a_new_list(
    cluster: Cluster, watching: Watching
) -> None:
    _, heard = followed(cluster, watching)
    cluster.restore({"config": "restored"})
    said = {"code": 504, "message": "Too large resource version: 103, current: 5"}
    cluster.send({"type": "ERROR", "object": said})
    heard.content(b"restored")


def test_a_server_that_hangs_without_closing_is_told_with_the_time_of_its_last_word(
    cluster: Cluster, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.put({"config": "first"})
    monkeypatch.setattr(kube_watch, "SILENCE", 0.2)
    for module in (kube_list, kube_watch):
        monkeypatch.setattr(module, "LIST_TIMEOUT", 0.2)
    source, heard = watching()
    heard.content(b"first")
    before = source.heard
    assert before is not None
    cluster.silent.update({"list", "watch"})
    failed = heard.failure("there is no answer in time; last heard of at 2")
    assert isinstance(failed.error, SourceUnavailable)
    last = source.heard
    cluster.silent.clear()
    heard.content(b"first")
    assert last is not None
    assert source.heard is not None
    assert before <= last < source.heard


def test_silence_is_no_sign_of_life_and_the_last_one_before_it_is_told(
    cluster: Cluster, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, heard = followed(cluster, watching)
    monkeypatch.setattr(kube_watch, "SHORT", 0.0)
    monkeypatch.setattr(kube_list, "LIST_TIMEOUT", 0.2)
    cluster.silent.add("list")
    response = source._watch._response
    assert response is not None
    # For what is read after the next event.
    response.connection.sock.settimeout(0.2)  # type: ignore[union-attr]
    cluster.put({"config": "second"})
    heard.content(b"second")
    last = source.heard
    heard.failure("there is no answer in time; last heard of at 2")
    assert source.heard == last


def test_a_refresh_that_failed_is_forgotten_when_the_server_answers(
    cluster: Cluster, watching: Watching
) -> None:
    source, heard = followed(cluster, watching)
    cluster.refusals["list"] = (500, "etcd is away")
    source.refresh()
    heard.failure("etcd is away")
    cluster.refusals.clear()
    heard.content(b"first")


def test_a_server_that_ends_no_watch_is_asked_anew_in_time(
    cluster: Cluster, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_watch, "WATCH_SECONDS", (0, 0))
    monkeypatch.setattr(kube_watch, "OVERTIME", 0.0)
    monkeypatch.setattr(kube_watch, "min", max, raising=False)  # it is never silent for long
    cluster.put({"config": "first"})
    watching()
    cluster.wait_for_watch(1)
    for number in range(2, 5):
        cluster.put({"config": str(number)})
        cluster.wait_for_watch(number)


def test_silence_of_a_server_that_answers_is_no_failure(
    cluster: Cluster, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.put({"config": "first"})
    monkeypatch.setattr(kube_watch, "SILENCE", 0.05)
    _, heard = watching()
    cluster.wait_for_watch(4)
    cluster.put({"config": "second"})
    heard.content(b"second")
    assert heard.contents == [b"first", b"second"]


# Refusals


def test_forbidden_names_the_missing_rule_and_ends_when_it_is_granted(
    cluster: Cluster, watching: Watching
) -> None:
    cluster.put({"config": "first"})
    cluster.refusals["list"] = (403, FORBIDDEN)
    _, heard = watching()
    error = heard.failure("403").error
    assert isinstance(error, AccessDenied)
    assert error.remedy is not None
    assert (
        '{apiGroups: [""], resources: [configmaps], resourceNames: [ip-masq-agent], '
        "verbs: [get, list, watch]}"
    ) in error.remedy
    assert "ServiceAccount kube-system/masq" in error.remedy
    assert "--serviceaccount=kube-system:masq" in error.remedy
    assert (
        "`kubectl auth can-i -n kube-system watch configmaps/ip-masq-agent "
        "--as=system:serviceaccount:kube-system:masq`"
    ) in error.remedy
    cluster.wait(lambda calls: len(calls) >= 3)
    assert len(heard.events) == 1, "the same refusal again is no news"
    cluster.refusals.clear()
    heard.content(b"first")


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_starts_and_refuses_everybody_needs_no_role(
    cluster: Cluster, watching: Watching, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(kube_watch, "PATIENCE", 1000.0)
    cluster.put({"config": "first"})
    cluster.refusals["list"] = (status, FORBIDDEN)
    source, heard = watching()
    error = heard.failure(str(status)).error
    cluster.wait(lambda calls: len(calls) >= 3)
    source.refresh()
    heard.failure("starts refuses everybody")
    assert isinstance(error, SourceUnavailable)
    assert not re.search("role|renew", str(error))
    cluster.refusals.clear()
    heard.content(b"first")
    # Nor does it the next time.
    established(cluster, heard)
    cluster.refusals["list"] = (status, FORBIDDEN)
    cluster.break_watches()
    assert isinstance(heard.failure(str(status)).error, SourceUnavailable)


def test_who_is_refused_for_long_is_told_what_is_missing(
    cluster: Cluster, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_watch, "PATIENCE", 0.2)
    cluster.refusals["list"] = (403, FORBIDDEN)
    _, heard = watching()
    assert "kubectl -n kube-system create role" in str(heard.failure("create role").error)
    assert len(heard.events) <= 2


def test_a_watch_that_is_forbidden_is_a_failure_though_lists_are_allowed(
    cluster: Cluster, watching: Watching
) -> None:
    cluster.put({"config": "first"})
    cluster.refusals["watch"] = (403, FORBIDDEN)
    _, heard = watching()
    heard.failure("403")
    cluster.wait_for_watch(3)
    assert heard.contents[0] == b"first"
    assert len(heard.events) == 2
    cluster.refusals.clear()
    heard.content(b"first")
    assert len(heard.events) == 3


def test_credentials_that_are_not_accepted_are_access_denied(
    cluster: Cluster, watching: Watching
) -> None:
    cluster.token = "another"
    _, heard = watching()
    error = heard.failure("401").error
    assert isinstance(error, AccessDenied)
    assert "kubeconfig" in error.message
    assert "resourceNames: [ip-masq-agent]" in str(error.remedy)


def test_a_rotated_token_is_read_anew_at_once_and_causes_no_failure(
    cluster: Cluster, watching: Watching, tmp_path: Path
) -> None:
    cluster.token = "first"
    _, heard = followed(cluster, watching)
    (tmp_path / "token").write_text("second")
    cluster.token = "second"
    cluster.break_watches()
    cluster.wait(lambda calls: calls[-1].authorization == "Bearer second")
    cluster.put({"config": "second"})
    heard.content(b"second")
    assert heard.contents == [b"second"]


def test_an_overloaded_server_is_unavailable_and_the_document_stays_known(
    cluster: Cluster, watching: Watching
) -> None:
    _, heard = followed(cluster, watching)
    cluster.refusals["watch"] = (503, "the server is currently unable to handle the request")
    cluster.break_watches()
    failed = heard.failure("unable to handle")
    assert isinstance(failed.error, SourceUnavailable)
    cluster.refusals.clear()
    heard.content(b"first")
    assert len(heard.events) == 2


def test_an_unreachable_server_at_the_start_is_not_a_missing_configmap(
    cluster: Cluster, watching: Watching
) -> None:
    cluster.down()
    _, heard = watching()
    heard.failure("cannot be reached")
    assert None not in heard.contents
    cluster.up()
    heard.content(None)


def test_a_server_that_is_no_kubernetes_api_is_not_a_missing_configmap(
    cluster: Cluster, watching: Watching
) -> None:
    cluster.refusals["list"] = (404, "page not found")
    _, heard = watching()
    assert isinstance(heard.failure("404").error, SourceUnavailable)


# Refresh, read, stop


def test_refresh_asks_the_server_and_tells_what_is_known_already(
    cluster: Cluster, watching: Watching
) -> None:
    source, heard = followed(cluster, watching)
    source.refresh()
    heard.wait(lambda events: len(events) == 1)
    assert heard.contents == [b"first"]
    assert len(cluster.asked("list")) == 2
    cluster.wait_for_watch(2)


def test_refresh_tells_a_failure_each_time(cluster: Cluster, watching: Watching) -> None:
    source, heard = followed(cluster, watching)
    cluster.refusals["list"] = (500, "etcd is away")
    source.refresh()
    heard.failure("etcd is away")
    source.refresh()
    heard.wait(lambda events: len(events) == 2)
    cluster.refusals.clear()
    cluster.put({"config": "second"})
    heard.content(b"second")


def test_refresh_ends_the_wait_for_a_server_that_is_back(
    cluster: Cluster, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_watch, "Backoff", lambda: Backoff(1000, 1000))
    cluster.put({"config": "first"})
    cluster.down()
    source, heard = watching()
    heard.failure("cannot be reached")
    cluster.up()
    source.refresh()
    heard.content(b"first")
    established(cluster, heard)


def test_an_event_that_a_refresh_has_overtaken_is_not_delivered_after_it(
    cluster: Cluster, watching: Watching
) -> None:
    old = cluster.put({"config": "first"})
    source, heard = watching()
    established(cluster, heard)
    cluster.put({"config": "second"})
    heard.content(b"second")
    source.refresh()
    heard.wait(lambda events: len(events) == 2)
    stale = {"name": NAME, "resourceVersion": old}
    cluster.send({"type": "MODIFIED", "object": {"metadata": stale, "data": {"config": "first"}}})
    cluster.put({"config": "third"})
    heard.content(b"third")
    assert heard.contents == [b"second", b"second", b"third"]


def test_read_answers_once_and_leaves_no_thread(cluster: Cluster, kubeconfig: Path) -> None:
    cluster.put({"config": "first"})
    threads = set(threading.enumerate())
    source = ConfigMapSource(NAMESPACE, NAME, kubeconfig=str(kubeconfig))
    assert content_of(source.read()) == b"first"
    cluster.delete()
    assert content_of(source.read()) is None
    assert set(threading.enumerate()) == threads


def test_read_raises_what_a_watch_would_tell(cluster: Cluster, kubeconfig: Path) -> None:
    source = ConfigMapSource(NAMESPACE, NAME, kubeconfig=str(kubeconfig))
    cluster.refusals["list"] = (403, FORBIDDEN)
    with pytest.raises(AccessDenied):
        source.read()
    cluster.down()
    with pytest.raises(SourceUnavailable, match="Connection refused"):
        source.read()


def test_stop_in_the_middle_of_a_watch_is_prompt_and_final(
    cluster: Cluster, kubeconfig: Path
) -> None:
    cluster.put({"config": "first"})
    threads = set(threading.enumerate())
    source, heard = ConfigMapSource(NAMESPACE, NAME, kubeconfig=str(kubeconfig)), Heard()
    source.start(heard)
    established(cluster, heard)
    before = time.monotonic()
    source.stop()
    source.stop()
    assert time.monotonic() - before < kube_watch.STOP_TIMEOUT
    assert set(threading.enumerate()) == threads
    cluster.put({"config": "second"})
    source.refresh()
    assert heard.contents == []


def test_stop_while_waiting_for_a_server_that_is_away_leaves_no_thread(
    cluster: Cluster, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_watch, "Backoff", lambda: Backoff(1000, 1000))
    cluster.down()
    threads = set(threading.enumerate())
    source, heard = ConfigMapSource(NAMESPACE, NAME, kubeconfig=str(kubeconfig)), Heard()
    source.start(heard)
    heard.failure("cannot be reached")
    source.stop()
    assert set(threading.enumerate()) == threads


# Keys


@pytest.mark.parametrize(
    ("data", "wanted", "content"),
    [
        ({"config": "a", "other": "b"}, None, b"a"),
        ({"ip-masq-agent": "a", "other": "b"}, None, b"a"),
        ({"masq.yaml": "a"}, None, b"a"),
        ({}, None, None),
        ({}, "config", None),
        ({"config": "a", "other": "b"}, "other", b"b"),
        ({"config": ""}, None, b""),
    ],
)
def test_the_document_is_found_among_the_keys(
    cluster: Cluster,
    kubeconfig: Path,
    data: dict[str, str],
    wanted: str | None,
    content: bytes | None,
) -> None:
    cluster.put(data)
    source = ConfigMapSource(NAMESPACE, NAME, wanted, kubeconfig=str(kubeconfig))
    assert content_of(source.read()) == content


def test_binary_data_is_decoded(cluster: Cluster, kubeconfig: Path) -> None:
    cluster.put({}, {"config": b"\xff\x00binary"})
    source = ConfigMapSource(NAMESPACE, NAME, kubeconfig=str(kubeconfig))
    assert content_of(source.read()) == b"\xff\x00binary"


def test_a_missing_key_among_others_is_a_failure_that_names_them(
    cluster: Cluster, watching: Watching
) -> None:
    cluster.put({"a": "", "b": ""})
    _, heard = watching("confg")
    error = heard.failure("has the keys a, b").error
    assert f"--configmap {NAMESPACE}/{NAME}:a" in str(error.remedy)
    cluster.wait_for_watch()
    cluster.put({"confg": "here"})
    assert isinstance(heard.content(b"here"), Document)


def test_several_keys_are_one_document_in_the_order_of_their_names(
    cluster: Cluster, watching: Watching
) -> None:
    cluster.put({"20-user": "2"}, {"10-team": b"1"})
    _, heard = watching()
    document = heard.parts(**{"10-team": b"1", "20-user": b"2"})
    assert document.name == f"ConfigMap {NAMESPACE}/{NAME}"
    assert [part.name for part in document.parts] == [
        f"ConfigMap {NAMESPACE}/{NAME} key {key}" for key in ("10-team", "20-user")
    ]
    cluster.wait_for_watch()
    cluster.put({"20-user": "3"}, {"10-team": b"1"})
    assert heard.parts(**{"10-team": b"1", "20-user": b"3"}).revision != document.revision
    cluster.put({"20-user": "3"})
    heard.parts(**{"20-user": b"3"})


def test_all_keys_can_be_asked_for(cluster: Cluster, kubeconfig: Path) -> None:
    cluster.put({"config": "1", "more": "2"})
    source = ConfigMapSource(NAMESPACE, NAME, "*", kubeconfig=str(kubeconfig))
    assert [part.content for part in source.read().parts] == [b"1", b"2"]
    assert source.name == f"ConfigMap {NAMESPACE}/{NAME}"


def test_without_any_credentials_the_error_says_where_they_were_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SourceError, match=r"\$KUBECONFIG is not set"):
        ConfigMapSource(NAMESPACE, NAME).read()


def test_a_config_map_that_was_named_and_is_not_there_is_an_error_to_a_verb(
    cluster: Cluster,
    kubeconfig: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def view(*flags: str) -> tuple[int, str, str]:
        status = status_of("config", "view", f"--kubeconfig={kubeconfig}", *flags)
        return status, *capsys.readouterr()

    named = f"--configmap={NAMESPACE}/{NAME}"
    status, out, err = view(named)
    assert (status, out) == (2, "")
    assert f"ConfigMap {NAMESPACE}/{NAME} does not exist" in err
    # The environment is the agent's, to which one that is not there yet means the defaults.
    with monkeypatch.context() as patch:
        patch.setenv("IPMASQ_CONFIGMAP", f"{NAMESPACE}/{NAME}")
        status, out, err = view()
    assert (status, "10.0.0.0/8" in out) == (0, True)
    assert "does not exist: the defaults stand for it" in err
    cluster.put({})
    status, out, err = view(named)
    assert (status, out) == (2, "")
    assert f"ConfigMap {NAMESPACE}/{NAME} exists and has no data" in err
    cluster.put({"config": "nonMasqueradeCIDRs: [172.20.0.0/16]"})
    status, out, _ = view(named)
    assert (status, "172.20.0.0/16" in out) == (0, True)


def test_nodes_whose_server_goes_down_come_back_each_at_a_moment_of_its_own(
    cluster: Cluster, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[float, float]] = []

    def draw(least: float, most: float) -> float:
        drawn.append((least, most))
        return least

    monkeypatch.setattr("random.uniform", draw)
    monkeypatch.setattr(kube_watch, "REJOINING", 77.0)
    _, heard = followed(cluster, watching)
    cluster.put({"config": "second"})
    heard.content(b"second")  # the watch has worked
    cluster.break_watches()
    cluster.wait_for_watch(2)
    assert (0, 77.0) in drawn
