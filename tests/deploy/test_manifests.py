"""The manifests against the Kubernetes API, the command line, the parser and each other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ipmasq_agent import __version__
from ipmasq_agent.cli.options import DEFAULT_CONFIG, Settings, split_configmap
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.config.keys import view
from ipmasq_agent.config.model import Flags
from ipmasq_agent.planes import registry
from ipmasq_agent.sources.kube_access import Permission
from tests.deploy.command_line import parameters
from tests.deploy.manifests import (
    API,
    BPF,
    DEPLOY,
    FILE,
    KUBERNETES,
    NODES,
    VARIANTS,
    Object,
    configmap,
    container,
    objects,
    one,
    pod,
    render,
    with_components,
)


def run_parameters(variant: str) -> dict[str, Any]:
    return parameters(container(variant), *container(variant)["args"])


def settings(variant: str) -> Settings:
    found = run_parameters(variant)["settings"]
    assert isinstance(found, Settings)
    return found


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_object_is_valid_for_the_oldest_and_the_newest_api(
    variant: str, version: str
) -> None:
    for item in objects(variant):
        kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_configmap_is_valid_for_the_oldest_and_the_newest_api(version: str) -> None:
    kubernetes_validate.validate(configmap(), version, strict=True)


def misspell(daemonset: Object) -> None:
    spec = daemonset["spec"]["template"]["spec"]
    spec["hostNetworking"] = spec.pop("hostNetwork")


def write_a_number_as_text(daemonset: Object) -> None:
    daemonset["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = "10"


def forget_the_selector(daemonset: Object) -> None:
    del daemonset["spec"]["selector"]


@pytest.mark.parametrize("spoil", [misspell, write_a_number_as_text, forget_the_selector])
def test_the_validation_would_find_a_mistake(spoil: Callable[[Object], None]) -> None:
    daemonset = copy.deepcopy(one(API, "DaemonSet"))
    spoil(daemonset)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(daemonset, KUBERNETES[-1], strict=True)


def test_the_plain_manifest_is_the_rendered_whole() -> None:
    plain = (DEPLOY / "ipmasq-agent.yaml").read_text()
    _, _, body = plain.partition("\n\n")
    assert body == render(API), "render it again with scripts/render-manifest"


def test_every_file_of_the_base_is_used() -> None:
    named = yaml.safe_load((DEPLOY / "base/kustomization.yaml").read_text())["resources"]
    there = {path.name for path in (DEPLOY / "base").iterdir()}
    assert there == {*named, "kustomization.yaml"}


def test_the_image_is_of_this_version() -> None:
    for variant in VARIANTS:
        assert container(variant)["image"].rpartition(":")[2] == __version__


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_objects_live_in_kube_system_and_carry_the_recommended_labels(variant: str) -> None:
    for item in objects(variant):
        if not item["kind"].startswith("Cluster"):
            assert item["metadata"]["namespace"] == "kube-system"
        assert item["metadata"]["labels"]["app.kubernetes.io/name"] == "ipmasq-agent"
    template = one(variant, "DaemonSet")["spec"]["template"]["metadata"]["labels"]
    selector = one(variant, "DaemonSet")["spec"]["selector"]["matchLabels"]
    assert selector.items() <= template.items()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_command_line_takes_the_arguments(variant: str) -> None:
    assert settings(variant).backend == ("bpf" if variant == BPF else "auto")
    assert run_parameters(variant)["log_format"] == "json"


@pytest.mark.parametrize("verb", ["apply", "diff", "status", "list", "explain 192.0.2.1"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_verb_that_is_run_in_the_container_has_the_settings_of_the_agent(
    variant: str, verb: str
) -> None:
    found = parameters(container(variant), *verb.split())["settings"]
    wanted = settings(variant)
    assert wanted.node_name == "worker-1"
    if verb == "list":  # it reads no document
        assert (found.backend, found.placement) == (wanted.backend, wanted.placement)
    else:
        assert found == wanted


def test_in_the_container_a_flag_wins_and_another_document_takes_the_place_of_the_clusters() -> (
    None
):
    found = parameters(container(API), "diff", "--config=-", "--backend=nftables")["settings"]
    assert (found.config, found.configmaps, found.backend) == ("-", (), "nftables")
    found = parameters(container(FILE), "diff", "--configmap=a/b")["settings"]
    assert (found.config, found.configmaps) == (DEFAULT_CONFIG, ("a/b",))


def test_the_role_grants_reading_of_the_one_configmap_that_the_arguments_name() -> None:
    [named] = settings(API).configmaps
    namespace, name, key = split_configmap(named)
    role = one(API, "Role")
    assert role["metadata"]["namespace"] == namespace
    assert role["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": [name],
            "verbs": ["get", "list", "watch"],
        }
    ]
    example = configmap()
    assert (example["metadata"]["namespace"], example["metadata"]["name"]) == (namespace, name)
    assert [*example["data"]] == [key or "config"]


def test_the_role_is_bound_to_the_account_of_the_pods() -> None:
    binding, account = one(API, "RoleBinding"), one(API, "ServiceAccount")
    assert binding["roleRef"]["name"] == one(API, "Role")["metadata"]["name"]
    assert binding["subjects"] == [
        {
            "kind": "ServiceAccount",
            "name": account["metadata"]["name"],
            "namespace": account["metadata"]["namespace"],
        }
    ]
    assert pod(API)["serviceAccountName"] == account["metadata"]["name"]


def test_only_the_agent_that_calls_the_api_gets_a_token() -> None:
    for variant in VARIANTS:
        assert one(variant, "ServiceAccount")["automountServiceAccountToken"] is False
    assert pod(API)["automountServiceAccountToken"] is True
    assert pod(FILE)["automountServiceAccountToken"] is False
    assert pod(NODES)["automountServiceAccountToken"] is True


def test_nodes_may_be_read_only_where_that_was_asked_for() -> None:
    kinds = {variant: {item["kind"] for item in objects(variant)} for variant in VARIANTS}
    assert kinds[NODES] - kinds[API] == {"ClusterRole", "ClusterRoleBinding"}
    role, binding = one(NODES, "ClusterRole"), one(NODES, "ClusterRoleBinding")
    permission = Permission("nodes")
    assert [yaml.safe_load(permission.rule)] == role["rules"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    # The commands that a refusal names make the same objects.
    assert f"create clusterrole {role['metadata']['name']} " in permission.grant("")
    assert binding["subjects"] == one(API, "RoleBinding")["subjects"]


@pytest.mark.parametrize("resource", ["", "overlays/file", "overlays/bpf"])
def test_the_record_lies_in_a_folder_of_the_node_where_verbs_look_too(
    tmp_path: Path, resource: str
) -> None:
    mine = with_components(tmp_path, resource, "record")
    (mount,) = [m for m in container(mine)["volumeMounts"] if m["name"] == "record"]
    (volume,) = [v for v in pod(mine)["volumes"] if v["name"] == "record"]
    assert volume["hostPath"] == {"path": mount["mountPath"], "type": "DirectoryOrCreate"}
    for words in (container(mine)["args"], ["observe"]):
        record = parameters(container(mine), *words)["settings"].record
        assert record == f"{mount['mountPath']}/record"
    for item in objects(mine):
        kubernetes_validate.validate(item, KUBERNETES[-1], strict=True)


@pytest.mark.parametrize(
    ("component", "permission"),
    [("nodes", Permission("nodes")), ("pods", Permission("pods", verbs=("list",)))],
)
def test_a_component_goes_with_the_file_overlay_too(
    tmp_path: Path, component: str, permission: Permission
) -> None:
    both = objects(with_components(tmp_path, "overlays/file", component))
    assert {item["kind"] for item in both} == {
        *("DaemonSet", "ServiceAccount", "ClusterRole", "ClusterRoleBinding")
    }
    (daemonset,) = [item for item in both if item["kind"] == "DaemonSet"]
    assert daemonset["spec"]["template"]["spec"]["automountServiceAccountToken"] is True
    (role,) = [item for item in both if item["kind"] == "ClusterRole"]
    assert role["rules"] == [yaml.safe_load(permission.rule)]
    assert f"create clusterrole {role['metadata']['name']} " in permission.grant("")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_profile_of_system_calls_goes_with_every_overlay(tmp_path: Path, variant: str) -> None:
    folder = with_components(tmp_path, variant.removeprefix("deploy").lstrip("/"), "seccomp")
    mine = {item["kind"]: item for item in objects(folder)}
    plain = {item["kind"]: item for item in objects(variant)}
    context = mine["DaemonSet"]["spec"]["template"]["spec"]["securityContext"]
    wanted = {"type": "Localhost", "localhostProfile": "ipmasq-agent.json"}
    assert context.pop("seccompProfile") == wanted
    assert (DEPLOY / "seccomp" / wanted["localhostProfile"]).is_file()
    del plain["DaemonSet"]["spec"]["template"]["spec"]["securityContext"]["seccompProfile"]
    assert mine == plain


@pytest.mark.parametrize("resource", ["", "overlays/nodes", "overlays/bpf"])
def test_a_document_to_try_is_watched_and_may_be_read(tmp_path: Path, resource: str) -> None:
    mine = with_components(tmp_path, resource, "canary")
    named = run_parameters(mine)["settings"].canary
    assert parameters(container(mine), "diff")["settings"].canary == named
    namespace, name, _ = split_configmap(named)
    roles = {item["metadata"]["name"]: item for item in objects(mine) if item["kind"] == "Role"}
    added = roles["ipmasq-agent-canary"]
    assert added["metadata"]["namespace"] == namespace
    assert added["rules"] == [yaml.safe_load(Permission("configmaps", namespace, name).rule)]
    bindings = [item for item in objects(mine) if item["kind"] == "RoleBinding"]
    assert {item["roleRef"]["name"] for item in bindings} == roles.keys()
    assert all(item["subjects"] == bindings[0]["subjects"] for item in bindings)


@pytest.mark.parametrize("resource", ["", "overlays/nodes", "overlays/bpf"])
def test_events_may_be_written_where_they_belong_and_nothing_else_of_them(
    tmp_path: Path, resource: str
) -> None:
    mine = with_components(tmp_path, resource, "events")
    run = run_parameters(mine)
    assert run["events"] is True
    (configmap,) = run["settings"].configmaps
    added = [item for item in objects(mine) if "-events" in item["metadata"]["name"]]
    roles = {item["metadata"]["namespace"]: item for item in added if item["kind"] == "Role"}
    assert roles.keys() == {split_configmap(configmap)[0], "default"}
    for namespace, role in roles.items():
        needed = Permission("events", namespace, verbs=("create", "patch"), group="events.k8s.io")
        assert role["rules"] == [yaml.safe_load(needed.rule)]
    bindings = [item for item in added if item["kind"] == "RoleBinding"]
    assert {item["metadata"]["namespace"]: item["roleRef"]["name"] for item in bindings} == {
        namespace: role["metadata"]["name"] for namespace, role in roles.items()
    }
    account = one(mine, "ServiceAccount")["metadata"]
    for item in bindings:
        (subject,) = item["subjects"]
        assert (subject["namespace"], subject["name"]) == (account["namespace"], account["name"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_agent_is_told_which_node_it_is_on(variant: str) -> None:
    (variable,) = [one for one in container(variant)["env"] if "valueFrom" in one]
    assert variable["name"] == "IPMASQ_NODE_NAME"
    # With apiVersion: what the API server adds by itself makes a server-side apply conflict.
    field = {"apiVersion": "v1", "fieldPath": "spec.nodeName"}
    assert variable["valueFrom"] == {"fieldRef": field}


def test_the_file_overlay_grants_nothing() -> None:
    kinds = sorted(item["kind"] for item in objects(FILE))
    assert kinds == ["DaemonSet", "ServiceAccount"]


def test_the_file_overlay_mounts_the_configmap_where_the_arguments_look() -> None:
    (volume,) = [v for v in pod(FILE)["volumes"] if "configMap" in v]
    (mount,) = [m for m in container(FILE)["volumeMounts"] if m["name"] == volume["name"]]
    (item,) = volume["configMap"]["items"]
    assert f"{mount['mountPath']}/{item['path']}" == settings(FILE).config == DEFAULT_CONFIG
    assert volume["configMap"]["name"] == configmap()["metadata"]["name"]
    assert [item["key"]] == [*configmap()["data"]]
    assert volume["configMap"]["optional"] is True
    assert "subPath" not in mount, "the kubelet never updates a subPath"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_mount_has_its_volume_and_every_volume_its_mount(variant: str) -> None:
    mounts = {mount["name"] for mount in container(variant)["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod(variant)["volumes"]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_path_of_the_host_is_mounted_but_lock_state_and_the_file_system_of_ebpf(
    variant: str,
) -> None:
    paths = [volume["hostPath"] for volume in pod(variant)["volumes"] if "hostPath" in volume]
    lock = {"path": "/run/xtables.lock", "type": "FileOrCreate"}
    state = {"path": run_parameters(variant)["state_dir"], "type": "DirectoryOrCreate"}
    assert paths == [lock, state, {"path": "/sys/fs/bpf", "type": "Directory"}]
    (mount,) = [m for m in container(variant)["volumeMounts"] if m["name"] == "state"]
    assert mount == {"name": "state", "mountPath": state["path"]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_agent_sees_what_one_of_the_ebpf_overlay_left(variant: str) -> None:
    (mount,) = [m for m in container(variant)["volumeMounts"] if m["name"] == "bpf"]
    assert Path(settings(variant).placement.pins).parent == Path(mount["mountPath"])
    assert not mount.get("readOnly")
    # The default AppArmor profile of container runtimes has `deny /sys/fs/[^c]*/** wklx`.
    assert not Path(mount["mountPath"]).is_relative_to("/sys")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_probes_ask_where_the_agent_answers(variant: str) -> None:
    host, _, port = run_parameters(variant)["http_address"].rpartition(":")
    paths = {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    for probe, path in paths.items():
        assert container(variant)[probe]["httpGet"] == {
            "host": host,
            "port": int(port),
            "path": path,
        }
    # The first probe meets a closed port; the next must not be a rollout's pace.
    assert container(variant)["startupProbe"]["periodSeconds"] == 1
    # With hostNetwork a container port becomes a port of the host, on every address.
    assert "ports" not in container(variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_container_has_the_privileges_that_the_planes_declare_and_no_other(
    variant: str,
) -> None:
    context = container(variant)["securityContext"]
    assert context["capabilities"]["drop"] == ["ALL"]
    declared = registry.capabilities(settings(variant).backend) | registry.to_leave()
    assert sorted(context["capabilities"]["add"]) == sorted(declared)
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert "privileged" not in context
    assert pod(variant)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_agent_runs_on_every_linux_node_whatever_its_taints(variant: str) -> None:
    assert pod(variant)["hostNetwork"] is True
    assert pod(variant)["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert pod(variant)["tolerations"] == [{"operator": "Exists"}]
    assert pod(variant)["priorityClassName"] == "system-node-critical"


def test_the_configmap_spells_out_the_defaults_and_draws_no_warning() -> None:
    text = configmap()["data"]["config"]
    shown = parse_document(text.encode(), "deploy/configmap.yaml", Flags())
    absent = parse_document(None, "absent", Flags())
    assert view(shown.config) == view(absent.config)
    assert shown.warnings == ()
    assert yaml.safe_load(text).keys() == view(absent.config).keys()
