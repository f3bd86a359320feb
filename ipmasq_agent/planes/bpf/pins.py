"""The directory of a node's pins, on a bpf file system: which names are ours, and where.

::

    bytecode-DIGEST             an empty directory: which programs were loaded last
    link-IFINDEX-DIRECTION      with tcx, one for each device and direction
    layout-NUMBER/              maps and programs by their names, tries by kind and slot

Maps of another layout are thus never taken for these, and can be there beside them while
programs are replaced. The first layout had its maps and programs beside the links; an agent
that knows only that takes the directory for its own by the name of what was loaded, and
removes it whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ipmasq_agent.bpf import bpffs
from ipmasq_agent.errors import HostError
from ipmasq_agent.planes.bpf.layout import (
    CONTROL,
    DEVICES,
    FLOWS,
    LAYOUT,
    MAPS,
    PROGRAMS,
    SETTINGS,
    TRIES,
    TcHook,
)

_LOADED, _LINK, _LAYOUT = "bytecode-", "link-", "layout-"
_OURS = _LOADED, _LINK, _LAYOUT
_FIRST_LAYOUT = {
    *(CONTROL, SETTINGS, DEVICES, *TRIES, FLOWS, "fragments", "counters", "swept"),
    *(f"{kind}_{slot}" for kind in TRIES for slot in range(4)),
    *(*(hook.value for hook in TcHook), "sweep"),
}


class PinDirectory:
    """The directory at a path; it need not be there.

    Attributes:
        root: the path.
        objects: where maps and programs of this layout are.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = root / f"{_LAYOUT}{LAYOUT}"

    def provide(self) -> None:
        """Make sure that it is there.

        Raises:
            HostError: it cannot be made, or is another program's.
        """
        self._refuse_others()
        bpffs.provide(self.root)
        with self._told():
            self.objects.mkdir(parents=True, exist_ok=True)

    def missing(self) -> list[str]:
        """Return the maps and programs that are not there, after a look at the directory alone."""
        there = self.names()
        return [name for name in (*MAPS, *PROGRAMS) if name not in there]

    def names(self) -> set[str]:
        """Return what is there of this layout."""
        with self._told():
            return {path.name for path in _listed(self.objects)}

    def links(self) -> list[Path]:
        """Return the links that are there."""
        with self._told():
            return [path for path in _listed(self.root) if self.is_link(path)]

    def is_link(self, path: Path) -> bool:
        """Whether a path is one of a link, whether or not it is there."""
        return path.parent == self.root and path.name.startswith(_LINK)

    def link(self, ifindex: int, hook: TcHook) -> Path:
        """Return where the link of a device is, or would be."""
        return self.root / f"{_LINK}{ifindex}-{hook.name.lower()}"

    def loaded(self, digest: str) -> bool:
        """Whether the programs that were loaded last are these."""
        with self._told():
            return (self.root / f"{_LOADED}{digest}").exists()

    def note_loaded(self, digest: str) -> None:
        """Remember which programs were loaded."""
        with self._told():
            (self.root / f"{_LOADED}{digest}").mkdir(exist_ok=True)
            for path in _listed(self.root):
                if path.name.startswith(_LOADED) and path.name != f"{_LOADED}{digest}":
                    path.rmdir()

    def of_other_layouts(self) -> list[Path]:
        """Return what agents with another layout have left."""
        with self._told():
            return [
                path
                for path in _listed(self.root)
                if path != self.objects and not path.name.startswith((_LOADED, _LINK))
            ]

    def remove_other_layouts(self) -> None:
        """Remove what agents with another layout have left."""
        for path in self.of_other_layouts():
            with self._told("removed"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def remove(self) -> None:
        """Remove the directory and all in it.

        Raises:
            HostError: it is another program's, or cannot be removed.
        """
        self._refuse_others()
        with self._told("removed"):
            if self.root.exists():
                shutil.rmtree(self.root)

    def _refuse_others(self) -> None:
        """Make sure that the directory is ours, or nobody's: all in it goes when we leave."""
        with self._told():
            names = sorted(path.name for path in _listed(self.root))
        if not names or any(name.startswith(_OURS) for name in names) or {*names} <= _FIRST_LAYOUT:
            return
        raise HostError(
            f"{self.root} is another program's directory: it holds {names[0]}, and no map of ours",
            remedy="give --bpf-pins a directory that is for us alone; nothing was written",
        )

    @contextmanager
    def _told(self, to_be: str = "used") -> Iterator[None]:
        """Tell what the file system of the pins refuses.

        Raises:
            HostError: it does.
        """
        try:
            yield
        except OSError as cause:
            raise HostError(
                f"{self.root} cannot be {to_be}: {cause.strerror}",
                remedy="run as root, with a bpf file system there that can be written to",
            ) from cause


def _listed(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.exists() else []
