"""What the DaemonSet's capabilities are for: each is taken away, and the agent says no.

The agent runs as the container does: root, no new privileges, a bounding set that holds
only what the manifest adds, and no file system to write to but the xtables lock's.
tests/deploy compares ``SHOWN`` with the manifests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import oracle
from tests.kernel.container import confined
from tests.kernel.pins import PINS
from tests.netns import Namespace
from tests.waiting import wait_until

SHOWN = frozenset({"NET_ADMIN", "NET_RAW"})
"""The capabilities that the tests below show to be needed, and to be enough."""
SHOWN_TO_LEAVE = SHOWN | {"BPF"}
"""Those to take over from the eBPF data plane; test_leaving.py shows what the last is for."""
SHOWN_FOR_BPF = SHOWN_TO_LEAVE | {"PERFMON"}
"""Those for the eBPF data plane, which must also be able to leave for another one."""

DOCUMENT = "nonMasqueradeCIDRs: [10.0.0.0/8, 'fd00::/8']\n"
# Neighbours' rules, as kube-proxy in IPVS mode writes them: iptables asks the kernel for the
# name of the set through a raw socket before it can print such a rule.
FOREIGN_SET = """\
*nat
:OTHERS - [0:0]
-A OTHERS -m set --match-set others dst -j RETURN
-A POSTROUTING -j OTHERS
COMMIT
"""


def agent(capabilities: frozenset[str], *words: str) -> list[str]:
    """Return the argv of the agent with these capabilities, on file systems that are read-only.

    Read-only for it alone: the mounts are those of a mount namespace that ends with it.
    """
    program = ["env", "PATH=/usr/sbin", sys.executable, "-m", "ipmasq_agent", *words]
    read_only = """\
set -eu
touch /run/xtables.lock
for path in /run/xtables.lock /tmp /var/tmp; do mount --bind $path $path; done
for path in /tmp /var/tmp /; do mount -o remount,bind,ro $path; done
exec "$@"
"""
    return ["unshare", "--mount", "sh", "-c", read_only, "sh", *confined(capabilities, program)]


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "ip-masq-agent"
    path.write_text(DOCUMENT)
    return path


def apply(
    ns: Namespace, capabilities: frozenset[str], variant: oracle.Variant, document: Path
) -> subprocess.CompletedProcess[str]:
    words = ("apply", f"--config={document}", f"--backend=iptables-{variant}", "--enable-ipv6")
    return ns.run(agent(capabilities, *words), check=False)


def chains_of_ours(ns: Namespace, variant: oracle.Variant) -> list[oracle.Family]:
    return [f for f in oracle.FAMILIES if oracle.read_chain(variant, f, "IP-MASQ", ns.name)]


@pytest.mark.parametrize("variant", oracle.VARIANTS)
def test_the_declared_capabilities_are_enough_for_both_families(
    ns: Namespace, variant: oracle.Variant, document: Path
) -> None:
    done = apply(ns, SHOWN, variant, document)
    assert done.returncode == 0, done.stderr
    assert chains_of_ours(ns, variant) == ["ipv4", "ipv6"]


@pytest.mark.parametrize("variant", oracle.VARIANTS)
def test_without_net_admin_every_backend_fails_and_writes_nothing(
    ns: Namespace, variant: oracle.Variant, document: Path
) -> None:
    done = apply(ns, SHOWN - {"NET_ADMIN"}, variant, document)
    assert done.returncode == 2, done.stdout
    assert "error: " in done.stderr
    assert chains_of_ours(ns, variant) == []


def test_without_net_raw_the_legacy_backend_fails_and_writes_nothing(
    ns: Namespace, document: Path
) -> None:
    done = apply(ns, SHOWN - {"NET_RAW"}, "legacy", document)
    assert done.returncode == 2, done.stdout
    assert "error: " in done.stderr
    assert chains_of_ours(ns, "legacy") == []


@pytest.mark.parametrize("neighbour", [False, True], ids=["alone", "beside ipset rules"])
def test_the_nft_backend_writes_without_net_raw(
    ns: Namespace, document: Path, neighbour: bool
) -> None:
    if neighbour:
        ns.run(["ipset", "create", "others", "hash:net"])
        ns.run(["iptables-nft-restore", "--noflush"], stdin=FOREIGN_SET)
    before = oracle.read_chain("nft", "ipv4", "OTHERS", ns.name)
    done = apply(ns, SHOWN - {"NET_RAW"}, "nft", document)
    assert done.returncode == 0, done.stderr
    assert chains_of_ours(ns, "nft") == ["ipv4", "ipv6"]
    assert oracle.read_chain("nft", "ipv4", "OTHERS", ns.name) == before


def test_without_net_raw_iptables_nft_cannot_print_a_neighbours_ipset_rule(ns: Namespace) -> None:
    ns.run(["ipset", "create", "others", "hash:net"])
    ns.run(["iptables-nft-restore", "--noflush"], stdin=FOREIGN_SET)
    listing = ["iptables-nft", "-t", "nat", "-S", "OTHERS"]
    assert "--match-set others dst" in ns.run(confined(SHOWN, listing)).stdout
    refused = ns.run(confined(SHOWN - {"NET_RAW"}, listing), check=False)
    assert refused.returncode != 0
    assert "Can't open socket to ipset" in refused.stderr


@pytest.mark.parametrize(
    ("backend", "enough"), [("nftables", True), ("ipset", False), ("auto", False)]
)
def test_without_net_raw_nothing_that_asks_an_ipset_works(
    ns: Namespace, tmp_path: Path, backend: str, enough: bool
) -> None:
    # So large that `auto` takes a set.
    document = tmp_path / "large"
    entries = "".join(f"- 10.{n // 256}.{n % 256}.0/24\n" for n in range(1000))
    document.write_text(f"nonMasqueradeCIDRs:\n{entries}")
    words = ("apply", f"--config={document}", f"--backend={backend}")
    done = ns.run(agent(SHOWN - {"NET_RAW"}, *words), check=False)
    assert (done.returncode == 0) is enough, done.stderr
    assert ns.run(agent(SHOWN, *words), check=False).returncode == 0


GET = """\
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen("http://127.0.0.1:9797" + sys.argv[1], timeout=5).status)
except urllib.error.HTTPError as refusal:
    print(refusal.code)
except OSError:
    print(0)
"""


def status_of(ns: Namespace, path: str) -> int:
    """Return the HTTP status of the agent in a namespace, or 0 while it does not listen."""
    return int(ns.run([sys.executable, "-c", GET, path]).stdout)


@pytest.mark.parametrize("variant", oracle.VARIANTS)
def test_the_daemon_does_its_whole_work_with_the_declared_capabilities(
    ns: Namespace, variant: oracle.Variant, document: Path
) -> None:
    words = ("run", f"--config={document}", f"--backend=iptables-{variant}", "--enable-ipv6")
    child = ns.popen(agent(SHOWN, *words))
    wait_until(lambda: status_of(ns, "/readyz") == 200, "ready")
    assert status_of(ns, "/healthz") == 200

    document.write_text(DOCUMENT.replace("10.0.0.0/8", "192.0.2.0/24"))
    wait_until(
        lambda: (
            "192.0.2.0/24"
            in {
                rule.destination
                for rule in oracle.read_chain(variant, "ipv4", "IP-MASQ", ns.name) or ()
            }
        ),
        "the new document in the kernel",
    )
    child.terminate()
    assert child.wait(10) == 0
    assert chains_of_ours(ns, variant) == ["ipv4", "ipv6"]


@pytest.fixture
def pins(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A bpf file system that is mounted: without privileges none is reached in another way."""
    place = Path(f"/run/ipmq-test-{os.getpid()}-pins")
    place.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", place], check=True)
    monkeypatch.setenv(PINS, str(place / "pins"))
    try:
        yield place / "pins"
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


def apply_bpf(
    ns: Namespace, capabilities: frozenset[str], document: Path
) -> subprocess.CompletedProcess[str]:
    ns.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far"])
    for line in ("addr add 192.0.2.1/24 dev eth0", "link set eth0 up", "link set far up"):
        ns.run(["ip", *line.split()])
    words = ("apply", f"--config={document}", "--backend=bpf", "--enable-ipv6")
    return ns.run(agent(capabilities, *words), check=False)


def test_the_declared_capabilities_are_enough_for_the_programs(
    ns: Namespace, document: Path, pins: Path
) -> None:
    done = apply_bpf(ns, SHOWN_FOR_BPF - {"NET_RAW"}, document)
    assert done.returncode == 0, done.stderr
    again = ns.run(
        agent(SHOWN_FOR_BPF, "diff", f"--config={document}", "--backend=bpf", "--enable-ipv6")
    )
    assert "nothing would change" in again.stdout
    assert ns.run(agent(SHOWN_FOR_BPF, "cleanup")).returncode == 0
    assert not pins.exists()


@pytest.mark.parametrize("missing", ["BPF", "PERFMON", "NET_ADMIN"])
def test_without_one_of_them_the_programs_are_not_loaded(
    ns: Namespace, document: Path, pins: Path, missing: str
) -> None:
    done = apply_bpf(ns, SHOWN_FOR_BPF - {missing}, document)
    assert done.returncode == 2, done.stdout
    assert "error: " in done.stderr
    assert not list(pins.glob("link-*"))
