"""The programs under test, in force in this network namespace as the agent puts them there."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ipmasq_agent.bench.policies import BlockPolicy
from ipmasq_agent.bench.rig import NODE, WORLD
from ipmasq_agent.bench.testrun.frames import MAC
from ipmasq_agent.bpf.objects import closing, get_pinned
from ipmasq_agent.config.assemble import assemble_family
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.config.model import Flags
from ipmasq_agent.errors import BenchError
from ipmasq_agent.host.commands import run
from ipmasq_agent.libc import libc
from ipmasq_agent.planes.bpf.layout import TcHook
from ipmasq_agent.planes.bpf.pins import PinDirectory
from ipmasq_agent.planes.bpf.plane import BpfPlane
from ipmasq_agent.planes.bpf.state import BpfRules
from ipmasq_agent.policy.addresses import Family

_MOUNTED = Path("/sys/fs/bpf")
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_OUT, _OTHER = "eth0", "eth1"
_LENGTH = {Family.IPV4: 24, Family.IPV6: 64}
_FLAGS = Flags(enable_ipv6=True, cidr_limit=None)


def go_where_nobody_is() -> None:
    """Give this process a network and mounts of its own, with a way out and another device.

    Raises:
        BenchError: it may not.
    """
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise BenchError(
            f"no network namespace can be made here: {os.strerror(code)}", remedy="run as root"
        )
    run(["mount", "--make-rprivate", "/"])
    # What /sys shows of devices is what was there for whoever mounted it.
    run(["mount", "-t", "sysfs", "sysfs", "/sys"])
    run(["mount", "-t", "bpf", "bpf", str(_MOUNTED)])
    lines = ["link set lo up"]
    for name in (_OUT, _OTHER):
        lines.append(f"link add {name} address {MAC} type veth peer name far-{name}")
        lines += [f"link set {name} up", f"link set far-{name} up"]
    for family in Family:
        at_once = " nodad" if family is Family.IPV6 else ""
        lines.append(f"address add {NODE[family]}/{_LENGTH[family]} dev {_OUT}{at_once}")
        lines.append(f"route add default via {WORLD[family]}")
    run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")


class Subject:
    """The programs, for packets of one family.

    Args:
        family: whose policy is loaded.
        flows: how many the table has room for.
    """

    def __init__(self, family: Family, flows: int) -> None:
        self.family = family
        self.pins = PinDirectory(_MOUNTED / "pins").objects
        self.plane = BpfPlane(_MOUNTED / "pins", flows)
        self._compiled: dict[int, BpfRules] = {}
        self.device = socket.if_nametoindex(_OUT)
        """By which packets leave."""
        self.other_device = socket.if_nametoindex(_OTHER)
        """Of which the policy does not speak."""

    @contextlib.contextmanager
    def loaded(self, cidrs: int) -> Iterator[None]:
        """Have a policy of so many CIDRs in force, with an empty table, while the block runs."""
        self._bring(self._rules(cidrs))
        try:
            yield
        finally:
            self._bring(None)

    def _bring(self, rules: BpfRules | None) -> None:
        plane, family = self.plane, self.family
        with plane.session(family):
            plane.apply(family, plane.dialect.plan(plane.read(family), rules))

    def _rules(self, cidrs: int) -> BpfRules:
        if cidrs not in self._compiled:
            document = BlockPolicy(self.family, cidrs).document.encode()
            config = parse_document(document, "bench", _FLAGS).config
            policy = assemble_family(config, self.family, self.plane.capabilities(self.family))
            rules = self.plane.dialect.compile(policy)
            assert rules is not None
            self._compiled[cidrs] = rules
        return self._compiled[cidrs]

    @contextlib.contextmanager
    def program(self, hook: TcHook) -> Iterator[int]:
        """Open the program that is at a hook."""
        found = get_pinned(self.pins / hook.value)
        assert found is not None
        with closing(found):
            yield found

    def counted(self) -> Counter[str]:
        """Return how often each outcome was met."""
        counters = self.plane.counters().items()
        return Counter({name: n for (family, name), n in counters if family is self.family})
