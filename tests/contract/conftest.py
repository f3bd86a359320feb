"""Each data plane in turn, in both families, on a node of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ipmasq_agent.policy.addresses import Family
from tests import oracle
from tests.contract.planes import ROWS, SUBJECTS, Node, Subject
from tests.contract.subjects import InKernel, InMemory
from tests.contract.subjects import Subject as ChainSubject
from tests.fakeplane.plane import DIRECTORY
from tests.kernel.pins import PINS, bpf_file_system
from tests.netns import Namespace, sweep

_PLANES = [
    pytest.param((row, family), id=f"{row.name}-{family.value}", marks=pytest.mark.kernel)
    for row in ROWS
    for family in Family
]
_KERNEL = [
    pytest.param((variant, family), id=f"{variant}-{family.value}", marks=pytest.mark.kernel)
    for variant in oracle.VARIANTS
    for family in Family
]
_MEMORY = [pytest.param(("memory", family), id=f"memory-{family.value}") for family in Family]


@pytest.fixture(scope="session", autouse=True)
def _swept() -> None:
    """Remove what a killed test run left behind, before this one begins."""
    sweep()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node for all the planes, with pins and files of its own."""
    with (
        Node("contract") as made,
        bpf_file_system() as pins,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv(PINS, str(pins / "pins"))
        patch.setenv(DIRECTORY, str(tmp_path_factory.mktemp("fake")))
        made.furnish()
        yield made


@pytest.fixture(params=_PLANES)
def subject(request: pytest.FixtureRequest, node: Node) -> Iterator[Subject]:
    """A plane, and a node on which there is nothing of ours."""
    row, family = request.param
    with node.entered():
        node.clear()
        made = SUBJECTS[row.name](row, family, node)
        try:
            yield made
        finally:
            made.close()


def _chain(variant: oracle.Variant, family: Family) -> Iterator[InKernel]:
    with Namespace("contract") as namespace:
        namespace.run(["ipset", "create", "theirs", "hash:ip", "family", f"in{_SUFFIX[family]}"])
        made = InKernel(variant, family, namespace)
        try:
            yield made
        finally:
            made.close()


_SUFFIX = {Family.IPV4: "et", Family.IPV6: "et6"}


@pytest.fixture(scope="module", params=_MEMORY + _KERNEL)
def _each_chain(request: pytest.FixtureRequest) -> Iterator[ChainSubject]:
    variant, family = request.param
    if variant == "memory":
        yield InMemory(family)
    else:
        yield from _chain(variant, family)


@pytest.fixture(scope="module", params=_KERNEL)
def _each_kernel(request: pytest.FixtureRequest) -> Iterator[InKernel]:
    yield from _chain(*request.param)


@pytest.fixture
def chained(_each_chain: ChainSubject) -> Iterator[ChainSubject]:
    """A plane of iptables and an empty table."""
    if isinstance(_each_chain, InKernel):
        with _each_chain.namespace.entered():
            _each_chain.clear()
            yield _each_chain
    else:
        _each_chain.clear()
        yield _each_chain


@pytest.fixture
def kernel(_each_kernel: InKernel) -> Iterator[InKernel]:
    """A plane of iptables in a kernel and an empty table."""
    with _each_kernel.namespace.entered():
        _each_kernel.clear()
        yield _each_kernel
