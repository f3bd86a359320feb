"""The Helm chart against kustomize, the Kubernetes API, the command line and the parser."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.chart import CHART, Values, helm, is_hook, template
from tests.deploy.manifests import DEPLOY, Object, objects, with_components

OVERLAYS: dict[str, Values] = {
    "": {},
    "overlays/bpf": {"backend": "bpf"},
    "overlays/file": {"mode": "file"},
    "overlays/nodes": {"rbac": {"nodes": True}},
}
"""What values say for each way to install with kustomize."""
COMPONENTS: dict[str, Values] = {
    "canary": {"canary": {"enabled": True}},
    "nodes": {"rbac": {"nodes": True}},
    "pods": {"rbac": {"pods": True}},
    "record": {"record": {"enabled": True}},
    "seccomp": {
        "seccompProfile": {"type": "Localhost", "localhostProfile": "ipmasq-agent.json"},
    },
}
ADDED = {
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
    "helm.sh/chart",
}
"""Labels that charts have."""
BY_NAME = {"env", "volumes", "volumeMounts"}
"""Lists in which the order means nothing."""


def merged(*parts: Values) -> Values:
    """Return values that say all that several do."""
    found: Values = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, dict) and key in found
            found[key] = merged(found[key], value) if both else value
    return found


def normal(node: Any) -> Any:
    """Return a part of an object without the labels of charts, and lists in one order."""
    if isinstance(node, list):
        return [normal(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {key: normal(value) for key, value in node.items() if key not in ADDED}
    for key in BY_NAME & plain.keys():
        plain[key].sort(key=lambda item: item["name"])
    return plain


def told_apart(items: list[Object]) -> dict[tuple[str, str], Object]:
    """Return the objects of a release by kind and name."""
    return {
        (item["kind"], item["metadata"]["name"]): normal(item)
        for item in items
        if not is_hook(item)
    }


def test_each_overlay_and_component_has_its_values() -> None:
    overlays = {f"overlays/{path.name}" for path in (DEPLOY / "overlays").iterdir()}
    assert OVERLAYS.keys() == {"", *overlays}
    assert COMPONENTS.keys() == {path.name for path in (DEPLOY / "components").iterdir()}


def held_to_kustomize(place: Path, ways: list[tuple[str, tuple[str, ...]]]) -> None:
    """Assert that the chart makes what kustomize makes of each overlay with its components."""
    parts = [merged(OVERLAYS[way], *(COMPONENTS[one] for one in more)) for way, more in ways]
    for number, ((way, more), made) in enumerate(zip(ways, template(*parts), strict=True)):
        (place / str(number)).mkdir()
        wanted = objects(with_components(place / str(number), way, *more))
        assert told_apart(made) == told_apart(wanted), (way, more)


def ways_to_install(*, every_set: bool) -> list[tuple[str, tuple[str, ...]]]:
    """Return the overlays, each with sets of components: none and all, or every one."""
    found = []
    for way in OVERLAYS:
        # A component is there once, and one overlay is made of one. Of files none is preferred.
        without = (way.removeprefix("overlays/"), "canary" if way == "overlays/file" else "")
        more = [one for one in COMPONENTS if one not in without]
        sizes = range(len(more) + 1) if every_set else (0, len(more))
        found += [(way, some) for size in sizes for some in itertools.combinations(more, size)]
    return found


def test_an_overlay_is_the_same_from_the_chart(tmp_path: Path) -> None:
    held_to_kustomize(tmp_path, ways_to_install(every_set=False))


@pytest.mark.long
def test_an_overlay_with_any_components_is_the_same_from_the_chart(tmp_path: Path) -> None:
    held_to_kustomize(tmp_path, ways_to_install(every_set=True))


def test_the_chart_passes_lint() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", CHART)
