"""The Dockerfile carried out, stage by stage, in roots that debootstrap makes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy import chroot
from tests.deploy.dockerfile import Stage, expand, pairs, parse

# What the base image sets.
PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Image:
    """A root and what the Dockerfile says about how to run it."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    workdir: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def at(self, path: str) -> Path:
        """Return where an absolute path of the image is on this machine."""
        return self.root / path.lstrip("/")


def build(context: Path, work: Path) -> Image:
    """Replay the Dockerfile of ``context`` below ``work``, and return its last stage."""
    base = work / "base"
    chroot.bootstrap(base)
    built: dict[str, Image] = {}
    image = None
    for number, stage in enumerate(parse((context / "Dockerfile").read_text())):
        image = Image(work / f"stage-{number}")
        chroot.copy(base, image.root)
        _replay(stage, image, context, built)
        built[stage.name] = image
    assert image is not None, "a Dockerfile without FROM"
    return image


def _replay(stage: Stage, image: Image, context: Path, built: dict[str, Image]) -> None:
    for step in stage.instructions:
        if step.keyword == "RUN":
            chroot.build_step(image.root, step.text, image.env, image.workdir)
        elif step.keyword == "WORKDIR":
            image.workdir = step.text
            image.at(step.text).mkdir(parents=True, exist_ok=True)
        elif step.keyword == "ENV":
            image.env |= {k: expand(v, image.env) for k, v in pairs(step.text).items()}
        elif step.keyword == "COPY":
            _copy(step.words, image, context, built)
        elif step.keyword == "ENTRYPOINT":
            image.entrypoint = step.words
        elif step.keyword == "CMD":
            image.command = step.words


def _copy(words: Sequence[str], image: Image, context: Path, built: dict[str, Image]) -> None:
    *sources, target = words
    there = image.at(target if target.startswith("/") else f"{image.workdir}/{target}")
    if sources[0].startswith("--from="):
        stage, (source,) = built[sources[0].removeprefix("--from=")], sources[1:]
        chroot.copy(stage.at(source), there)
        return
    for name in sources:
        if (context / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(context / name, there, dirs_exist_ok=True, ignore=ignored)
        else:
            shutil.copy2(context / name, there)
