"""The image, made in debootstrap's roots and run as the DaemonSet runs it: minutes, hence long.

``scripts/check-dockerfile`` runs this.
"""

from __future__ import annotations

import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from tests import oracle
from tests.deploy import chroot
from tests.deploy.image import Image, build
from tests.deploy.manifests import API, FILE, ROOT, configmap, container, pod
from tests.kernel.container import confined
from tests.kube.cluster import Cluster
from tests.kube.test_in_cluster import certify
from tests.netns import Namespace

PACKAGES = "opt/ipmasq-agent/lib/python3.11/site-packages"
GUESTS = ("ipmasq_agent/lab", "ipmasq_agent/bench", "rich", "matplotlib")
SERVICE_ACCOUNT = "/run/secrets/kubernetes.io/serviceaccount"
DEFAULTS = ("169.254.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", None)

pytestmark = [pytest.mark.long, pytest.mark.kernel]


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    with tempfile.TemporaryDirectory(prefix="ipmq-image-") as work:
        built = build(ROOT, Path(work))
        # The mount points that a container runtime would make for the volumes.
        built.at("/run/xtables.lock").touch()
        built.at("/run/ipmasq-agent").mkdir()
        built.at("/etc/config").mkdir()
        built.at(SERVICE_ACCOUNT).mkdir(parents=True)
        yield built


@pytest.fixture
def volumes(tmp_path: Path) -> dict[Path, str]:
    lock, config, state = (tmp_path / name for name in ("xtables.lock", "config", "state"))
    lock.touch()
    config.mkdir()
    state.mkdir(mode=0o755)  # as the kubelet makes it
    (config / "ip-masq-agent").write_text(configmap()["data"]["config"])
    return {lock: "/run/xtables.lock", config: "/etc/config", state: "/run/ipmasq-agent"}


def environment_of(variant: str) -> dict[str, str]:
    """Return the settings that a DaemonSet gives, but for those that the kubelet fills in."""
    return {each["name"]: each["value"] for each in container(variant)["env"] if "value" in each}


def in_container(
    image: Image, volumes: dict[Path, str], words: list[str], **environment: str
) -> list[str]:
    """Return the argv of the container: its root, its capabilities, its volumes."""
    added = container(API)["securityContext"]["capabilities"]["add"]
    variables = [f"{name}={value}" for name, value in (image.env | environment).items()]
    program = ["/usr/bin/env", "-i", *variables, *image.entrypoint, *words]
    return chroot.as_container(image.root, confined(frozenset(added), program), volumes)


def destinations(ns: Namespace, variant: oracle.Variant) -> tuple[str | None, ...] | None:
    """Return the destinations of our rules in order, or None where there is no chain."""
    rules = oracle.read_chain(variant, "ipv4", "IP-MASQ", ns.name)
    return None if rules is None else tuple(rule.destination for rule in rules)


def leave_a_hint(ns: Namespace, variant: oracle.Variant) -> None:
    """Do as the kubelet does on a node, for ``--backend=auto`` to find."""
    hint = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"
    ns.run([f"iptables-{variant}-restore", "--noflush"], stdin=hint)


def run_until(
    ns: Namespace,
    argv: list[str],
    variant: oracle.Variant,
    wanted: Sequence[tuple[tuple[str | None, ...], Callable[[], object]]],
) -> None:
    """Start the container, wait for each state of the chain and do what follows it, stop it."""
    child = ns.popen(argv)
    for state, then in wanted:
        deadline = time.monotonic() + 60
        while destinations(ns, variant) != state:
            assert child.poll() is None, "the agent left"
            assert time.monotonic() < deadline, f"not within 60 s: {state}"
            time.sleep(0.1)
        then()
    child.terminate()
    assert child.wait(pod(API)["terminationGracePeriodSeconds"]) == 0
    assert destinations(ns, variant) == wanted[-1][0], "the rules stay"


def test_the_image_says_its_version_and_the_defaults(
    image: Image, volumes: dict[Path, str]
) -> None:
    def said(*words: str) -> str:
        return subprocess.check_output(in_container(image, volumes, [*words]), text=True)

    assert "ipmasq-agent" in said("--version")
    assert yaml.safe_load(said("config", "defaults")) == yaml.safe_load(
        configmap()["data"]["config"]
    )


def test_the_image_holds_no_compiler_no_caches_no_pip_and_no_guests(
    image: Image,
) -> None:
    for absent in (
        "usr/bin/clang",
        "usr/bin/gcc",
        "build",
        "dist",
        "root/.cache",
        "src",
        "opt/ipmasq-agent/bin/pip",
        *(f"{PACKAGES}/{name}" for name in GUESTS),
    ):
        assert not (image.root / absent).exists(), absent
    assert [*(image.root / "var/lib/apt/lists").glob("*_*")] == []
    assert [*(image.root / "var/cache/apt").rglob("*.*")] == []


def test_bytecode_is_in_the_image_since_none_can_be_written(image: Image) -> None:
    packages = image.at(PACKAGES)
    sources = [*(packages / "ipmasq_agent").rglob("*.py")]
    assert sources
    for source in sources:
        assert (source.parent / "__pycache__" / f"{source.stem}.cpython-311.pyc").exists()


def test_the_compiled_programs_and_the_library_that_loads_them_are_in_the_image(
    image: Image,
) -> None:
    packages = image.at(PACKAGES)
    compiled = (packages / "ipmasq_agent/planes/bpf/masq.bpf.o").read_bytes()
    assert compiled[:4] == b"\x7fELF"
    assert [*image.root.glob("usr/lib/*/libbpf.so.1")]


@pytest.mark.parametrize("variant", oracle.VARIANTS)
def test_apply_works_on_a_read_only_root_with_the_capabilities_of_the_daemonset(
    image: Image, volumes: dict[Path, str], variant: oracle.Variant
) -> None:
    with Namespace() as ns:
        words = ["apply", "--config=/etc/config/ip-masq-agent", f"--backend=iptables-{variant}"]
        ns.run(in_container(image, volumes, words))
        assert destinations(ns, variant) == DEFAULTS


@pytest.mark.parametrize("variant", oracle.VARIANTS)
def test_the_arguments_of_the_file_overlay_follow_the_mounted_document(
    image: Image, volumes: dict[Path, str], variant: oracle.Variant
) -> None:
    (config,) = [source for source, target in volumes.items() if target == "/etc/config"]
    changed = "nonMasqueradeCIDRs: [192.0.2.0/24]\n"
    with Namespace() as ns:
        leave_a_hint(ns, variant)
        wanted = [
            (DEFAULTS, lambda: (config / "ip-masq-agent").write_text(changed)),
            (("169.254.0.0/16", "192.0.2.0/24", None), lambda: None),
        ]
        argv = in_container(image, volumes, container(FILE)["args"], **environment_of(FILE))
        run_until(ns, argv, variant, wanted)


@pytest.mark.parametrize("variant", oracle.VARIANTS)
def test_the_arguments_of_the_base_follow_the_configmap_of_the_api(
    image: Image, volumes: dict[Path, str], tmp_path: Path, variant: oracle.Variant
) -> None:
    account = tmp_path / "account"
    account.mkdir()
    certificate = certify(account)
    (account / "token").write_text("first")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, account / "key.pem")
    with Namespace() as ns:
        leave_a_hint(ns, variant)
        with ns.entered():
            cluster = Cluster(context)  # its thread stays in the namespace
        cluster.token = "first"
        try:
            argv = in_container(
                image,
                volumes | {account: SERVICE_ACCOUNT},
                container(API)["args"],
                **environment_of(API),
                KUBERNETES_SERVICE_HOST="127.0.0.1",
                KUBERNETES_SERVICE_PORT=str(cluster.port),
            )
            wanted = [
                (DEFAULTS, lambda: cluster.put({"config": "nonMasqueradeCIDRs: []"})),
                (("169.254.0.0/16", None), lambda: None),
            ]
            run_until(ns, argv, variant, wanted)
            (state,) = [each for each, target in volumes.items() if target == "/run/ipmasq-agent"]
            assert [each.name.partition("-")[0] for each in state.iterdir()] == ["document"]
        finally:
            cluster.close()
