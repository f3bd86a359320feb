"""What may be wrong with a node while an agent works and traffic flows."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from tests.faults import tracked
from tests.faults.injector import PLANES
from tests.faults.memory_limit import AVAILABLE, memory_limit
from tests.faults.preload import OddNode
from tests.faults.scenes import Scene
from tests.faults.site import DOCUMENTS, Site
from tests.waiting import wait_until

_HOUR = 3600
_RESYNC = 0.25  # seconds
_RESYNCING = json.dumps({**json.loads(DOCUMENTS[0]), "resyncInterval": "250ms"})
_LOCKED = "iptables-legacy"  # the one plane that writes nothing without a lock
_IN_RUN = ("--socket=/run/ipmasq-agent/agent.sock", "--state-dir=/run/ipmasq-agent")
# Mounts of its own, in which /run is empty and nothing can be made there.
READ_ONLY_RUN = (
    *("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o ro none /run && exec "$@"', "sh"),
    *("env", "-u", "XTABLES_LOCKFILE"),
)
_MOUNT_IT = "cannot open the xtables lock /run/xtables.lock: Read-only file system; mount it into"
# A document of which nothing that is counted differs, and the bytes that are left to work on it.
_LARGE = json.dumps(
    {
        **json.loads(DOCUMENTS[0]),
        "cidrLimit": 10_000,
        "nonMasqueradeCIDRs": [
            *json.loads(DOCUMENTS[0])["nonMasqueradeCIDRs"],
            *(f"100.64.{n >> 5}.{(n & 31) * 8}/30" for n in range(8_000)),
        ],
    }
)
_ROOM = 1 << 20
# No byte of what is logged can be written.
_LOG_FULL = ("sh", "-c", 'exec "$@" >/dev/full 2>&1', "sh")


def _restarted(site: Site, under: Sequence[str] = (), more: Sequence[str] = ()) -> None:
    """Let another agent go on, started so."""
    site.under, site.more = under, more
    site.killed()
    site.repairs.clear()


def _clock_jumps(site: Site, times: int) -> None:
    node = OddNode(site.place)
    _restarted(site, node.under)
    for _ in range(times):
        for ahead in (_HOUR, -_HOUR, 0):
            node.be(ahead=ahead)
            site.change()
            site.settle()
            site.publish(_RESYNCING)
            _resyncs(site)
            site.tries += 1
    site.settle()


def _resyncs(site: Site) -> None:
    """Make sure that passes come at their time: each interval, and no oftener."""

    def passes() -> int:
        # A busy machine may not answer in time.
        wait_until(lambda: told.update(site.agent.status()) or told, "an answer")
        return int(told["passes"])

    told: dict[str, Any] = {}

    before = passes()
    wait_until(lambda: passes() >= before + 2, "the document, and a resync")
    begun, before = time.monotonic(), passes()
    wait_until(lambda: passes() >= before + 2, "resyncs go on")
    count = passes() - before
    # One may have been due when they were first counted.
    assert count <= (time.monotonic() - begun) / _RESYNC + 1


def _tracking_full(site: Site, times: int) -> None:
    for _ in range(times):
        before = tracked.dropped()

        def full(before: int = before) -> bool:
            if tracked.room() > 0:  # as connections of before have ended
                tracked.fill()
            # What the programs see is not tracked.
            return site.plane == "bpf" or tracked.dropped() > before

        wait_until(full, "packets find no place")
        # What is asked for goes into force, and is told, whatever becomes of connections.
        site.change()
        site.settle()
        wait_until(lambda: "connections are tracked" in site.agent.get("/status")[1], "it is told")
        tracked.empty()
        site.tries += 1
    site.settle()


def _run_read_only(site: Site, times: int) -> None:
    for _ in range(times):
        _restarted(site, READ_ONLY_RUN, _IN_RUN)
        assert "verbs cannot ask this agent" in site.log
        site.change()
        site.settle()
        site.tries += 1


def _no_lock(site: Site, times: int) -> None:
    """Nothing is written without the lock, as others' rules could be lost; what there is stays."""
    site.under, site.more = READ_ONLY_RUN, _IN_RUN
    for _ in range(times):
        site.restart()
        site.change()
        wait_until(lambda: _MOUNT_IT in site.agent.get("/readyz")[1], "it is told")
        site.tries += 1
    _restarted(site)
    site.settle()


def _log_full(site: Site, times: int) -> None:
    _restarted(site, _LOG_FULL)
    for _ in range(times):
        site.change()
        site.settle()
        site.tries += 1
    assert not site.log


def _memory_out(site: Site, times: int) -> None:
    for _ in range(times):
        with memory_limit() as limit:
            _restarted(site, limit.under)
            limit.leave(_ROOM)
            site.publish(_LARGE)
            # The agent, or a program that it runs and tells of.
            wait_until(limit.kills, "somebody is killed")
            site.publish(DOCUMENTS[0])
            limit.lift()
            site.under = ()
            site.killed()
        site.tries += 1
    site.settle()


SCENES = (
    Scene("the wall clock jumps an hour ahead, then an hour back", _clock_jumps, kills=True),
    Scene("the table of tracked connections is full", _tracking_full),
    Scene(
        "nothing can be made in /run",
        _run_read_only,
        [plane for plane in PLANES if plane != _LOCKED],
        kills=True,
    ),
    Scene("nothing can be made in /run, nor the xtables lock", _no_lock, (_LOCKED,), kills=True),
    Scene(
        "a document for which there is not enough memory",
        _memory_out,
        list(PLANES) if AVAILABLE else (),
        kills=True,
    ),
    Scene("the disk that the log is written to is full", _log_full, ("nftables",), kills=True),
)
