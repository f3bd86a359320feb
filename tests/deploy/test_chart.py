"""The Helm chart against kustomize, the Kubernetes API, the command line and the parser."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner
from packaging.version import Version

from ipmasq_agent import __version__
from ipmasq_agent.cli.entry import cli
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.config.keys import KEYS, view
from ipmasq_agent.config.model import Flags
from ipmasq_agent.planes import registry
from ipmasq_agent.sources.kube_access import Permission
from tests.deploy import chart_files
from tests.deploy.chart import (
    CHART,
    RELEASE,
    Refused,
    Values,
    agent,
    helm,
    is_hook,
    of_kind,
    template,
    told_apart,
)
from tests.deploy.chart_choices import (
    at,
    every_choice,
    merged,
    nested,
    paired_choices,
    values_of,
)
from tests.deploy.command_line import environment, parameters
from tests.deploy.manifests import DEPLOY, KUBERNETES, ROOT, Object, objects, with_components

_PAGES = ("README.md", "docs/install.md", "docs/helm.md")
PAGES = {name: (ROOT / name).read_text() for name in _PAGES}
"""Where users read of the chart."""


def ways(folder: str) -> dict[str, Values]:
    """Return what values say for each of kustomize's folders, by the table of the guide."""
    rows = re.findall(
        r"^\| (`deploy/.*?) \| `([\w.]+): (.*)` \|$", PAGES["docs/helm.md"], re.MULTILINE
    )
    return {
        name: nested(path, yaml.safe_load(value))
        for places, path, value in rows
        for name in re.findall(rf"`deploy/({folder}/\w+)`", places)
    }


OVERLAYS: dict[str, Values] = {"": {}} | ways("overlays")
COMPONENTS = {name.removeprefix("components/"): way for name, way in ways("components").items()}
OPERATOR = "monitoring.coreos.com/v1"
"""Kinds that the schemas of Kubernetes do not know."""


# -- beside kustomize ---------------------------------------------------------------------


def test_the_guide_has_the_values_of_each_overlay_and_component() -> None:
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
        # A component is there once, and one overlay is made of one. With files some cannot be.
        without = {way.removeprefix("overlays/")}
        without |= {"canary", "events"} if way == "overlays/file" else set()
        more = [one for one in COMPONENTS if one not in without]
        sizes = range(len(more) + 1) if every_set else (0, len(more))
        found += [(way, some) for size in sizes for some in itertools.combinations(more, size)]
    return found


def test_an_overlay_is_the_same_from_the_chart(tmp_path: Path) -> None:
    held_to_kustomize(tmp_path, ways_to_install(every_set=False))


@pytest.mark.long
def test_an_overlay_with_any_components_is_the_same_from_the_chart(tmp_path: Path) -> None:
    held_to_kustomize(tmp_path, ways_to_install(every_set=True))


# -- what is written of it ----------------------------------------------------------------


def test_the_chart_passes_lint() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", CHART)


def test_the_chart_is_of_this_version() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert Version(about["version"]) == Version(__version__)  # of which the first is SemVer
    assert about["appVersion"] == __version__
    assert about["kubeVersion"] == f">={KUBERNETES[0]}.0-0"


@pytest.mark.parametrize("name", [*chart_files.written()])
def test_schema_and_table_are_those_of_the_values(name: str) -> None:
    """After a change: ``python -m tests.deploy.chart_files``."""
    assert (ROOT / name).read_text() == chart_files.written()[name]


def test_every_flag_of_run_is_a_flag_of_the_chart_or_follows_a_value() -> None:
    flags = {chart_files.flag_of(option) for option in chart_files.run_options()}
    known = chart_files.schema()["properties"]["flags"]["properties"].keys()
    assert known | chart_files.KEPT_BY.keys() == flags
    assert not known & chart_files.KEPT_BY.keys()
    defaults = chart_files.values()
    for path in filter(None, chart_files.KEPT_BY.values()):
        assert not isinstance(at(defaults, path), dict)


# -- every combination --------------------------------------------------------------------


def told(given: Values) -> Values:
    """Return all values of a chart of which somebody gives some."""
    return merged(chart_files.values(), given)


def events_in(namespace: str) -> Permission:
    """Return what is needed to write Events there."""
    return Permission("events", namespace, verbs=("create", "patch"), group="events.k8s.io")


def held_by(items: Iterable[Object], kind: str) -> set[str]:
    return {item["metadata"]["name"] for item in items if item["kind"] == kind}


def pod_of(items: Sequence[Object]) -> Object:
    pod: Object = of_kind(items, "DaemonSet")["spec"]["template"]["spec"]
    return pod


@cache
def parsed(environment: str, *words: str) -> dict[str, Any]:
    return parameters({"env": json.loads(environment)}, *words)


def parsed_in(container: Object, *words: str) -> dict[str, Any]:
    """Return what a command line in a container comes to; many have the same environment."""
    return parsed(json.dumps(container["env"]), *words)


@cache
def alerts() -> Object:
    found: Object = yaml.safe_load((CHART / "files/alerts.yaml").read_text())
    return found


def the_command_line_takes_it(values: Values, items: list[Object]) -> None:
    container = agent(items)
    run = parsed_in(container, *container["args"])
    settings = run["settings"]
    name = f"{RELEASE[1]}/{values['configMapName']}"
    from_api = values["mode"] == "api"
    assert settings.configmaps == ((name,) if from_api else ())
    assert settings.canary == (f"{name}-canary" if values["canary"]["enabled"] else None)
    assert settings.backend == values["backend"]
    assert settings.node_name == "worker-1"
    assert bool(settings.record) is values["record"]["enabled"]
    assert run["log_format"] == "json"
    assert run["events"] is values["events"]["enabled"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts[run["state_dir"]] == "state"
    if not from_api:
        assert mounts[str(Path(settings.config).parent)] == "config"
    (test,) = [item for item in items if item["kind"] == "Pod"]
    (asking,) = test["spec"]["containers"]
    assert parsed_in(asking, *asking["args"])["settings"] == replace(settings, record=None)


def it_has_the_capabilities_and_mounts_of_its_backend(values: Values, items: list[Object]) -> None:
    backend = values["backend"]
    needed = registry.capabilities(backend)
    wanted = needed | registry.to_leave() if values["takeOver"] else needed
    context = agent(items)["securityContext"]
    assert sorted(context["capabilities"]["add"]) == sorted(wanted)
    assert context["capabilities"]["drop"] == ["ALL"]
    assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
    mounts = [mount["name"] for mount in agent(items)["volumeMounts"]]
    assert len(mounts) == len(set(mounts))
    assert set(mounts) == {volume["name"] for volume in pod_of(items)["volumes"]}
    # A lock for programs that speak through a raw socket; a place for pins where bpf(2) is called.
    assert ("xtables-lock" in mounts) is ("NET_RAW" in wanted)
    assert ("bpf" in mounts) is ("BPF" in wanted)
    assert ("record" in mounts) is values["record"]["enabled"]
    assert ("config" in mounts) is (values["mode"] == "file")


def it_may_read_what_it_asks_for_and_nothing_else(values: Values, items: list[Object]) -> None:
    namespace, name, rbac = RELEASE[1], values["configMapName"], values["rbac"]
    permissions = {
        ("Role", ""): (values["mode"] == "api", Permission("configmaps", namespace, name)),
        ("Role", "-canary"): (
            values["canary"]["enabled"],
            Permission("configmaps", namespace, f"{name}-canary"),
        ),
        ("Role", "-events"): (values["events"]["enabled"], events_in(namespace)),
        ("Role", "-node-events"): (values["events"]["enabled"], events_in("default")),
        ("ClusterRole", "-nodes"): (rbac["nodes"], Permission("nodes")),
        ("ClusterRole", "-pods"): (rbac["pods"], Permission("pods", verbs=("list",))),
    }
    wanted = {
        (kind, f"ipmasq-agent{more}"): [yaml.safe_load(permission.rule)]
        for (kind, more), (asked, permission) in permissions.items()
        if asked and rbac["create"]
    }
    roles = [item for item in items if item["kind"] in ("Role", "ClusterRole")]
    assert {(item["kind"], item["metadata"]["name"]): item["rules"] for item in roles} == wanted
    places = {item["metadata"]["name"]: item["metadata"].get("namespace") for item in items}
    for (_, more), (_, permission) in permissions.items():
        assert places.get(f"ipmasq-agent{more}", permission.namespace) == permission.namespace
    bindings = [item for item in items if item["kind"] in ("RoleBinding", "ClusterRoleBinding")]
    assert {(item["roleRef"]["kind"], item["roleRef"]["name"]) for item in bindings} == {*wanted}
    account = values["serviceAccount"]["name"] or "ipmasq-agent"
    subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
    assert all(item["subjects"] == [subject] for item in bindings)
    assert pod_of(items)["serviceAccountName"] == account
    made = values["serviceAccount"]["create"]
    assert held_by(items, "ServiceAccount") == ({account} if made else set())
    token = values["mode"] == "api" or rbac["nodes"] or rbac["pods"]
    assert pod_of(items)["automountServiceAccountToken"] is token


def helm_test_asks_beside_an_agent_and_is_none(values: Values, items: list[Object]) -> None:
    (test,) = [item for item in items if is_hook(item)]
    selector = of_kind(items, "DaemonSet")["spec"]["selector"]["matchLabels"]
    # The DaemonSet would adopt it, and delete the agent or the test.
    assert not selector.items() <= test["metadata"]["labels"].items()
    asking, pod = dict(test["spec"]), dict(pod_of(items))
    (one,), (other,) = asking.pop("containers"), pod.pop("containers")
    assert asking.pop("restartPolicy") == "Never"
    assert asking == pod
    for key in ("name", "args", "ports", "startupProbe", "livenessProbe", "readinessProbe"):
        one.pop(key, None)
        other.pop(key, None)
    assert one == other


def it_is_asked_where_it_answers(values: Values, items: list[Object]) -> None:
    container = agent(items)
    host, _, port = parsed_in(container, "run")["http_address"].rpartition(":")
    everywhere = host in ("0.0.0.0", "[::]")
    assert everywhere or host == "127.0.0.1"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["host"] == "127.0.0.1"
        assert container[probe]["httpGet"]["port"] == int(port)
    ports = container.get("ports", [])
    assert [each["hostPort"] for each in ports] == [int(port)] * everywhere
    monitors = [item for item in items if item["kind"] == "PodMonitor"]
    assert len(monitors) == values["podMonitor"]["enabled"]
    for monitor in monitors:
        labels = of_kind(items, "DaemonSet")["spec"]["template"]["metadata"]["labels"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert labels[monitor["spec"]["jobLabel"]] == "ipmasq-agent"
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert [endpoint["port"]] == [each["name"] for each in ports]
    rules = [item["spec"] for item in items if item["kind"] == "PrometheusRule"]
    assert rules == [alerts()] * values["prometheusRule"]["enabled"]


def kubernetes_takes_it(values: Values, items: list[Object]) -> None:
    for item in items:
        assert item["apiVersion"] == OPERATOR or valid(json.dumps(item))


@cache
def valid(item: str) -> bool:
    """Assert that an object is one of the oldest and of the newest API."""
    for version in KUBERNETES:
        kubernetes_validate.validate(json.loads(item), version, strict=True)
    return True


CHECKS: tuple[Callable[[Values, list[Object]], None], ...] = (
    the_command_line_takes_it,
    it_has_the_capabilities_and_mounts_of_its_backend,
    it_may_read_what_it_asks_for_and_nothing_else,
    it_is_asked_where_it_answers,
    kubernetes_takes_it,
    helm_test_asks_beside_an_agent_and_is_none,  # the last, as it takes things away
)


@cache
def made_of_pairs() -> str:
    """Return sets of values in which each two choices meet, with what the chart makes of each."""
    sets = [values_of(choice) for choice in paired_choices()]
    return json.dumps([*zip(sets, template(*sets), strict=True)])


@pytest.mark.parametrize("check", CHECKS)
def test_it_is_so_for_each_two_choices(check: Callable[[Values, list[Object]], None]) -> None:
    for given_values, items in json.loads(made_of_pairs()):
        check(told(given_values), items)


@pytest.mark.long
def test_all_of_it_is_so_for_every_choice() -> None:
    validator = jsonschema.Draft7Validator(chart_files.schema())
    choices = every_choice()
    while some := [values_of(choice) for choice in itertools.islice(choices, 100)]:
        made = template(*some)
        # It takes ten times as long as the rest, and each two choices have met before it already.
        kubernetes_takes_it(told(some[0]), made[0])
        for given_values, items in zip(some, made, strict=True):
            assert validator.is_valid(told(given_values))
            for check in CHECKS:
                if check is not kubernetes_takes_it:
                    check(told(given_values), items)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"canary": {"enabled": True}, "mode": "file"}, "'/mode': value must be 'api'"),
        ({"events": {"enabled": True}, "mode": "file"}, "'/mode': value must be 'api'"),
        ({"moreConfigMaps": ["a"], "mode": "file"}, "'/mode': value must be 'api'"),
        ({"podMonitor": {"enabled": True}}, "'/http/address': value must be one of"),
        ({"serviceAccount": {"create": False}}, "'/serviceAccount/name': minLength"),
        ({"seccompProfile": {"type": "Localhost"}}, "missing property 'localhostProfile'"),
        ({"backend": "ipvs"}, "'/backend': value must be one of 'auto'"),
        ({"flags": {"maskchain": "A"}}, "'/flags': additional properties 'maskchain'"),
        ({"flags": {"backend": "bpf"}}, "'/flags': additional properties 'backend'"),
        ({"flags": {"enable-ipv6": "yes"}}, "'/flags/enable-ipv6': got string, want boolean"),
        ({"config": {"nonMasqueradeCIDR": []}}, "additional properties 'nonMasqueradeCIDR'"),
        # Helms differ in whether anybody hears of a null, so `[]` it has to be.
        ({"config": {"nonMasqueradeCIDRs": None}}, "got null, want array"),
        ({"config": {"nonMasqueradeCIDRs": ["10.0.0.0"]}}, "does not match pattern"),
        ({"image": {"digest": "latest"}}, "'/image/digest': 'latest' does not match pattern"),
        ({"tolerances": []}, "additional properties 'tolerances' not allowed"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(values: Values, words: str) -> None:
    with pytest.raises(Refused, match=re.escape(words)):
        template(values)
    assert not jsonschema.Draft7Validator(chart_files.schema()).is_valid(told(values))


# -- one by one ---------------------------------------------------------------------------


def test_nobodys_document_is_written_until_there_is_one() -> None:
    without, with_one = template({}, {"config": {"nonMasqueradeCIDRs": []}})
    assert held_by(without, "ConfigMap") == set()
    document = of_kind(with_one, "ConfigMap")
    assert document["metadata"]["name"] == "ip-masq-agent"
    assert document["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert document["data"] == {"config": "nonMasqueradeCIDRs: []\n"}


def test_what_cilium_has_below_its_config_is_the_same_document_here() -> None:
    cilium = yaml.safe_load("""
        bpf: {masquerade: true}
        ipMasqAgent:
          enabled: true
          config:
            nonMasqueradeCIDRs: [10.0.0.0/8, 172.16.0.0/12, fd00::/8]
            masqLinkLocal: false
            masqLinkLocalIPv6: true
    """)
    (items,) = template({"config": cilium["ipMasqAgent"]["config"]})
    written = of_kind(items, "ConfigMap")["data"]["config"]
    assert yaml.safe_load(written) == cilium["ipMasqAgent"]["config"]


CIDRS = [["10.0.0.0/8", "192.0.2.0/24"], ["fd00::/8"], []]
SAID: dict[str, list[Any]] = {
    "nonMasqueradeCIDRs": CIDRS,
    "cidrLimit": [64, 1_000_000, 21_000_000.0],
    "masqLinkLocal": [False, True],
    "masqLinkLocalIPv6": [False, True],
    "resyncInterval": ["60s", "1h30m", "1.5s"],
    "masqueradeCIDRs": [["10.99.0.0/16"]],
    "defaultAction": ["masquerade", "keep"],
    "podCIDRs": ["auto", ["10.0.0.0/8"]],
    "nativeRoutingCIDRs": CIDRS,
    "exemptNodeIPs": [False, True],
    "egressInterfaces": ["auto", ["eth+", "!eth1", "1"]],
    "snatAddress": ["auto-route", "192.0.2.1", {"ipv4": "192.0.2.1"}],
    "profile": ["cilium", {"cilium": "tunnel"}],
}
"""What is tried of each key of the document."""


def some_documents(count: int) -> list[dict[str, Any]]:
    """Return documents of a few keys each, the same at each call."""
    source = random.Random(0)
    return [
        {key: source.choice(SAID[key]) for key in source.sample([*SAID], source.randint(1, 8))}
        for _ in range(count)
    ]


def test_a_document_means_in_the_cluster_what_it_means_among_the_values() -> None:
    assert SAID.keys() == {key.name for key in KEYS}
    documents = some_documents(100)
    parts = template(*({"config": document} for document in documents))
    flags = Flags(enable_ipv6=True)
    for document, items in zip(documents, parts, strict=True):
        text = of_kind(items, "ConfigMap")["data"]["config"]
        plain = {key: int(v) if isinstance(v, float) else v for key, v in document.items()}
        assert yaml.safe_load(text) == plain
        arrived = parse_document(text.encode(), "arrived", flags)
        meant = parse_document(json.dumps(plain).encode(), "meant", flags)
        assert view(arrived.config) == view(meant.config)


def test_the_rendered_configmap_passes_the_agents_own_validation(tmp_path: Path) -> None:
    (items,) = template({"config": {"nonMasqueradeCIDRs": ["10.0.0.0/8"], "cidrLimit": 1_000_000}})
    manifest = tmp_path / "configmap.yaml"
    manifest.write_text(yaml.safe_dump(of_kind(items, "ConfigMap")))
    done = CliRunner().invoke(cli, ["config", "validate", str(manifest)])
    assert done.exit_code == 0, done.output


def test_flags_reach_every_verb_and_arguments_stand_behind_run() -> None:
    (items,) = template(
        {
            "flags": {"enable-ipv6": True, "masq-chain": "IP-MASQ-AGENT", "bpf-flows": 1_000_000},
            "extraArgs": ["--socket=", "--v=4"],
            "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example.com"}],
        }
    )
    container = agent(items)
    assert container["args"] == ["run", "--socket=", "--v=4"]
    assert environment(container)["HTTPS_PROXY"] == "http://proxy.example.com"
    for words in (container["args"], ["diff"]):
        settings = parameters(container, *words)["settings"]
        assert settings.flags.enable_ipv6 is True
        assert settings.placement.chain == "IP-MASQ-AGENT"
        assert settings.placement.flows == 1_000_000


def test_several_documents_are_watched_and_may_be_read() -> None:
    names = ["ip-masq-agent", "platform", "team.a"]
    (items,) = template({"moreConfigMaps": names[1:]})
    watched = parameters(agent(items), "run")["settings"].configmaps
    assert watched == tuple(f"kube-system/{name}" for name in names)
    assert of_kind(items, "Role")["rules"][0]["resourceNames"] == names


def test_a_chart_of_charts_may_switch_it_on_and_speak_to_all() -> None:
    plain, part = template({}, {"enabled": True, "global": {"region": "a"}})
    assert part == plain


def test_an_image_by_its_digest_is_that_one() -> None:
    digest = f"sha256:{'0a' * 32}"
    plain, elsewhere, by_digest = template(
        {},
        {"image": {"repository": "registry.example.com/agent", "tag": "2"}},
        {"image": {"digest": digest}},
    )
    assert agent(plain)["image"] == f"ipmasq-agent:{__version__}"
    assert agent(elsewhere)["image"] == "registry.example.com/agent:2"
    assert agent(by_digest)["image"] == f"ipmasq-agent:{__version__}@{digest}"


def test_memory_follows_the_backend_until_somebody_says_how_much() -> None:
    given_values: list[Values] = [
        {},
        {"backend": "bpf"},
        {"backend": "bpf", "resources": {"limits": {"memory": "1Gi"}}},
        {"resources": {"limits": {"memory": None}}},
        {"resources": {"limits": {"cpu": 1, "memory": None}}},
    ]
    limits = [agent(items)["resources"].get("limits") for items in template(*given_values)]
    assert limits == [
        {"memory": "384Mi"},
        {"memory": "512Mi"},
        {"memory": "1Gi"},
        {},
        {"cpu": 1},
    ]


def test_the_token_of_metrics_is_the_agents_and_prometheus(tmp_path: Path) -> None:
    (items,) = template(
        {
            "http": {"address": "0.0.0.0", "tokenSecret": {"name": "metrics", "key": "it"}},
            "podMonitor": {"enabled": True, "interval": "1m30s", "labels": {"release": "mine"}},
        }
    )
    (volume,) = [each for each in pod_of(items)["volumes"] if each["name"] == "token"]
    assert volume["secret"]["secretName"] == "metrics"
    assert volume["secret"]["defaultMode"] == 0o400
    (entry,) = volume["secret"]["items"]
    assert entry["key"] == "it"
    (mount,) = [each for each in agent(items)["volumeMounts"] if each["name"] == "token"]
    file = parameters(agent(items), "run")["metrics_token_file"]
    assert file == f"{mount['mountPath']}/{entry['path']}"
    monitor = of_kind(items, "PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "mine"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["authorization"] == {"credentials": {"name": "metrics", "key": "it"}}
    assert endpoint["interval"] == "1m30s"


def test_what_pods_have_beside_it_is_handed_on() -> None:
    volume: Object = {"name": "more", "emptyDir": {}}
    mount = {"name": "more", "mountPath": "/more"}
    affinity: Object = {"nodeAffinity": {}}
    (items,) = template(
        {
            "imagePullSecrets": [{"name": "mine"}],
            "extraVolumes": [volume],
            "extraVolumeMounts": [mount],
            "affinity": affinity,
            "nodeSelector": {"pool": "a"},
            "tolerations": [],
            "priorityClassName": "",
            "podAnnotations": {"a": "b"},
            "podLabels": {"c": "d"},
            "serviceAccount": {"annotations": {"e": "f"}},
            "updateStrategy": {"rollingUpdate": {"maxUnavailable": 1}},
        }
    )
    pod, daemonset = pod_of(items), of_kind(items, "DaemonSet")
    assert volume in pod["volumes"]
    assert mount in agent(items)["volumeMounts"]
    assert pod["imagePullSecrets"] == [{"name": "mine"}]
    assert pod["affinity"] == affinity
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux", "pool": "a"}
    assert pod.keys().isdisjoint({"tolerations", "priorityClassName"})
    assert daemonset["spec"]["template"]["metadata"]["annotations"] == {"a": "b"}
    assert daemonset["spec"]["template"]["metadata"]["labels"]["c"] == "d"
    assert daemonset["spec"]["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": 1}
    assert of_kind(items, "ServiceAccount")["metadata"]["annotations"] == {"e": "f"}
    kubernetes_takes_it(told({}), items)


@pytest.mark.parametrize(
    ("release", "override", "name"),
    [
        ("pool-a", "", "pool-a-ipmasq-agent"),
        ("ipmasq-agent-edge", "", "ipmasq-agent-edge"),
        ("pool-a", "masq", "masq"),
        ("a" * 53, "", "a" * 52),
    ],
)
def test_releases_of_other_names_share_no_object(release: str, override: str, name: str) -> None:
    words = ("template", release, CHART, "--namespace", "net", "--set-string")
    switches = "rbac.nodes=true,rbac.pods=true,canary.enabled=true,events.enabled=true"
    text = helm(*words, f"fullnameOverride={override}", "--set", switches)
    items = [*yaml.safe_load_all(text)]
    assert {item["metadata"]["name"] for item in items} == {
        *(name, f"{name}-nodes", f"{name}-pods", f"{name}-canary", f"{name}-status"),
        *(f"{name}-events", f"{name}-node-events"),
    }
    for item in items:
        assert item["metadata"]["labels"]["app.kubernetes.io/instance"] == release
        about_nodes = item["metadata"]["name"] == f"{name}-node-events"
        place = "default" if about_nodes else "net"
        assert item["kind"].startswith("Cluster") or item["metadata"]["namespace"] == place
    [configmap] = parameters(agent(items), "run")["settings"].configmaps
    assert configmap == "net/ip-masq-agent"


# -- the guides ---------------------------------------------------------------------------

PAGES = {
    page: (ROOT / page).read_text() for page in ("README.md", "docs/install.md", "docs/helm.md")
}


def examples(page: str) -> list[Values]:
    """Return what a page gives as values."""
    found = re.findall(r"^```yaml\n(.*?)```", PAGES[page], re.MULTILINE | re.DOTALL)
    return [given for given in map(yaml.safe_load, found) if "config" in given]


def test_values_that_a_guide_gives_are_taken_and_its_documents_are_valid(tmp_path: Path) -> None:
    given_values = [each for page in PAGES for each in examples(page)]
    assert len(given_values) == 2
    for values, items in zip(given_values, template(*given_values), strict=True):
        container = agent(items)
        repository = values.get("image", {}).get("repository", "ipmasq-agent")
        assert container["image"] == f"{repository}:{__version__}"
        flags = parameters(container, "run")["settings"].flags
        text = of_kind(items, "ConfigMap")["data"]["config"]
        understood = parse_document(text.encode(), "the guide", flags)
        assert understood.warnings == ()
        kubernetes_takes_it(told(values), items)


@pytest.mark.parametrize("page", PAGES)
def test_helm_takes_the_installs_that_a_guide_writes(page: str, tmp_path: Path) -> None:
    text = re.sub(r"(?<=\S) ?\\?\n +(?=--)|(?<=--set)\n", " ", PAGES[page])
    installs = re.findall(r"(?:^|`)helm (install ipmasq-agent [^`\n#]+)", text, re.MULTILINE)
    assert len(installs) == 1
    for given_values in examples(page):
        (tmp_path / "my-values.yaml").write_text(yaml.safe_dump(given_values))
    words = installs[0].replace("my-values.yaml", str(tmp_path / "my-values.yaml")).split()
    said = helm(*words, "--dry-run=client")
    assert "STATUS: pending-install" in said
    assert 'image: "registry.example.com/ipmasq-agent:' in said


def test_what_a_guide_shows_to_be_refused_is_refused_so() -> None:
    (shown,) = re.findall(
        r"^```\n\$ helm (.*?)```", PAGES["docs/helm.md"], re.MULTILINE | re.DOTALL
    )
    command, _, said = shown.partition("\n")
    with pytest.raises(Refused) as refusal:
        helm(*command.split())
    assert str(refusal.value).startswith(said)


# -- what is said after an install --------------------------------------------------------


def notes(*settings: str) -> str:
    """Return what helm says after an install with some values."""
    name, namespace = RELEASE
    words = ("install", name, CHART, "--namespace", namespace, "--dry-run=client")
    text = helm(*words, *itertools.chain(*(("--set", each) for each in settings)))
    return text.partition("\nNOTES:\n")[2]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("mode=file", "arrives with the kubelet"),
        ("mode=api", "is in force on every node at once"),
        ("config.masqLinkLocal=true", "The document is this release's"),
        ("mode=api", "The document is yours, in ConfigMap kube-system/ip-masq-agent"),
        ("config.podCIDRs=auto", "set rbac.nodes=true"),
        ("config.exemptNodeIPs=true", "set rbac.nodes=true"),
        ("config.profile=cilium", "set rbac.nodes=true"),
        ("http.address=0.0.0.0", "WARNING: whoever reaches port 9797 of a node"),
        ("backend=bpf", "Linux 6.1"),
        ("rbac.create=false", "WARNING: no role was made; the account ipmasq-agent needs"),
    ],
)
def test_what_is_said_after_an_install_is_about_the_values(setting: str, words: str) -> None:
    assert words in notes(setting)


def test_no_warning_is_given_without_a_reason() -> None:
    assert "WARNING" not in notes()
    assert "WARNING" not in notes("config.podCIDRs=auto", "rbac.nodes=true")
    assert "WARNING" not in notes("http.address=::", "http.tokenSecret.name=metrics")


def test_every_command_that_is_named_is_one_that_the_command_line_takes() -> None:
    said = notes()
    found = re.findall(r"(?:-- |: )ipmasq-agent ([a-z]+)((?: [\w.=-]+)*)", said)
    assert {verb for verb, _ in found} == {"status", "explain", "cleanup"}
    for verb, words in found:
        parameters({"env": []}, verb, *words.split())
    assert "daemonset/ipmasq-agent" in said
    (page,) = set(re.findall(r"docs/[\w.]+", said))
    assert (ROOT / page).is_file()
    for chain in re.findall(r"--masq-chain=([A-Z-]+)", said):
        assert chain in ("IP-MASQ", "IP-MASQ-AGENT")
