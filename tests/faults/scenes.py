"""What happens to an agent and to its rules while traffic flows: a row of the table each."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

from tests.faults import table
from tests.faults.calls import (
    ANSWERS,
    FOR_EVER,
    REACHING,
    STARTING,
    Point,
    befalling,
    hangs,
    some,
)
from tests.faults.injector import PLANES
from tests.faults.site import Site
from tests.kernel.flows import counted, flowing
from tests.kernel.pins import PINS
from tests.waiting import DEADLINE, wait_until

_TABLES = ("iptables-nft", "iptables-legacy", "ipset", "nftables")
_CHAINS = ("iptables-nft", "iptables-legacy", "ipset")
_STEMS = ("iptables", "ip6tables")
# What stands in the place of a program of iptables or ipset; nothing at all for the first.
_BAD_PROGRAMS = (
    "",
    "#!/bin/sh\necho 'unknown option' >&2; exit 2",  # too old
    "#!/bin/sh\nexit 0",
    "#!/bin/sh\necho 'all is well'; exit 0",
    "#!/bin/sh\nkill -SEGV $$",
)
_PAUSE = 0.002  # seconds between two flows of each kind
_ERRORS = ("EAGAIN", "EBUSY", "ENOMEM", "ENOSPC", "EPERM")
# Calls of a pass at which something happens: of the 800 of bpf half, or a fifth.
_MANY, _ALL = 160, 400
_LEAST = 20  # flows that arrive meanwhile
_LONGEST = 0.08  # seconds into a pass, at most, when something befalls it at random


class Scene(NamedTuple):
    """Something that happens.

    Attributes:
        title: as it stands in the table.
        play: does it, so many times.
        planes: on which it can happen.
        theirs: somebody takes rules away, so that packets go wrong until they are back.
        kills: the agent does not survive it.
    """

    title: str
    play: Callable[[Site, int], None]
    planes: Sequence[str] = tuple(PLANES)
    theirs: bool = False
    kills: bool = False


def _killed_at_random(site: Site, times: int) -> None:
    for _ in range(times):
        site.change()
        time.sleep(site.random.uniform(0, _LONGEST))
        site.killed()
        site.tries += 1
    site.settle()


def _of(
    site: Site, calls: Sequence[str], times: int, *, few: int, many: int = _MANY
) -> Sequence[Point]:
    """Return calls of a change, of these kinds: a few where it is tried once, or many."""
    found = [point for point in site.points() if point.call in calls]
    return some(found, few if times == 1 else many)


def _killed_at_calls(site: Site, times: int) -> None:
    for point in _of(site, (*REACHING, *STARTING), times, few=3, many=_ALL):
        before = len(site.log)
        with befalling(site, point, "signal=SIGKILL"):
            site.change()
            # Whoever makes the call dies: the agent, or a program that it runs.
            wait_until(partial(_ended, site, before), f"its end at {point}")
        site.killed()
        site.wait_right()
        site.tries += 1
    site.settle()


def _ended(site: Site, before: int) -> bool:
    """Whether the agent has ended, or the pass in which a program of its may have."""
    said = site.log[before:]
    passed = any(word in said for word in ("rules applied", "failed"))
    return passed or site.agent.process.poll() is not None


def _failing_calls(site: Site, times: int) -> None:
    found = _of(site, REACHING, times, few=len(_ERRORS))
    for error, point in (
        zip(_ERRORS, found, strict=False) if times == 1 else product(_ERRORS, found)
    ):
        before = len(site.log)
        with befalling(site, point, f"error={error}"):
            began = time.monotonic()
            site.change()
            wait_until(partial(_ended, site, before), f"the pass with {error} at {point}")
        site.wait_right()
        site.repairs.append(time.monotonic() - began)
        site.tries += 1
    site.settle()


def _hanging(site: Site, times: int) -> None:
    for point in _of(site, (*REACHING, *ANSWERS), times, few=4):
        before, agent = len(site.log), site.agent
        # A program stands still; of the agent one thread, in the kernel.
        with befalling(site, point, "signal=SIGSTOP" if point.program else FOR_EVER) as trace:
            site.change()
            over = partial(_ended, site, before)
            wait_until(lambda: hangs(trace, point) or over(), f"{point} hangs")  # noqa: B023
            # Of a program that hangs in a look nothing is told before it is ended.
            wait_until(lambda: over() or agent.get("/readyz")[0] != 200, f"unready at {point}", 180)  # noqa: B023
            site.tries += not over()
            agent.process.send_signal(signal.SIGTERM)
            if point.program:
                assert agent.process.wait(DEADLINE) == 0, (point, site.log)
            agent.process.kill()
        site.killed()
        site.wait_right()
        if times == 1 and site.tries == 2:
            break
    site.settle()


def _stuck(site: Site, times: int) -> None:
    own = [p for p in site.points() if not p.program and p.call in ("bpf", "sendto")]
    for point in some(own, min(times, 3)):
        agent = site.agent

        def unhealthy() -> bool:
            time.sleep(0.5)  # half a minute is told from the first look on
            return agent.get("/healthz")[0] == 503  # noqa: B023

        with befalling(site, point, FOR_EVER) as trace:
            site.change()
            wait_until(lambda: hangs(trace, point), f"{point} hangs")  # noqa: B023
            began = time.monotonic()
            wait_until(unhealthy, f"unhealthy at {point}", 180)
            site.repairs.append(time.monotonic() - began)
            for path in ("/healthz", "/readyz"):
                code, why = agent.get(path)
                assert code == 503, (path, point)
                assert "MainThread" in why, (path, point)
            agent.process.kill()
        site.killed()
        site.repairs.pop()
        site.wait_right()
        site.tries += 1
    site.settle()


def _bad_programs(site: Site, times: int) -> None:
    variant = "legacy" if site.plane.endswith("legacy") else "nft"
    reader = "-save" if variant == "legacy" else ""
    names = [f"{stem}-{variant}{verb}" for stem in _STEMS for verb in ("-restore", reader)]
    names = ["ipset"] if site.plane == "ipset" else names
    cases = [(name, script) for name in names for script in _BAD_PROGRAMS]
    for name, script in some(cases, 3 if times == 1 else _MANY):
        before = len(site.log)
        site.programs.remove(name)
        if script:
            site.programs.replace(name, script)
        site.change()
        wait_until(lambda: "pass failed" in site.log[before:], f"{name} is told: {script}")  # noqa: B023
        wait_until(lambda: not site.agent.ready(), f"unready: {name}: {script}")
        site.programs.put_back(name)
        began = time.monotonic()
        site.agent.process.send_signal(signal.SIGHUP)
        site.wait_right()
        site.repairs.append(time.monotonic() - began)
        site.tries += 1
    site.settle()


def _refused(site: Site, times: int) -> None:
    for number in range(times):
        site.publish(f"nonMasqueradeCIDRs: [10.0.0.{300 + number}/8]\n")
        wait_until(lambda: not site.agent.status()["config"]["accepted"], "it is refused")
        site.tries += 1
        site.settle()


def _rewritten(site: Site, times: int) -> None:
    for _ in range(times * 20):
        site.change()
        site.tries += 1
        time.sleep(site.random.uniform(0, _LONGEST / 4))
    site.settle()


def _lock_held(site: Site, times: int) -> None:
    with open(os.environ["XTABLES_LOCKFILE"], "w") as file:
        for _ in range(times):
            fcntl.flock(file, fcntl.LOCK_EX)
            site.change()
            time.sleep(1)
            fcntl.flock(file, fcntl.LOCK_UN)
            site.tries += 1
    site.settle()


def _neighbour(site: Site, times: int) -> None:
    variant = "legacy" if site.plane.endswith("legacy") else "nft"
    rules = "".join(f"-A BUSY -p tcp --dport {n} -j RETURN\n" for n in range(1, 400))
    argv = [f"iptables-{variant}-restore", "--noflush", "--wait=60"]
    for number in range(times * 5):
        site.run(argv, f"*nat\n:BUSY - [0:0]\n{rules}COMMIT\n")
        if number % 2:
            site.change()
        site.tries += 1
    site.run(argv, "*nat\n:BUSY - [0:0]\n-X BUSY\nCOMMIT\n")
    site.settle()


def _device(site: Site, times: int) -> None:
    for _ in range(times):
        for words in (
            "link add late0 type veth peer name far0",
            "link set late0 up",
            "addr add 203.0.113.77/24 dev late0",
            "link set late0 down",
            "link set late0 name later0",
            "link set later0 up",
            "link del later0",
        ):
            site.run(["ip", *words.split()])
        site.change()
        site.tries += 1
    site.settle()


def _by(argv: Callable[[str], Sequence[str]]) -> Callable[[Site, int], None]:
    """Return what runs a program of somebody else's in turn for IPv4 and for IPv6."""

    def play(site: Site, times: int) -> None:
        variant = "legacy" if site.plane.endswith("legacy") else "nft"
        for _ in range(times):
            for stem in _STEMS:
                words = argv(f"{stem}-{variant}")
                site.done_to(partial(site.run, list(words)))

    return play


def _nft(command: str) -> Callable[[Site, int], None]:
    def play(site: Site, times: int) -> None:
        for _ in range(times):
            for family in ("ip", "ip6"):
                words = ["nft", command.format(family=family)]
                site.done_to(partial(site.run, words))

    return play


def _set_emptied(site: Site, times: int) -> None:
    for _ in range(times):
        for digit in "46":
            words = ["ipset", "flush", f"IP-MASQ-{digit}"]
            site.done_to(partial(site.run, words))


_INSTEAD = {
    "4": ("ip", "169.254.0.0/16", "10.9.0.0/16"),
    "6": ("ip6", "fe80::/10", "fd09::/16"),
}


def _rule_replaced(program: str) -> list[str]:
    _, _, other = _INSTEAD["6" if program.startswith("ip6") else "4"]
    return [program, "-t", "nat", "-R", "IP-MASQ", "1", "-d", other, "-j", "RETURN"]


def _element_replaced(site: Site, times: int) -> None:
    for _ in range(times):
        for digit, (ip, old, new) in _INSTEAD.items():
            ours, keep = f"IP-MASQ-{digit}", f"element {ip} ip-masq keep"
            words = {
                "ipset": ["ipset", "restore"],
                "nftables": ["nft", f"delete {keep} {{ {old} }}; add {keep} {{ {new} }}"],
            }[site.plane]
            site.done_to(partial(site.run, words, f"del {ours} {old}\nadd {ours} {new}\n"))


def _program_off(site: Site, times: int) -> None:
    for _ in range(times):
        number = socket.if_nametoindex("eth0")
        site.done_to(Path(os.environ[PINS], f"link-{number}-egress").unlink)


def _pins_gone(site: Site, times: int) -> None:
    for _ in range(times):
        site.done_to(lambda: shutil.rmtree(os.environ[PINS]))


UNHEALTHY = Scene("a call does not come back: how long until /healthz fails", _stuck, kills=True)


def _packets(site: Site) -> int:
    return sum(counted(site.node.world).values())


def play(site: Site, scene: Scene, times: int) -> None:
    """Let it happen while traffic flows, note what came of it, and make sure that all is right."""
    site.tries, site.repairs = 0, []
    with flowing(site.node, pause=_PAUSE) as counts:
        before = _packets(site)
        scene.play(site, times)
        wait_until(lambda: _packets(site) > before + _LEAST, "enough flows arrive")
    row = table.Row.of(scene.title, site, counts)
    table.note(row)
    assert site.tries > 0, scene.title
    assert row.lost == 0, scene.title
    assert scene.theirs or row.wrong == 0, (scene.title, counts)


SCENES: Sequence[Scene] = (
    Scene("the agent is killed at a random moment of a pass", _killed_at_random, kills=True),
    Scene(
        "the agent, or a program of its, is killed at a call that reaches the kernel's tables",
        _killed_at_calls,
        kills=True,
    ),
    Scene(f"a call that reaches the kernel's tables fails ({', '.join(_ERRORS)})", _failing_calls),
    Scene("a call that reaches the kernel's tables does not come back", _hanging, kills=True),
    Scene(
        "a program is missing, too old, does nothing, says nonsense, or crashes",
        _bad_programs,
        _CHAINS,
    ),
    Scene("a document that is refused", _refused),
    Scene("the document is rewritten at full speed", _rewritten),
    Scene("somebody holds the xtables lock for a second", _lock_held, ("iptables-legacy",)),
    Scene("another program rewrites 400 rules of the nat table", _neighbour, _TABLES),
    Scene("a device comes, is renamed, and goes", _device),
    Scene(
        "somebody flushes our chain",
        _by(lambda p: (p, "-t", "nat", "-F", "IP-MASQ")),
        _CHAINS,
        True,
    ),
    Scene(
        "somebody deletes one rule",
        _by(lambda p: (p, "-t", "nat", "-D", "IP-MASQ", "1")),
        _CHAINS,
        True,
    ),
    Scene(
        "somebody deletes the jump to our chain",
        _by(lambda p: (p, "-t", "nat", "-D", "POSTROUTING", "2")),
        _CHAINS,
        True,
    ),
    Scene("somebody replaces a rule by one of its size", _by(_rule_replaced), _CHAINS, True),
    Scene(
        "somebody replaces an element of our set",
        _element_replaced,
        ("ipset", "nftables"),
        True,
    ),
    Scene("somebody empties our set", _set_emptied, ("ipset",), True),
    Scene("somebody deletes our table", _nft("delete table {family} ip-masq"), ("nftables",), True),
    Scene("somebody empties our set", _nft("flush set {family} ip-masq keep"), ("nftables",), True),
    Scene("somebody takes a program off a device", _program_off, ("bpf",), True),
    Scene("somebody removes all pins", _pins_gone, ("bpf",)),
)
