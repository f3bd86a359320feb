"""Root file systems to replay a Dockerfile in, where there is no container engine.

Every program inside runs in a mount namespace of its own: its mounts end with it, whatever
ends it, and a root is never more than a directory that can be removed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

# How this machine reaches its package mirrors. Mounted for a command, never copied.
HOST_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs")
HOST_ENVIRONMENT = re.compile(r"(?i)(https?_proxy|no_proxy|PIP_CERT|PIP_DEFAULT_TIMEOUT)$")

ENTER = """\
root=$1; shift
mount --bind "$root" "$root"
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
"""


def bootstrap(root: Path) -> None:
    """Make the stand-in for python:3.11-slim-bookworm: Debian's minimum, and its Python.

    What differs from the image: the interpreter is Debian's 3.11 in /usr/bin, not one built
    into /usr/local, and pip is Debian's. Neither brings a compiler or a C header.
    """
    _checked(
        [
            *("unshare", "--mount", "debootstrap", "--variant=minbase"),
            "--include=ca-certificates,python3,python3-pip,python3-venv",
            *("bookworm", str(root), _mirror()),
        ]
    )
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3.11")
    for leftover in ("var/lib/apt/lists", "var/cache/apt/archives"):
        shutil.rmtree(root / leftover)
    (root / "var/lib/apt/lists/partial").mkdir(parents=True)
    (root / "var/cache/apt/archives/partial").mkdir(parents=True)


def copy(source: Path, target: Path) -> None:
    """Copy a file or directory with all that it is, as ``COPY --from`` and ``FROM`` do."""
    _checked(["cp", "--archive", "--reflink=auto", "--no-target-directory", source, target])


def build_step(root: Path, script: str, env: Mapping[str, str], workdir: str) -> str:
    """Run a RUN instruction's shell line in a root, and return what it printed."""
    binds = [path for path in HOST_FILES if Path(path).exists()]
    for path in binds:
        target = root / path.lstrip("/")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
    mounts = "".join(f'mount --bind {path} "$root{path}"\n' for path in binds)
    inherited = {k: v for k, v in os.environ.items() if HOST_ENVIRONMENT.match(k)}
    shell = f"cd {shlex.quote(workdir)} && {script}"
    return _checked(
        _entered(root, mounts, ["/bin/sh", "-c", shell]), env={"HOME": "/root", **inherited, **env}
    )


def as_container(root: Path, argv: Sequence[str], mounts: Mapping[Path, str]) -> list[str]:
    """Return ``argv`` made to run in a root that is read-only.

    Args:
        root: the image.
        argv: the program in it, found by the PATH that the caller gives.
        mounts: files and directories of this machine, and where they are mounted, as the
            pod's volumes are.
    """
    binds = "".join(
        f'mount --bind {shlex.quote(str(source))} "$root{target}"\n'
        for source, target in mounts.items()
    )
    read_only = 'mount -o remount,bind,ro "$root"\n'
    return _entered(root, binds + read_only, argv)


def _entered(root: Path, mounts: str, argv: Sequence[str]) -> list[str]:
    # The bind mount of the root comes first, so that what is mounted below it is seen.
    script = f'set -eu\n{ENTER}{mounts}exec chroot "$root" "$@"\n'
    return ["unshare", "--mount", "/bin/sh", "-c", script, "sh", str(root), *argv]


def _mirror() -> str:
    """Return the mirror that this machine's apt uses for Debian itself, in either format."""
    lists = (*Path("/etc/apt").glob("sources.list*"), *Path("/etc/apt").glob("sources.list.d/*"))
    for source in sorted(path for path in lists if path.is_file()):
        found = re.search(
            r"^(?:URIs:|deb(?: \[[^]]*\])?)\s+(\S+/debian)/?(?:\s|$)",
            source.read_text(),
            re.MULTILINE,
        )
        if found:
            return found[1]
    raise RuntimeError("apt on this machine names no mirror of Debian to make a root from")


def _checked(argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        argv,
        env=None if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(f"{shlex.join(map(str, argv))}:\n{done.stdout[-4000:]}")
    return done.stdout
