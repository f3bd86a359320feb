"""The commands of the install guide, by the real kubectl, against a mock API server.

The server keeps objects and applies patches, but validates nothing (test_manifests does) and
runs nothing (test_image does).
"""

from __future__ import annotations

import asyncio
import json
import re
import sysconfig
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import kmock

from tests.deploy.manifests import API, FILE, ROOT, configmap, container

Kubectl = Callable[..., Awaitable[str]]

VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
KINDS = {
    "v1/configmaps": "ConfigMap",
    "v1/serviceaccounts": "ServiceAccount",
    "rbac.authorization.k8s.io/v1/roles": "Role",
    "rbac.authorization.k8s.io/v1/rolebindings": "RoleBinding",
    "apps/v1/daemonsets": "DaemonSet",
}
CONFIGMAP = "/api/v1/namespaces/kube-system/configmaps/ip-masq-agent"
DAEMONSET = "/apis/apps/v1/namespaces/kube-system/daemonsets/ipmasq-agent"


class Refused(Exception):
    """kubectl exited with a status other than 0."""


@asynccontextmanager
async def cluster(home: Path) -> AsyncIterator[Kubectl]:
    """Yield a kubectl that talks to a new and empty API server."""
    emulator = kmock.KubernetesEmulator()
    for resource, kind in KINDS.items():
        info = {"kind": kind, "singular": kind.lower(), "namespaced": True, "verbs": {*VERBS}}
        emulator.resources[resource] = info
    # kmock leaves the core group out of what it says that it serves.
    emulator["get /api/v1"] << {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            {"name": name, "singularName": "", "kind": kind, "namespaced": True, "verbs": VERBS}
            for name, kind in (("configmaps", "ConfigMap"), ("serviceaccounts", "ServiceAccount"))
        ],
    }
    program = str(Path(sysconfig.get_path("scripts"), "kubectl"))

    async def merge(request: Any) -> Any:
        """Merge lists by name as a strategic merge patch asks for; kmock replaces them."""
        kept = emulator.objects[request.resource, request.namespace, request.name].history
        before = kept[-2]
        assert before is not None
        (home / "before").write_text(json.dumps(before.raw))
        (home / "patch").write_text(request.text)
        merging = await asyncio.create_subprocess_exec(
            *(program, "patch", "--local", "--type=strategic", "-o", "json"),
            *("-f", str(home / "before"), "--patch-file", str(home / "patch")),
            stdout=asyncio.subprocess.PIPE,
        )
        merged = json.loads((await merging.communicate())[0])
        kept[-1] = merged
        return merged

    def put(request: Any) -> Any:
        held = emulator.objects["v1/configmaps", "kube-system", "ip-masq-agent"].history
        held[-1] = request.data
        return request.data

    emulator[f"patch {DAEMONSET}"] << merge
    emulator[f"put {CONFIGMAP}"] << put
    async with emulator, kmock.Server(emulator) as server:

        async def kubectl(*words: str) -> str:
            child = await asyncio.create_subprocess_exec(
                *(program, f"--server={server.url}", *words),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=ROOT,
                env={"HOME": str(home)},
            )
            out, err = await child.communicate()
            if child.returncode != 0:
                raise Refused(err.decode())
            return out.decode()

        yield kubectl


async def apply(kubectl: Kubectl, variant: str) -> dict[str, str]:
    """Run ``apply -k`` and return what it did to each kind of object."""
    said = await kubectl("apply", "--validate=false", "-k", variant)
    return dict(re.findall(r"^([a-z]+)\S* (\w+)$", said, re.MULTILINE))


async def environment(kubectl: Kubectl) -> list[Any]:
    """Return the environment of the agent in the DaemonSet that the server holds."""
    daemonset: Any = json.loads(await kubectl("get", "--raw", DAEMONSET))
    (agent,) = daemonset["spec"]["template"]["spec"]["containers"]
    return sorted(agent["env"], key=lambda variable: str(variable["name"]))


def declared(variant: str) -> list[Any]:
    return sorted(container(variant)["env"], key=lambda variable: str(variable["name"]))


def test_apply_creates_everything_and_a_second_time_changes_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with cluster(tmp_path) as kubectl:
            kinds = ("serviceaccount", "role", "rolebinding", "daemonset")
            assert await apply(kubectl, API) == dict.fromkeys(kinds, "created")
            assert await apply(kubectl, API) == dict.fromkeys(kinds, "unchanged")

    asyncio.run(story())


def test_an_upgrade_leaves_the_users_document_alone(tmp_path: Path) -> None:
    async def story() -> None:
        async with cluster(tmp_path) as kubectl:
            await kubectl("create", "--validate=false", "-f", "deploy/configmap.yaml")
            assert (
                json.loads(await kubectl("get", "--raw", CONFIGMAP))["data"]
                == (configmap()["data"])
            )
            mine = {"data": {"config": "nonMasqueradeCIDRs: [192.0.2.0/24]\n"}}
            edit = ("--type=merge", "-p", json.dumps(mine))
            await kubectl("patch", "configmap", "ip-masq-agent", "-n", "kube-system", *edit)

            await apply(kubectl, API)
            refusal = None
            try:
                await kubectl("create", "--validate=false", "-f", "deploy/configmap.yaml")
            except Refused as cause:
                refusal = str(cause)
            assert refusal is not None
            assert "exists" in refusal
            held = json.loads(await kubectl("get", "--raw", CONFIGMAP))
            assert held["data"] == mine["data"]

    asyncio.run(story())


def test_a_large_configmap_is_brought_by_the_commands_that_the_guide_names(
    tmp_path: Path,
) -> None:
    """The API server takes 256 KiB of annotations, and `apply` keeps a copy in one."""
    guide = (ROOT / "docs/install.md").read_text()
    words = re.findall(r"^kubectl (.*) -f my-configmap.yaml", guide, re.MULTILINE)
    assert words == ["apply --server-side", "replace"]
    large = configmap()
    entries = "".join(f"- 10.{n // 256}.{n % 256}.0/24\n" for n in range(20_000))
    large["data"] = {"config": f"cidrLimit: 20000\nnonMasqueradeCIDRs:\n{entries}"}
    (tmp_path / "my-configmap.yaml").write_text(json.dumps(large))
    file = ("-f", str(tmp_path / "my-configmap.yaml"), "--validate=false")

    async def annotations(*way: str) -> int:
        async with cluster(tmp_path) as kubectl:
            await kubectl("create", "--validate=false", "-f", "deploy/configmap.yaml")
            await kubectl(*way, *file)
            held = json.loads(await kubectl("get", "--raw", CONFIGMAP))
            assert held["data"] == large["data"]
            return sum(map(len, held["metadata"].get("annotations", {}).values()))

    assert asyncio.run(annotations("apply")) > 256 * 1024
    for way in words:
        assert asyncio.run(annotations(*way.split())) == 0


def test_one_way_to_install_can_follow_the_other(tmp_path: Path) -> None:
    async def story() -> None:
        async with cluster(tmp_path) as kubectl:
            await apply(kubectl, API)
            assert (await apply(kubectl, FILE))["daemonset"] == "configured"
            assert await environment(kubectl) == declared(FILE)
            assert (await apply(kubectl, API))["daemonset"] == "configured"
            assert await environment(kubectl) == declared(API)

    asyncio.run(story())


def test_uninstalling_as_the_guide_says_asks_for_cleanup_and_leaves_no_object(
    tmp_path: Path,
) -> None:
    guide = (ROOT / "docs/install.md").read_text()
    (setting,) = re.findall(r"^kubectl -n kube-system (set env .*)$", guide, re.MULTILINE)

    async def story() -> None:
        async with cluster(tmp_path) as kubectl:
            await apply(kubectl, API)
            await kubectl("-n", "kube-system", *setting.split())
            asked = {"name": "IPMASQ_CLEANUP_ON_EXIT", "value": "true"}
            held = await environment(kubectl)
            assert asked in held
            assert [variable for variable in held if variable != asked] == declared(API)
            gone = await kubectl("delete", "-k", API)
            assert gone.count(" deleted ") == 4

    asyncio.run(story())
