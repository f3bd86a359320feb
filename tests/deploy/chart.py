"""The Helm chart as a cluster would get it: rendered by helm, many sets of values at a time."""

from __future__ import annotations

import json
import re
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.manifests import DEPLOY, ROOT, Object

CHART = DEPLOY / "helm/ipmasq-agent"
HELM = Path(sysconfig.get_path("scripts"), "helm")
RELEASE = ("ipmasq-agent", "kube-system")
"""Its name and its namespace, as the guide has them."""

ADDED = {
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
    "helm.sh/chart",
    "meta.helm.sh/release-name",
    "meta.helm.sh/release-namespace",
}
"""Labels that charts have, and annotations of what helm has made."""
BY_NAME = {"env", "volumes", "volumeMounts"}
"""Lists in which the order means nothing."""

Values = dict[str, Any]


class Refused(Exception):
    """Helm refused something; the text is what it said."""


def helm(*words: str | Path) -> str:
    """Return what helm says, with no configuration of a user's; raise Refused where it fails."""
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [HELM, *words],
            cwd=ROOT,
            env={"HOME": home, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def template(*sets: Values) -> list[list[Object]]:
    """Return the objects that the chart makes of each set of values, hooks and all.

    One helm renders all of them: a chart that has this one as its part, once for each set.
    """
    name, namespace = RELEASE
    parts = [f"part{number}" for number in range(len(sets))]
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        (whole / "charts").mkdir(parents=True)
        (whole / "charts/ipmasq-agent").symlink_to(CHART)
        one = {"name": "ipmasq-agent", "version": ">=0.0.0-0"}
        chart: Object = {"apiVersion": "v2", "name": "whole", "version": "0.0.0"}
        chart["dependencies"] = [one | {"alias": part} for part in parts]
        (whole / "Chart.yaml").write_text(json.dumps(chart))
        # A user's: what a chart says to its parts loses each null.
        told = Path(folder, "values.yaml")
        told.write_text(json.dumps(dict(zip(parts, sets, strict=True))))
        text = helm("template", name, whole, "--namespace", namespace, "--values", told)
    found: dict[str, list[Object]] = {part: [] for part in parts}
    # Each document begins with the file that it is of.
    for document in re.split(r"^---\n# Source: ", text, flags=re.MULTILINE)[1:]:
        source, _, body = document.partition("\n")
        item = yaml.load(body, yaml.CSafeLoader)
        if item is not None:
            found[source.split("/")[2]].append(item)
    return [*found.values()]


def is_hook(item: Object) -> bool:
    """Whether helm makes the object at some moment, and not as a part of the release."""
    return "helm.sh/hook" in item["metadata"].get("annotations", {})


def of_kind(items: Iterable[Object], kind: str) -> Object:
    """Return the only object of a kind that is no hook."""
    (found,) = [item for item in items if item["kind"] == kind and not is_hook(item)]
    return found


def agent(items: Sequence[Object]) -> Object:
    """Return the container of the agent."""
    (found,) = of_kind(items, "DaemonSet")["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def normal(node: Any) -> Any:
    """Return a part of an object without what helm adds, and lists in one order."""
    if isinstance(node, list):
        return [normal(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {key: normal(value) for key, value in node.items() if key not in ADDED}
    if plain.get("annotations") == {}:
        del plain["annotations"]
    for key in BY_NAME & plain.keys():
        plain[key].sort(key=lambda item: item["name"])
    return plain


def told_apart(items: Iterable[Object]) -> dict[tuple[str, str], Object]:
    """Return the objects of a release by kind and name."""
    return {
        (item["kind"], item["metadata"]["name"]): normal(item)
        for item in items
        if not is_hook(item)
    }
