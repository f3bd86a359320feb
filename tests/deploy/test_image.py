"""The image, made in debootstrap's roots and run as the DaemonSet runs it: minutes, hence long.

``scripts/check-dockerfile`` runs this.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import oracle
from tests.deploy import chroot
from tests.deploy.image import Image, build
from tests.deploy.manifests import API, FILE, ROOT, configmap, container, pod
from tests.kernel.test_capabilities import confined
from tests.netns import Namespace

pytestmark = [pytest.mark.long, pytest.mark.kernel]


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    with tempfile.TemporaryDirectory(prefix="ipmq-image-") as work:
        built = build(ROOT, Path(work))
        # The mount points that a container runtime would make for the volumes.
        built.at("/run/xtables.lock").touch()
        built.at("/etc/config").mkdir()
        yield built


@pytest.fixture
def volumes(tmp_path: Path) -> dict[Path, str]:
    lock, config = tmp_path / "xtables.lock", tmp_path / "config"
    lock.touch()
    config.mkdir()
    (config / "ip-masq-agent").write_text(configmap()["data"]["config"])
    return {lock: "/run/xtables.lock", config: "/etc/config"}


def in_container(image: Image, volumes: dict[Path, str], words: list[str]) -> list[str]:
    """Return the argv of the container: its root, its capabilities, its volumes."""
    added = container(API)["securityContext"]["capabilities"]["add"]
    environment = [f"{name}={value}" for name, value in image.env.items()]
    program = ["/usr/bin/env", "-i", *environment, *image.entrypoint, *words]
    return chroot.as_container(image.root, confined(frozenset(added), program), volumes)


def test_the_image_says_its_version_and_the_defaults(
    image: Image, volumes: dict[Path, str]
) -> None:
    def said(*words: str) -> str:
        return subprocess.check_output(in_container(image, volumes, [*words]), text=True)

    assert "ipmasq-agent" in said("--version")
    assert yaml.safe_load(said("config", "defaults")) == yaml.safe_load(
        configmap()["data"]["config"]
    )


def test_the_image_holds_no_compiler_no_caches_and_no_pip_of_its_own(image: Image) -> None:
    for absent in ("usr/bin/gcc", "root/.cache", "src", "opt/ipmasq-agent/bin/pip"):
        assert not (image.root / absent).exists(), absent
    assert [*(image.root / "var/lib/apt/lists").glob("*_*")] == []


def test_bytecode_is_in_the_image_since_none_can_be_written(image: Image) -> None:
    packages = image.at("/opt/ipmasq-agent/lib/python3.11/site-packages")
    sources = [*(packages / "ipmasq_agent").rglob("*.py")]
    assert sources
    for source in sources:
        assert (source.parent / "__pycache__" / f"{source.stem}.cpython-311.pyc").exists()


@pytest.mark.parametrize("variant", oracle.VARIANTS)
def test_apply_works_on_a_read_only_root_with_the_capabilities_of_the_daemonset(
    image: Image, volumes: dict[Path, str], variant: oracle.Variant
) -> None:
    with Namespace() as ns:
        words = ["apply", "--config=/etc/config/ip-masq-agent", f"--backend=iptables-{variant}"]
        ns.run(in_container(image, volumes, words))
        rules = oracle.read_chain(variant, "ipv4", "IP-MASQ", ns.name)
        assert rules is not None
        assert [rule.destination for rule in rules] == [
            *("169.254.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
            None,
        ]


@pytest.mark.parametrize("variant", oracle.VARIANTS)
def test_the_arguments_of_the_file_overlay_run_until_told_to_stop(
    image: Image, volumes: dict[Path, str], variant: oracle.Variant
) -> None:
    with Namespace() as ns:
        # What kubelet leaves on a node, for `--backend=auto` to find.
        hint = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"
        ns.run([f"iptables-{variant}-restore", "--noflush"], stdin=hint)
        child = ns.popen(in_container(image, volumes, container(FILE)["args"]))
        deadline = time.monotonic() + 60
        while oracle.read_chain(variant, "ipv4", "IP-MASQ", ns.name) is None:
            assert child.poll() is None, "the agent left"
            assert time.monotonic() < deadline, "no chain within 60 s"
            time.sleep(0.1)
        child.terminate()
        assert child.wait(pod(FILE)["terminationGracePeriodSeconds"]) == 0
        assert oracle.read_chain(variant, "ipv4", "IP-MASQ", ns.name) is not None
