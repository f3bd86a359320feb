"""The rows of data planes, and what is read from them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipmasq_agent.planes import registry


def installed(*programs: str) -> Callable[[str], str | None]:
    return lambda program: program if program in programs else None


def test_the_flag_takes_each_name_once() -> None:
    assert registry.choices() == (
        "auto", "iptables", "iptables-legacy", "iptables-nft", "ipset", "nftables", "bpf"
    )  # fmt: skip


def test_a_form_is_of_a_plane_that_there_is() -> None:
    homes = {row.name for row in registry.homes()}
    assert {row.form_of for row in registry.PLANES if row.form_of} <= homes
    assert len({row.name for row in registry.PLANES}) == len(registry.PLANES)


@pytest.mark.parametrize(
    ("backend", "programs", "any_size"),
    [
        ("auto", (), False),
        ("auto", ("ipset",), True),
        ("iptables", ("ipset",), False),
        ("iptables-nft", ("ipset",), False),
        ("iptables-legacy", ("ipset",), False),
        ("ipset", (), True),
        ("nftables", (), True),
        ("bpf", (), True),
    ],
)
def test_what_takes_any_number_of_entries(
    monkeypatch: pytest.MonkeyPatch, backend: str, programs: Any, any_size: bool
) -> None:
    monkeypatch.setattr(registry, "which", installed(*programs))
    assert registry.takes_any_size(backend) is any_size


def test_rows_are_known_without_any_plane_s_code() -> None:
    asked = "import sys; from ipmasq_agent.planes import registry; registry.choices(); "
    told = "print([name for name in sys.modules if name.startswith('ipmasq_agent.planes.')])"
    done = subprocess.run(
        [sys.executable, "-c", asked + told], capture_output=True, text=True, check=True
    )
    assert (
        done.stdout.strip() == "['ipmasq_agent.planes.placement', 'ipmasq_agent.planes.registry']"
    )


def test_the_guide_says_of_each_plane_which_capabilities_it_needs() -> None:
    def words(capabilities: frozenset[str]) -> str:
        return ", ".join(f"`{name}`" for name in sorted(capabilities))

    guide = (Path(__file__).parents[3] / "docs/install.md").read_text()
    table = guide.partition("### Capabilities\n\n")[2].partition("\n\n")[0].splitlines()[2:]
    assert table == [
        f"| {row.title} | {words(row.capabilities)} "
        f"| {words(row.to_leave) if row.to_leave else 'the same'} |"
        for row in registry.PLANES
    ]


def test_what_asks_the_node_needs_what_every_iptables_needs() -> None:
    assert (
        registry.capabilities("auto")
        == registry.capabilities("iptables")
        == {*("NET_ADMIN", "NET_RAW")}
    )
    assert registry.to_leave() == {"NET_ADMIN", "NET_RAW", "BPF"}
