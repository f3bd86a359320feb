"""The record goes on over moves between data planes and failures, and loses nothing uncounted."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from ipmasq_agent.agent import recorder
from ipmasq_agent.agent.choice import PlaneChoice
from ipmasq_agent.agent.record import RecordFile, recorded
from ipmasq_agent.agent.recorder import Recorder
from ipmasq_agent.host.threads import failures
from ipmasq_agent.planes import registry
from ipmasq_agent.planes.plane import AnyPlane
from ipmasq_agent.policy.flows import Flow
from tests.kernel.attacks.site import Site, site
from tests.kernel.pins import placement
from tests.kernel.talked import in_force
from tests.waiting import DEADLINE, wait_until


class GatedFile(RecordFile):
    """A record whose writes wait while a test keeps the gate shut."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), 1 << 20, 2)
        self.gate = threading.Event()
        self.gate.set()
        self.waits = threading.Event()

    def write(self, text: str) -> None:
        if not self.gate.is_set():
            self.waits.set()
        assert self.gate.wait(DEADLINE)
        super().write(text)


class Followed:
    """A recorder, and the choice of data planes that it follows, which a test makes."""

    def __init__(self, path: Path, planes: dict[str, AnyPlane], first: str) -> None:
        self.path = path
        self.name = first
        self.file = GatedFile(path)
        self.choice = PlaneChoice(
            lambda large: (self.name, "the test says so"), planes.__getitem__, list, registry.home
        )
        self.recorder = Recorder(self.choice, self.file)

    def pass_begins(self, name: str) -> None:
        """Choose a data plane, as a pass does at its start."""
        self.name = name
        self.choice.current()

    def ports(self) -> list[int]:
        """Return of which source ports there are translations, in their order."""
        if not self.path.exists():
            return []
        return [what.source.port for _, what in recorded(str(self.path)) if isinstance(what, Flow)]

    def starts(self) -> int:
        """Return how often somebody began to listen."""
        if not self.path.exists():
            return 0
        return sum(what is None for _, what in recorded(str(self.path)))


def there(found: Followed, port: int) -> bool:
    return port in found.ports()


@contextmanager
def followed(path: Path, planes: dict[str, AnyPlane], first: str) -> Iterator[Followed]:
    found = Followed(path, planes, first)
    try:
        found.pass_begins(first)
        found.recorder.provide()
        yield found
    finally:
        found.file.gate.set()
        found.recorder.stop(DEADLINE)


def send(where: Site, *ports: int) -> None:
    """Have a pod begin a connection from each port."""
    for port in ports:
        with where.pod.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.bind(("172.20.0.10", port))
            asking.sendto(b"question", ("192.0.2.2", 53))


def test_the_plane_that_still_decides_is_listened_to_until_another_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "_TURN", 0.05)
    failed = failures().get("record", 0)
    programs = registry.row("bpf").make(placement())
    with site() as where, ExitStack() as nft, closing(programs):
        planes: dict[str, AnyPlane] = {"bpf": programs}
        planes["nftables"] = nft.enter_context(in_force(where, "nftables"))
        with followed(tmp_path / "record", planes, "nftables") as found:
            wait_until(lambda: found.starts() == 1, "it listens, which the record says")
            # A pass has begun that is to move, and its programs are not there yet.
            found.pass_begins("bpf")
            for port in (5001, 5002, 5003):
                send(where, port)
                wait_until(partial(there, found, port), "what nftables decides")
            with in_force(where, "bpf"), where.node.entered():
                nft.close()
                found.recorder.provide()
                wait_until(lambda: found.starts() == 2, "it listens to the programs")
                send(where, 5004)
                wait_until(lambda: found.ports() == [5001, 5002, 5003, 5004], "what they decide")
                found.recorder.stop(DEADLINE)
        assert failures().get("record", 0) == failed
        assert found.recorder.trouble == ()


@pytest.mark.parametrize("how", ["stop", "move"])
@pytest.mark.parametrize(("before", "after"), [("nftables", "bpf"), ("bpf", "nftables")])
def test_what_was_told_and_not_yet_read_is_recorded_before_it_listens_no_more(
    before: str, after: str, how: str, tmp_path: Path
) -> None:
    with site() as where, in_force(where, before) as old, ExitStack() as later:
        planes = {before: old}
        with followed(tmp_path / "record", planes, before) as found:
            wait_until(lambda: found.starts() == 1, "it listens")
            found.file.gate.clear()
            send(where, 6000)
            wait_until(found.file.waits.is_set, "it is about to write")
            ports = list(range(6000, 6020))
            send(where, *ports[1:])
            if how == "stop":
                found.recorder.stop(0.0)
            else:
                planes[after] = later.enter_context(in_force(where, after))
                found.pass_begins(after)
                found.recorder.provide()
            found.file.gate.set()
            wait_until(lambda: found.ports() == ports, "all of them")
            found.recorder.stop(DEADLINE)
        assert found.ports() == ports


def test_trouble_is_over_once_it_listens_again_though_nothing_is_translated(tmp_path: Path) -> None:
    programs = registry.row("bpf").make(placement())
    with site() as where, closing(programs), in_force(where, "nftables") as nft:
        with followed(tmp_path / "record", {"bpf": programs, "nftables": nft}, "bpf") as found:
            wait_until(lambda: found.recorder.trouble, "there are no programs")
            assert "are not there" in found.recorder.trouble[0]
            found.pass_begins("nftables")
            found.recorder.provide()
            wait_until(lambda: not found.recorder.trouble, "it listens")
        assert found.ports() == []
