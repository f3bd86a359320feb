"""A document that some nodes try, while the others go by the one of all.

Each ConfigMap has an API server of its own here: so that one can be away and the other not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipmasq_agent.errors import AccessDenied
from ipmasq_agent.sources import Document
from ipmasq_agent.sources.canary import NODES, CanarySource
from ipmasq_agent.sources.configmap import ConfigMapSource
from tests.kube.cluster import NAME, NAMESPACE, Cluster, write_kubeconfig
from tests.unit.sources.heard import Heard

NODE = "node-1"
Watching = Callable[[], tuple[CanarySource, Heard]]


@pytest.fixture
def tried() -> Iterator[Cluster]:
    server = Cluster()
    yield server
    server.close()


@pytest.fixture
def watching(cluster: Cluster, tried: Cluster, tmp_path: Path) -> Iterator[Watching]:
    begun: list[CanarySource] = []

    def watch() -> tuple[CanarySource, Heard]:
        everyone, few = (
            str(write_kubeconfig(tmp_path / name, server.port))
            for name, server in (("everyone", cluster), ("tried", tried))
        )
        source = CanarySource(
            ConfigMapSource(NAMESPACE, NAME, kubeconfig=everyone),
            ConfigMapSource(NAMESPACE, NAME, kubeconfig=few, tried_by=NODE),
        )
        begun.append(source)
        heard = Heard()
        source.start(heard)
        return source, heard

    yield watch
    for source in begun:
        source.stop()


def put(server: Cluster, text: str, nodes: str) -> None:
    server.put({"config": text}, annotations={NODES: nodes})


def documents(heard: Heard) -> list[bytes | str | None]:
    """Return what was heard, once where it was said again."""
    return list(dict.fromkeys(heard.contents))


def test_a_node_that_is_named_tries_it_as_long_as_it_is_there(
    cluster: Cluster, tried: Cluster, watching: Watching
) -> None:
    cluster.put({"config": "all"})
    _, heard = watching()
    heard.content(b"all")
    put(tried, "new", "node-0, node-1")
    heard.content(b"new")
    cluster.put({"config": "all, later"})  # this node goes on with what it tries
    put(tried, "newer", "100%")
    heard.content(b"newer")
    before = time.monotonic()
    tried.delete()
    assert heard.content(b"all, later").noticed >= before
    assert documents(heard) == [b"all", b"new", b"newer", b"all, later"]


def test_taking_the_node_out_of_the_annotation_is_enough(
    cluster: Cluster, tried: Cluster, watching: Watching
) -> None:
    cluster.put({"config": "all"})
    put(tried, "new", NODE)
    _, heard = watching()
    heard.content(b"new")
    for nodes in ("node-10", "0%", ""):
        put(tried, "new", nodes)
        heard.content(b"all")
        put(tried, "new", NODE)
        heard.content(b"new")


def test_an_agent_that_starts_among_those_that_try_never_goes_back_for_a_moment(
    cluster: Cluster, tried: Cluster, watching: Watching
) -> None:
    cluster.put({"config": "all"})
    put(tried, "new", NODE)
    tried.down()
    _, heard = watching()
    cluster.wait_for_watch()
    heard.wait(lambda events: len(events) > 0)
    tried.up()
    heard.content(b"new")
    assert b"all" not in heard.contents


def test_without_permission_the_document_of_all_nodes_stands_and_says_so(
    cluster: Cluster, tried: Cluster, watching: Watching
) -> None:
    cluster.put({"config": "all"})
    tried.refusals["list"] = (403, "configmaps is forbidden")
    _, heard = watching()
    document = heard.content(b"all")
    assert document.caveat is not None
    assert "whether this node tries another document is not known" in document.caveat
    assert "forbidden" in document.caveat
    tried.refusals.clear()
    put(tried, "new", NODE)
    heard.content(b"new")


def test_losing_sight_of_what_is_not_tried_makes_no_node_unready(
    cluster: Cluster, tried: Cluster, watching: Watching
) -> None:
    cluster.put({"config": "all"})
    put(tried, "new", "node-2")
    _, heard = watching()
    heard.content(b"all")
    tried.wait_for_watch()
    tried.down()
    heard.wait(lambda events: isinstance(events[-1], Document) and events[-1].caveat is not None)
    assert set(heard.contents) == {b"all"}


def test_losing_sight_of_what_is_tried_keeps_it_and_says_so(
    cluster: Cluster, tried: Cluster, watching: Watching
) -> None:
    cluster.put({"config": "all"})
    put(tried, "new", NODE)
    _, heard = watching()
    heard.content(b"new")
    tried.wait_for_watch()
    tried.refusals = dict.fromkeys(("list", "watch"), (403, "taken away"))
    tried.break_watches()
    assert isinstance(heard.failure("taken away").error, AccessDenied)
    heard.forget()
    cluster.put({"config": "all, later"})
    heard.wait(lambda events: len(events) > 0)
    assert heard.contents[0] == b"new"


def test_an_annotation_that_cannot_be_read_means_nobody_and_is_told(
    cluster: Cluster, tried: Cluster, watching: Watching
) -> None:
    cluster.put({"config": "all"})
    put(tried, "new", "5 %%")
    _, heard = watching()
    caveat = heard.content(b"all").caveat
    assert caveat is not None
    assert NODES in caveat


def test_one_question_is_answered_alike(
    cluster: Cluster, tried: Cluster, watching: Watching
) -> None:
    cluster.put({"config": "all"})
    put(tried, "new", NODE)
    source, _ = watching()
    parts = source.read().parts
    assert [part.content for part in parts] == [b"new"]
    tried.delete()
    parts = source.read().parts
    assert [part.content for part in parts] == [b"all"]
