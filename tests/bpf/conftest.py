"""Fixtures: the programs are compiled and loaded once, and every test finds them empty."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf import layout
from tests.bpf.datapath import Datapath, compile_programs
from tests.bpf.packets import FAMILIES, NODE_MAC, Addresses
from tests.netns import Namespace

HERE = Path(__file__).parent
COMPILED = "IPMASQ_TEST_BYTECODE"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test below this directory as one of the kernel's."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.kernel)


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled object; a machine without a compiler is given it."""
    if COMPILED in os.environ:
        return Path(os.environ[COMPILED])
    return compile_programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="session")
def loaded(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Datapath:
    """The loaded programs; nothing of them can be seen in a file system."""
    return Datapath(programs, tmp_path_factory.mktemp("loaded"))


@pytest.fixture(scope="session")
def node() -> Iterator[Namespace]:
    """A network namespace with a device, `out0`, and the node's addresses."""
    with Namespace("bpf") as namespace:
        # Nothing listens at the other end; the programs run without being attached.
        namespace.run(["ip", "link", "add", "out0", "type", "veth", "peer", "name", "far0"])
        mac = NODE_MAC.hex(":")
        namespace.run(["ip", "link", "set", "out0", "up", "address", mac])
        for addresses in FAMILIES:
            length = 32 if addresses.v4 else 128
            namespace.address("lo", f"{addresses.node}/{length}")
        yield namespace


@pytest.fixture(params=FAMILIES, ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> Addresses:
    """Who takes part, in each family."""
    found: Addresses = request.param
    return found


@pytest.fixture
def empty(loaded: Datapath, node: Namespace) -> Iterator[Datapath]:
    """The programs without policy, device or flow; the test runs in their namespace."""
    with node.entered():
        loaded.ifindex = socket.if_nametoindex("out0")
        loaded.forget()
        yield loaded


def _with_policy(programs: Datapath, family: Addresses) -> Datapath:
    programs.policy(
        family.number,
        {family.everything: layout.MASQUERADE, family.kept_prefix: layout.NON_MASQUERADE},
    )
    programs.device(family)
    return programs


@pytest.fixture
def masq(empty: Datapath, family: Addresses) -> Datapath:
    """The programs with a policy: everything is masqueraded but what goes to `kept`."""
    return _with_policy(empty, family)


@pytest.fixture
def masq_v4(empty: Datapath) -> Datapath:
    """As `masq`, for what only IPv4 has."""
    return _with_policy(empty, FAMILIES[0])


@pytest.fixture
def masq_v6(empty: Datapath) -> Datapath:
    """As `masq`, for what only IPv6 has."""
    return _with_policy(empty, FAMILIES[1])
