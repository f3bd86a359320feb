"""A ConfigMap mounted into a node, written as kubelet writes one.

The order is that of Kubernetes' ``pkg/volume/util/atomic_writer.go``: new files in a
directory of their own, one rename that makes them current, then the visible names.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path


def mount(directory: Path, keys: Mapping[str, str]) -> None:
    """Make the directory hold these keys, each with its text, and no others."""
    directory.mkdir(exist_ok=True)
    current = directory / "..data"
    old = current.resolve() if current.is_symlink() else None
    version = directory / f"..{time.time_ns()}"
    version.mkdir()
    for key, text in keys.items():
        (version / key).write_text(text)
    link = directory / "..data_tmp"
    link.symlink_to(version.name)
    link.rename(current)
    for key in keys:
        if not (directory / key).is_symlink():
            (directory / key).symlink_to(f"..data/{key}")
    for visible in directory.iterdir():
        if not visible.name.startswith("..") and visible.name not in keys:
            visible.unlink()
    if old is not None:
        shutil.rmtree(old)


def mounted(directory: Path) -> dict[str, str]:
    """Return the keys that the directory holds, none where nothing was mounted yet."""
    current = directory / "..data"
    if not current.is_dir():
        return {}
    return {entry.name: entry.read_text() for entry in sorted(current.iterdir())}
