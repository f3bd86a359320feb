"""A node's ConfigMap changes as kubelet changes one."""

from __future__ import annotations

import os
from pathlib import Path

from ipmasq_agent.lab.mounted import mount, mounted


def visible(directory: Path) -> dict[str, str]:
    """What a reader of the directory sees."""
    return {e.name: e.read_text() for e in directory.iterdir() if not e.name.startswith("..")}


def test_keys_come_change_and_go(tmp_path: Path) -> None:
    directory = tmp_path / "node"
    assert mounted(directory) == {}
    for keys in ({"config": "one"}, {"a": "two", "b": "three"}, {"b": "four"}, {"config": ""}):
        mount(directory, keys)
        assert mounted(directory) == visible(directory) == keys


def test_a_key_is_a_link_through_one_link_that_is_swapped(tmp_path: Path) -> None:
    mount(tmp_path, {"config": "one"})
    assert os.readlink(tmp_path / "config") == "..data/config"
    before = os.readlink(tmp_path / "..data")
    mount(tmp_path, {"config": "two"})
    assert os.readlink(tmp_path / "..data") != before
    assert not (tmp_path / before).exists()
    assert sorted(p.name for p in tmp_path.iterdir())[-1] == "config"
