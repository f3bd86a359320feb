"""What a lab needs of the machine."""

from __future__ import annotations

import os

import pytest

from ipmasq_agent.errors import MissingTool
from ipmasq_agent.lab.tools import check, of_lab


def test_frr_is_needed_by_a_lab_with_bgp_alone() -> None:
    plain, bgp = (of_lab("nftables", (), routing) for routing in ("static", "bgp"))
    assert "frr" not in plain.values()
    assert {program for program, package in bgp.items() if package == "frr"} == {
        "/usr/lib/frr/zebra",
        "/usr/lib/frr/bgpd",
    }


def test_what_is_missing_is_told_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(MissingTool) as missing:
        check("the lab", {"/no/such/bgpd": "frr", "/no/such/zebra": "frr", "sh": "dash"})
    assert missing.value.remedy == "apt-get install frr"
