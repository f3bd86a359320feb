"""docs/install.md and docs/migrate.md against the files, the flags and the verbs that it names."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from pathlib import Path

import yaml

from ipmasq_agent.cli.entry import cli
from tests.deploy.manifests import DEPLOY, ROOT, Object

GUIDE = "\n".join((ROOT / f"docs/{page}.md").read_text() for page in ("install", "migrate"))


def test_every_path_of_the_repository_exists() -> None:
    for path in re.findall(r"(?<![/\w])(?:deploy|tests|scripts)/[\w./-]*", GUIDE):
        assert (ROOT / path).exists(), path


def test_every_flag_of_the_daemon_exists() -> None:
    with cli.make_context("ipmasq-agent", ["run"], resilient_parsing=True) as root:
        command = cli.get_command(root, "run")
        assert command is not None
    known = {flag for parameter in command.params for flag in parameter.opts}
    flags = set(re.findall(r"flag `(--[\w-]+)=", GUIDE))
    assert {"--masq-chain"} <= flags <= known
    variables = {parameter.envvar for parameter in command.params}
    named = set(re.findall(r"IPMASQ_\w+", GUIDE))
    assert {"IPMASQ_ENABLE_IPV6", "IPMASQ_CLEANUP_ON_EXIT"} <= named <= variables


def test_the_kustomization_of_the_guide_renders(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(# my-cluster.*?)```", GUIDE, re.DOTALL)
    (tmp_path / "deploy").symlink_to(DEPLOY)
    (tmp_path / "my-cluster").mkdir()
    (tmp_path / "my-cluster/kustomization.yaml").write_text(example)
    kubectl = Path(sysconfig.get_path("scripts"), "kubectl")
    rendered = subprocess.check_output([kubectl, "kustomize", tmp_path / "my-cluster"], text=True)
    objects: list[Object] = [*yaml.safe_load_all(rendered)]
    (daemonset,) = [item for item in objects if item["kind"] == "DaemonSet"]
    (agent,) = daemonset["spec"]["template"]["spec"]["containers"]
    assert agent["image"] == "registry.example.com/ipmasq-agent:0.1.0"
    assert {"name": "IPMASQ_ENABLE_IPV6", "value": "true"} in agent["env"]
    assert {"name": "IPMASQ_BACKEND", "value": "auto"} in agent["env"]


def test_what_the_readme_applies_is_the_image_that_it_has_built_before() -> None:
    section = (ROOT / "README.md").read_text().partition("## Install")[2].partition("\n## ")[0]
    (script,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    build, apply = script.splitlines()
    image = re.findall(r"docker build --push --tag (\S+) \.", build)
    bin_ = sysconfig.get_path("scripts")
    rendered = subprocess.check_output(
        ["sh", "-c", apply.removesuffix(" | kubectl apply -f -")],
        cwd=ROOT,
        env={"PATH": f"{bin_}:/usr/bin:/bin"},
        text=True,
    )
    assert re.findall(r"image: (\S+)", rendered) == image
