"""Each backend in turn, in both families, with a table of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ipmasq_agent.policy.addresses import Family
from tests import oracle
from tests.contract.subjects import InKernel, InMemory, Subject
from tests.netns import Namespace, sweep

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


def _subject(variant: oracle.Variant, family: Family) -> Iterator[InKernel]:
    with Namespace("contract") as namespace:
        namespace.run(["ipset", "create", "theirs", "hash:ip", "family", f"in{_SUFFIX[family]}"])
        made = InKernel(variant, family, namespace)
        try:
            yield made
        finally:
            made.close()


_SUFFIX = {Family.IPV4: "et", Family.IPV6: "et6"}


@pytest.fixture(scope="module", params=_MEMORY + _KERNEL)
def _each(request: pytest.FixtureRequest) -> Iterator[Subject]:
    variant, family = request.param
    if variant == "memory":
        yield InMemory(family)
    else:
        yield from _subject(variant, family)


@pytest.fixture(scope="module", params=_KERNEL)
def _each_kernel(request: pytest.FixtureRequest) -> Iterator[InKernel]:
    yield from _subject(*request.param)


@pytest.fixture
def subject(_each: Subject) -> Iterator[Subject]:
    """A backend and an empty table."""
    if isinstance(_each, InKernel):
        with _each.namespace.entered():
            _each.clear()
            yield _each
    else:
        _each.clear()
        yield _each


@pytest.fixture
def kernel(_each_kernel: InKernel) -> Iterator[InKernel]:
    """A backend of a kernel and an empty table."""
    with _each_kernel.namespace.entered():
        _each_kernel.clear()
        yield _each_kernel
