"""Half an hour of faults and documents at random on one agent after the other: nothing grows."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.injector import PLANES
from tests.faults.scenes import SCENES, play
from tests.faults.site import Site
from tests.kernel.crossing import Crossing
from tests.kernel.flows import KEPT, both, flowing, verify

pytestmark = [pytest.mark.kernel, pytest.mark.long]
SECONDS = 1800 / len(PLANES)
_WARM = 60.0
# What a heap may differ by between two moments, in KiB, and descriptors in passing.
_RSS, _DESCRIPTORS = 3072, 3


class Held(NamedTuple):
    """What an agent holds."""

    rss: int
    descriptors: int
    threads: int

    @classmethod
    def by(cls, pid: int) -> Held:
        """Return it; resident memory in KiB."""
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        fields = dict(line.split(":\t", 1) for line in status)
        rss = int(fields["VmRSS"].split()[0])
        return cls(rss, len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"]))


@pytest.fixture(params=PLANES)
def site(
    request: pytest.FixtureRequest, node: Crossing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    monkeypatch.setenv("XTABLES_LOCKFILE", os.fspath(tmp_path / "xtables.lock"))
    with node.node.entered():
        made = Site(node, request.param, tmp_path, random.SystemRandom().getrandbits(32))
        try:
            yield made
        finally:
            made.clear()


def policy(chance: random.Random) -> str:
    """Return a document at random that decides as all others about what is counted."""
    kept = [f"10.{chance.randrange(20, 250)}.{chance.randrange(256)}.0/24" for _ in range(60)]
    some = kept[: chance.randrange(len(kept))]
    return json.dumps(
        {
            "resyncInterval": "1h",
            "nonMasqueradeCIDRs": [prefix for one in (KEPT, *some) for prefix in both(one)],
            "masqLinkLocal": chance.random() < 0.5,
        }
    )


def test_nothing_grows(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    chance, started = site.random, time.monotonic()
    scenes = [each for each in SCENES if site.plane in each.planes and not each.kills]
    early: Held | None = None
    rounds = 0
    while time.monotonic() - started < SECONDS:
        with flowing(site.node, pause=0.002) as counts:
            for _ in range(10):
                site.publish(policy(chance))
                time.sleep(chance.uniform(0, 0.2))
            site.settle()
        verify(counts, at_least=1)
        play(site, chance.choice(scenes), 1)
        rounds += 1
        if early is None and time.monotonic() - started > _WARM:
            early = Held.by(site.agent.process.pid)
    assert early is not None
    now = Held.by(site.agent.process.pid)
    with capsys.disabled():
        print(
            f"\n{site.plane}: {rounds} rounds, seed {site.seed}: {early} after a minute, then {now}"
        )
    assert now.rss <= early.rss + _RSS
    assert now.descriptors <= early.descriptors + _DESCRIPTORS
    assert now.threads == early.threads
