"""The routes that are written for iproute2 are those that the kernel then has."""

from __future__ import annotations

from tests.golden.routes.cases import texts
from tests.netns import Namespace


def test_the_kernel_takes_what_is_written_for_it_once_and_again() -> None:
    script = dict(texts())["static.iproute2"]
    with Namespace("router") as router, Namespace("lan") as lan:
        router.veth("eth0", lan, "eth0")
        router.address("eth0", "192.168.10.200/24", "fd00:192:168:10::200/64")
        for _ in range(2):
            router.run(["sh", "-e"], stdin=script)
        shown = [
            line.partition(" dev")[0]
            for family, pods in (("-4", "172.16.0.0/12"), ("-6", "fd00:172::/32"))
            for line in router.run(
                ["ip", family, "route", "show", "root", pods]
            ).stdout.splitlines()
        ]
    assert shown == [
        "172.20.0.0/24 via 192.168.10.100",
        "172.20.1.0/24 via 192.168.10.101",
        "172.20.128.0/25 via 192.168.10.101",
        "fd00:172:20::/64 via fd00:192:168:10::100",
        "fd00:172:20:1::/64 via fd00:192:168:10::101",
    ]
