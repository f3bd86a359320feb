"""The manifests as a cluster would get them: rendered by kubectl, as ``apply -k`` does."""

from __future__ import annotations

import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
API, FILE, NODES = "deploy", "deploy/overlays/file", "deploy/overlays/nodes"
BPF = "deploy/overlays/bpf"
VARIANTS = (API, FILE, NODES, BPF)
"""The ways to install: watching the API, reading a mounted file, reading nodes too, eBPF."""

KUBERNETES = ("1.25", "1.37")
"""The oldest and the newest API whose schemas are at hand."""

Object = dict[str, Any]


@cache
def render(variant: str) -> str:
    """Return what ``kubectl kustomize`` makes of a directory; it fails on a dangling part."""
    kubectl = Path(sysconfig.get_path("scripts"), "kubectl")
    done = subprocess.run(
        [kubectl, "kustomize", variant], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0 or done.stderr:
        raise AssertionError(f"kubectl kustomize {variant}:\n{done.stderr}")
    return done.stdout


def objects(variant: str) -> list[Object]:
    """Return the objects of a rendered directory, fresh ones at each call."""
    return [*yaml.safe_load_all(render(variant))]


def one(variant: str, kind: str) -> Object:
    """Return the only object of a kind."""
    (found,) = [item for item in objects(variant) if item["kind"] == kind]
    return found


def pod(variant: str) -> Object:
    """Return the pod spec of the DaemonSet."""
    spec: Object = one(variant, "DaemonSet")["spec"]["template"]["spec"]
    return spec


def container(variant: str) -> Object:
    """Return the agent's container."""
    (found,) = pod(variant)["containers"]
    assert isinstance(found, dict)
    return found


def with_components(place: Path, resource: str, *components: str) -> str:
    """Return a kustomization of a user's own in an empty folder: a way to install, and components.

    The first is below deploy/, or empty for deploy/ itself; the others below deploy/components.
    """
    (place / "deploy").symlink_to(DEPLOY)
    (place / "mine").mkdir()
    named = [f"../deploy/components/{each}" for each in components]
    mine = {"resources": [f"../deploy/{resource}"], "components": named}
    (place / "mine/kustomization.yaml").write_text(yaml.safe_dump(mine))
    return str(place / "mine")


def configmap() -> Object:
    """Return the ConfigMap that users start from; it is part of no rendered directory."""
    found = yaml.safe_load((DEPLOY / "configmap.yaml").read_text())
    assert isinstance(found, dict)
    return found
