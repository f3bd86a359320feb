"""Which nodes a share of all nodes means."""

from __future__ import annotations

import pytest

from ipmasq_agent.sources.canary import tries

NODES = [f"gke-pool-{number:04}" for number in range(2000)]


def among(share: str) -> set[str]:
    return {node for node in NODES if tries(share, node)}


def test_a_share_is_about_that_many_and_grows_by_nodes_that_come_to_it() -> None:
    assert among("0%") == set()
    assert 60 <= len(among("5%")) <= 140
    assert among("5%") < among("20%") < among("100%") == set(NODES)


def test_names_are_whole_names() -> None:
    assert tries("node-1,node-2\nnode-3", "node-3")
    assert not tries("node-10 node-1.zone", "node-1")
    assert not tries("", "node-1")


@pytest.mark.parametrize("nodes", ["101%", "-1%", "nan%", "five%", "%", "node_1", "Node"])
def test_what_is_neither_is_an_error(nodes: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        tries(nodes, "node-1")
