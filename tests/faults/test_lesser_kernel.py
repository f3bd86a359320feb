"""A kernel that lacks nat for IPv6, on a node on which nothing was before."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.faults.injector import PLANES
from tests.faults.preload import OddNode
from tests.faults.site import DOCUMENTS
from tests.kernel.crossing import Crossing
from tests.kernel.flows import flowing
from tests.kernel.running import Running
from tests.waiting import wait_until

pytestmark = pytest.mark.kernel
_WIPES = {"nftables": "nft delete table ip ip-masq"}
_END = "nft flush ruleset; ipset destroy; iptables-legacy -t nat -F; iptables-legacy -t nat -X"


@pytest.mark.parametrize("plane", ["iptables-nft", "iptables-legacy", "nftables"])
def test_a_kernel_without_nat_for_ipv6_keeps_nobody_from_ipv4(
    node: Crossing, plane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XTABLES_LOCKFILE", os.fspath(tmp_path / "xtables.lock"))
    kernel, told = OddNode(tmp_path), dict[str, Any]()
    kernel.be(no_ipv6_nat=True)
    (tmp_path / "config").write_text(DOCUMENTS[0])
    backend, _, wipe = PLANES[plane]
    flags = (f"--config={tmp_path}/config", f"--backend={backend}", "--enable-ipv6")
    with node.node.entered():
        agent = Running(tmp_path / "log", "run", *flags, under=kernel.under)
        try:
            wait_until(lambda: "--enable-ipv6" in agent.get("/readyz")[1], "the remedy is told")
            for verb in ("status", "doctor"):
                done = kernel.verb(verb)
                assert done.returncode == 1
                assert "nat for" in done.stdout
                assert "leave --enable-ipv6 away" in done.stdout
            with flowing(node, pause=0.002) as counts:
                wait_until(lambda: agent.status().get("ipv4", {}).get("error", "") is None, "IPv4")
            assert counts["ipv4_kept"] > 0
            assert counts["ipv4_masqueraded"] > 0
            assert counts["ipv4_kept_wrong"] == counts["ipv4_masqueraded_wrong"] == 0
            # What somebody takes away of it comes back, whatever fails beside it.
            wait_until(lambda: told.update(agent.status()) or told, "an answer")
            subprocess.run(_WIPES.get(plane, wipe), shell=True, check=True, capture_output=True)
            wait_until(lambda: agent.status().get("changes", 0) > told["changes"], "it is healed")
        finally:
            agent.stop(signal.SIGKILL)
            subprocess.run(_END, shell=True, check=True, capture_output=True)
