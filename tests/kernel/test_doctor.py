"""``doctor`` on nodes where each thing that it finds is made true, and on nodes that are fine.

A node has a device that leads out, a bridge with a pod, and a VXLAN to another node's pods, in
both families. What its other ends are plugged into is one more namespace.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ipmasq_agent.bpf import bpffs
from ipmasq_agent.cli import doctor_facts, questions
from ipmasq_agent.host import sysctl
from tests import oracle
from tests.kernel.agent import status_of
from tests.kernel.pins import PINS
from tests.netns import Namespace

LINKS = """
link add eth0 type veth peer name eth0 netns {beyond}
link set eth0 up
address add 192.168.10.100/24 dev eth0
address add fd00:192:168:10::100/64 dev eth0 nodad
route add default via 192.168.10.200
route add ::/0 via fd00:192:168:10::200
link add cni0 type bridge
address add 172.20.0.1/24 dev cni0
address add fd00:172:20::1/64 dev cni0 nodad
link add veth1 mtu 1450 type veth peer name pod netns {beyond}
link set veth1 master cni0 up
link set cni0 up
link add flannel.1 mtu 1450 type vxlan id 1 dev eth0 dstport 8472 nolearning
link set flannel.1 up
route add 172.20.1.0/24 dev flannel.1
"""
BEYOND = """
link set eth0 up
address add 192.168.10.200/24 dev eth0
address add fd00:192:168:10::200/64 dev eth0 nodad
address add 10.10.1.200/32 dev lo
address add fd00:10:10::200/128 dev lo nodad
link set pod mtu 1450 up
"""
LIST = ["172.20.0.0/16", "192.168.10.0/24", "fd00:172:20::/48", "fd00:192:168:10::/64"]
KEPT = {"nonMasqueradeCIDRs": LIST}
VARIANTS = ("nft", "legacy")


def batch(ns: Namespace, commands: str) -> None:
    ns.run(["ip", "-batch", "-"], stdin=commands.strip() + "\n")


@pytest.fixture
def beyond() -> Iterator[Namespace]:
    with Namespace("beyond") as namespace:
        yield namespace


@pytest.fixture
def node(in_ns: Namespace, beyond: Namespace) -> Namespace:
    batch(in_ns, LINKS.format(beyond=beyond.name))
    batch(beyond, BEYOND)
    forwarding = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]
    in_ns.run(["sysctl", "-qw", *forwarding])
    sh(in_ns, "bridge link set dev veth1 hairpin on")
    sh(in_ns, "bridge fdb add 02:00:00:00:00:01 dev flannel.1 dst 192.168.10.101")
    return in_ns


def sh(ns: Namespace, *lines: str) -> None:
    ns.run(["sh", "-ec", "\n".join(lines)])


Doctor = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def doctor(node: Namespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Run the verb with a document, and return what it found; check its exit status by that."""

    def run(document: dict[str, Any], *flags: str) -> list[dict[str, Any]]:
        path = tmp_path / "config"
        path.write_text(json.dumps(document))
        words = ("--config", str(path), "--enable-ipv6", "-o", "json", *flags)
        capsys.readouterr()
        status = status_of("doctor", *words)
        captured = capsys.readouterr()
        found: list[dict[str, Any]] = json.loads(captured.out)
        assert "error:" not in captured.err
        assert status == any(one["severity"] != "info" for one in found), captured.err
        return found

    return run


def restore(variant: str, rules: str, ipv6: bool = False) -> str:
    program = f"ip{'6' * ipv6}tables-{variant}-restore"
    return f"{program} --noflush --counters <<'EOF'\n{rules.strip()}\nEOF"


@dataclass(frozen=True)
class Scene:
    """What makes a finding true.

    Attributes:
        found: ids, all of them.
        lines: of a shell in the node.
        document: what it is judged by.
        flags: of the verb.
        says: what the first finding's title has in it.
        severity: of the first finding.
    """

    found: str
    lines: tuple[str, ...] = ()
    document: dict[str, Any] = field(default_factory=lambda: KEPT)
    flags: tuple[str, ...] = ()
    says: str = ""
    severity: str = ""


def listed(*more: str, but: str = "none") -> dict[str, Any]:
    return {"nonMasqueradeCIDRs": [cidr for cidr in LIST if not cidr.startswith(but)] + [*more]}


def iptables(variant: str, rule: str, six: str = "") -> str:
    return f"ip{six}tables-{variant} {rule}"


FLANNEL = '-t nat -A POSTROUTING -s {} -m comment --comment "flanneld masq" -j MASQUERADE'
AWS = """*nat
:AWS-SNAT-CHAIN-0 - [0:0]
-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0
-A AWS-SNAT-CHAIN-0 ! -d 10.0.0.0/8 -j SNAT --to-source 192.168.10.100 --random-fully
COMMIT"""
UPSTREAM = """*nat
:{0} - [0:0]
-A POSTROUTING -m comment --comment "ip-masq-agent: ensure nat" ! -d 169.254.0.0/16 -j {0}
-A {0} -d 172.20.0.0/16 -m comment --comment "ip-masq-agent: local traffic" -j RETURN
-A {0} -d 192.168.10.0/24 -m comment --comment "ip-masq-agent: local traffic" -j RETURN
-A {0} -m comment --comment "ip-masq-agent: outbound traffic" -j MASQUERADE
COMMIT"""
SERVICES = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-SVC-NPX46M4PTMTKRN6Y {} -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
COMMIT"""
NATIVE = "nft add table {0}; nft 'add chain {0} c {{ type {1} ; }}'; nft add rule {0} c {2}"
NOTRACK = "-t raw -A PREROUTING -s {} -j CT --notrack"

SCENES = {
    "forwarding": Scene("forwarding-off", ("sysctl -qw net.ipv4.ip_forward=0",)),
    "forwarding6": Scene("forwarding-off", ("sysctl -qw net.ipv6.conf.all.forwarding=0",)),
    "forwarding-device": Scene("forwarding-off", ("sysctl -qw net.ipv4.conf.cni0.forwarding=0",)),
    "mtu-pods": Scene("mtu-mismatch", ("ip link set cni0 mtu 1500",)),
    "mtu-overlay": Scene("mtu-mismatch", ("ip link set eth0 mtu 1490",)),
    **{
        f"flannel-{variant}{six}": Scene(
            "foreign-nat", (iptables(variant, FLANNEL.format(pods), six),), says="flannel"
        )
        for variant in VARIANTS
        for six, pods in (("", "172.20.0.0/16"), ("6", "fd00:172:20::/48"))
    },
    "aws": Scene("foreign-nat", (restore("nft", AWS),), says="the AWS VPC CNI"),
    "accepted": Scene(
        "foreign-nat",
        ("iptables-nft -t nat -A POSTROUTING -d 8.8.8.0/24 -j ACCEPT",),
        says="leaves alone what",
    ),
    "some-packets": Scene(
        "foreign-nat",
        ("iptables-nft -t nat -A POSTROUTING -p udp -d 192.168.10.0/24 -j MASQUERADE",),
    ),
    "firewalld": Scene(
        "native-nat-chain native-nat-chain",
        (NATIVE.format("inet firewalld", "nat hook postrouting priority 110", "masquerade"),),
        says="firewalld",
    ),
    "calico6": Scene(
        "native-nat-chain",
        (NATIVE.format("ip6 calico", "nat hook postrouting priority 90", "masquerade"),),
        says="Calico",
    ),
    "source": Scene(
        "foreign-source",
        ("iptables-nft -t nat -A POSTROUTING -d 8.0.0.0/8 -j SNAT --to-source 192.0.2.9",),
        says="translates to 192.0.2.9, not to an address of this node",
    ),
    **{
        f"notrack-{variant}{six}": Scene("notrack", (iptables(variant, NOTRACK.format(pods), six),))
        for variant in VARIANTS
        for six, pods in (("", "172.20.0.0/16"), ("6", "fd00:172:20::/48"))
    },
    "notrack-native": Scene(
        "notrack notrack",
        (NATIVE.format("inet own", "filter hook prerouting priority -300", "notrack"),),
    ),
    "ipset": Scene(
        "unreadable-rule",
        (
            "ipset create cali40all-ipam-pools hash:net",
            "iptables-nft -t nat -N cali-nat-outgoing",
            "iptables-nft -t nat -A POSTROUTING -j cali-nat-outgoing",
            "iptables-nft -t nat -A cali-nat-outgoing -m set ! --match-set cali40all-ipam-pools "
            "dst -j MASQUERADE",
        ),
        says="Calico",
    ),
    "both": Scene(
        "both-iptables",
        (
            "iptables-nft -t filter -A FORWARD -j ACCEPT",
            "iptables-legacy -t filter -A FORWARD -j ACCEPT",
        ),
    ),
    "both6": Scene(
        "both-iptables",
        (
            "ip6tables-nft -t mangle -A OUTPUT -j ACCEPT",
            "ip6tables-legacy -t filter -A FORWARD -j ACCEPT",
        ),
    ),
    **{
        f"upstream-{variant}": Scene(
            "upstream-chain",
            (restore(variant, UPSTREAM.format("IP-MASQ-AGENT")),),
            says="IP-MASQ-AGENT",
        )
        for variant in VARIANTS
    },
    **{
        f"rival-{variant}": Scene(
            "another-agent",
            (restore(variant, UPSTREAM.format("IP-MASQ")),),
            flags=("--backend", f"iptables-{variant}"),
        )
        for variant in VARIANTS
    },
    **{
        f"services-{variant}": Scene(
            "services-masqueraded", (restore(variant, SERVICES.format("! -s 10.244.0.0/16")),)
        )
        for variant in VARIANTS
    },
    "services-all": Scene("services-masqueraded", (restore("nft", SERVICES.format("")),)),
    "pods": Scene("pod-cidr-masqueraded", document=listed(but="172."), says="172.20.0.0/23"),
    "pods6": Scene("pod-cidr-masqueraded", document={}, says="fd00:172:20::/64"),
    "not-covered": Scene(
        "pods-not-covered", document={**KEPT, "podCIDRs": ["10.244.0.0/16", "fd00:172:20::/48"]}
    ),
    "not-covered6": Scene("pods-not-covered", document={**KEPT, "podCIDRs": ["172.20.0.0/16"]}),
    "no-device": Scene(
        "nothing-masqueraded nothing-masqueraded",
        document={**KEPT, "egressInterfaces": ["ens*"]},
    ),
    "link-local": Scene("link-local-masqueraded", document={**KEPT, "masqLinkLocal": True}),
    "link-local6": Scene("link-local-masqueraded", document={**KEPT, "masqLinkLocalIPv6": True}),
    "metadata": Scene("metadata-unreachable", ("ip route add 169.254.169.254 via 192.168.10.200",)),
    "snat": Scene("snat-unanswered", document={**KEPT, "snatAddress": "192.168.10.99"}),
    "snat6": Scene("snat-unanswered", document={**KEPT, "snatAddress": "fd00:192:168:10::99"}),
    "snat-far": Scene("snat-by-routers", document={**KEPT, "snatAddress": "203.0.113.5"}),
    "vxlan": Scene("vxlan-masqueraded", document=listed(but="192.168.10."), says="random"),
    # Nobody gives packets that mark.
    "reverse-path": Scene(
        "reverse-path-filter",
        (
            "ip link add eth1.7 type veth peer name eth1far",
            "ip link set eth1.7 up; ip link set eth1far up",
            "ip address add 198.51.100.1/24 dev eth1.7",
            "ip route add default via 198.51.100.254 table 100",
            "ip rule add fwmark 0x80 lookup 100 priority 100",
            "sysctl -qw net/ipv4/conf/eth1.7/rp_filter=1",
        ),
        document=listed("10.10.1.0/24"),
        says="eth1.7 drops replies to what has the mark 0x80",
        severity="info",
    ),
}


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_what_is_made_true_is_found(node: Namespace, doctor: Doctor, scene: Scene) -> None:
    sh(node, *scene.lines)
    found = doctor(scene.document, *scene.flags)
    assert [one["id"] for one in found] == scene.found.split(), found
    assert scene.says in found[0]["title"]
    assert scene.severity in ("", found[0]["severity"])
    for one in found:
        assert set(one) == {"id", "severity", "title", "why", "remedy", "evidence", "page"}
        assert one["page"] == f"docs/doctor.md#{one['id']}"
        assert one["evidence"]


@pytest.mark.parametrize("name", ["forwarding", "forwarding6", "reverse-path"])
def test_what_the_remedy_says_to_type_mends_it(node: Namespace, doctor: Doctor, name: str) -> None:
    scene = SCENES[name]
    sh(node, *scene.lines)
    [found] = doctor(scene.document)
    sh(node, typed(found))
    assert doctor(scene.document) == []


def typed(found: dict[str, Any]) -> str:
    """Return the first command of a remedy."""
    command: str = found["remedy"].split("`")[1]
    return command.replace("ipmasq-agent", f"{sys.executable} -m ipmasq_agent")


def test_forwarding_of_one_device_is_mended_there(node: Namespace, doctor: Doctor) -> None:
    sh(node, "ip link add eth0.7 type veth peer name far; ip link set eth0.7 up")
    sh(node, "ip link set far up")
    sh(node, "ip address add 192.168.7.100/24 dev eth0.7")
    off = ("net/ipv4/conf/cni0/forwarding", "net/ipv4/conf/eth0.7/forwarding")
    sh(node, f"sysctl -qw {' '.join(f'{name}=0' for name in off)}")
    [found] = doctor(KEPT)
    assert found["evidence"] == [f"{name} = 0" for name in off]
    sh(node, typed(found))
    assert doctor(KEPT) == []


def test_what_upstream_left_goes_by_what_the_remedy_says(node: Namespace, doctor: Doctor) -> None:
    sh(node, restore("nft", UPSTREAM.format("IP-MASQ-AGENT")))
    [found] = doctor(KEPT)
    sh(node, typed(found))
    assert doctor(KEPT) == []


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's settings, among which those of a module may be put that is not loaded."""
    folder = tmp_path / "net"
    folder.mkdir()
    for name in ("ipv4", "ipv6", "netfilter"):
        (folder / name).symlink_to(sysctl.NET / name)
    monkeypatch.setattr(sysctl, "NET", folder)
    return folder


def test_a_bridge_that_sends_nothing_back_is_found_where_it_matters(
    node: Namespace, doctor: Doctor, settings: Path
) -> None:
    sh(node, "bridge link set dev veth1 hairpin off")
    assert doctor(KEPT) == []
    (settings / "bridge").mkdir()
    asked = [settings / "bridge" / f"bridge-nf-call-{ip}tables" for ip in ("ip", "ip6")]
    for one in asked:
        one.write_text("1\n")
        [found] = doctor(KEPT)
        assert (found["id"], found["evidence"]) == ("hairpin-off", ["hairpin off: veth1"])
        one.write_text("0\n")
        assert doctor(KEPT) == []
    asked[0].write_text("1\n")
    sh(node, "bridge link set dev veth1 hairpin on")
    assert doctor(KEPT) == []


# What programs write on nodes that are fine, in IPv4. Where they masquerade, it is by a mark, or
# for containers of their own.
KUBERNETES = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic" -j MASQUERADE --random-fully
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-SVC-NPX46M4PTMTKRN6Y ! -s 172.20.0.0/16 -d 10.96.0.1/32 -p tcp -j KUBE-MARK-MASQ
-A KUBE-SVC-NPX46M4PTMTKRN6Y -m comment --comment "default/kubernetes" -j KUBE-SEP-AAAAAAAAAAAAAAAA
-A KUBE-SEP-AAAAAAAAAAAAAAAA -s 192.168.10.100/32 -j KUBE-MARK-MASQ
[14:1400] -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
COMMIT
*raw
-A PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -j CT --notrack
-A PREROUTING -d 10.96.0.10/32 -p udp -m udp --dport 53 -j CT --notrack
-A OUTPUT -s 169.254.20.10/32 -p udp -m udp --sport 53 -j CT --notrack
COMMIT"""
DOCKER = """*nat
:DOCKER - [0:0]
:LIBVIRT_PRT - [0:0]
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE
-A POSTROUTING -j LIBVIRT_PRT
-A LIBVIRT_PRT -s 192.168.122.0/24 -d 224.0.0.0/24 -j RETURN
-A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -p tcp -j MASQUERADE --to-ports 1024-65535
-A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -j MASQUERADE
COMMIT"""
K3S = """*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 172.20.0.0/24 -d 172.20.0.0/16 -j RETURN
-A FLANNEL-POSTRTG -s 172.20.0.0/16 -d 172.20.0.0/24 -j RETURN
-A FLANNEL-POSTRTG ! -s 172.20.0.0/16 -d 172.20.0.0/24 -j RETURN
-A FLANNEL-POSTRTG -s 172.20.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 172.20.0.0/16 -d 172.20.0.0/16 -j MASQUERADE --random-fully
COMMIT"""
KIND = """*nat
:DOCKER_POSTROUTING - [0:0]
-A POSTROUTING -d 192.168.10.1/32 -j DOCKER_POSTROUTING
-A DOCKER_POSTROUTING -s 127.0.0.11/32 -p udp -m udp --sport 53 -j SNAT --to-source 192.168.10.1:53
COMMIT"""
BRIDGES = """
ip link add docker0 type bridge
ip address add 172.17.0.1/16 dev docker0
ip link set docker0 up mtu 9000
ip link add vethd type veth peer name contained netns {beyond}
ip link set vethd master docker0 mtu 9000 up
ip link add nodelocaldns type bridge
ip address add 169.254.20.10/32 dev nodelocaldns
ip address add 10.96.0.10/32 dev nodelocaldns
ip link set nodelocaldns up
"""
QUIET = "nft add table inet firewalld; nft 'add chain inet firewalld nat_POSTROUTING { type nat \
hook postrouting priority srcnat + 10 ; }'; nft add chain inet firewalld nat_POST_public; \
nft add rule inet firewalld nat_POSTROUTING jump nat_POST_public"
ORDINARY = {
    "bare": "",
    **{f"kubernetes-{variant}": BRIDGES + restore(variant, KUBERNETES) for variant in VARIANTS},
    **{
        f"docker-{variant}": BRIDGES + restore(variant, DOCKER) + "\n" + QUIET
        for variant in VARIANTS
    },
    "kind": restore("nft", KIND) + "\nip route add 172.20.0.77/32 dev veth1",
}


@pytest.mark.parametrize("rules", ORDINARY.values(), ids=ORDINARY)
def test_an_ordinary_node_has_nothing(
    node: Namespace, beyond: Namespace, doctor: Doctor, rules: str
) -> None:
    sh(node, rules.replace("{beyond}", beyond.name))
    assert doctor(KEPT) == []
    # Of these documents each says less about whose packets are meant.
    assert doctor({**KEPT, "podCIDRs": ["172.20.0.0/16", "fd00:172:20::/48"]}) == []
    assert [one["id"] for one in doctor({})] == ["pod-cidr-masqueraded"]


def test_a_neighbour_of_another_mind_about_link_local_alone_is_no_failure(
    node: Namespace, doctor: Doctor
) -> None:
    # As k3s has it: flannel masquerades what leaves the cluster, as the document does.
    sh(node, restore("nft", K3S))
    sh(node, "ip link delete flannel.1")
    [found] = doctor(listed(but="192.168."))
    assert (found["id"], found["severity"]) == ("foreign-nat", "info")
    assert "169.254.0.0/16" in found["evidence"][0]
    assert "flannel" in found["title"]


@pytest.mark.parametrize("backend", ["iptables-nft", "iptables-legacy", "ipset", "nftables", "bpf"])
def test_where_our_rules_are_there_is_nothing(
    node: Namespace, doctor: Doctor, tmp_path: Path, backend: str
) -> None:
    (tmp_path / "applied").write_text(json.dumps(KEPT))
    flags = ("--backend", backend)
    words = ("--config", str(tmp_path / "applied"), "--enable-ipv6", *flags)
    assert status_of("apply", *words) == 0
    assert doctor(KEPT, *flags) == []
    # By the same rules another document is judged before it is rolled out.
    (tmp_path / "new").write_text("egressInterfaces: [ens*]\nnonMasqueradeCIDRs: []\n")
    found = doctor(KEPT, *flags, "--document", str(tmp_path / "new"))
    assert {one["id"] for one in found} == {"nothing-masqueraded"}
    # The chain of another name is left to nobody.
    if backend == "iptables-nft":
        found = doctor(KEPT, *flags, "--masq-chain", "IP-MASQ-2")
        assert [one["id"] for one in found] == ["own-leftover", "own-leftover"]
        found = doctor(KEPT, "--backend", "nftables")
        assert [one["id"] for one in found] == ["own-leftover"]
    if backend == "nftables":
        sh(node, "nft 'add table ip ip-masq { flags dormant; }'")
        [asleep] = doctor(KEPT, *flags)
        assert asleep["id"] == "table-dormant"
        sh(node, typed(asleep).replace("FAMILY NAME", "ip ip-masq"))
        assert doctor(KEPT, *flags) == []


def test_a_document_that_cannot_be_used_is_a_finding(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("nonMasqueradeCIDRs: [10.0.0.1/8]")
    [found] = doctor(KEPT, "--document", str(tmp_path / "new"))
    assert found["id"] == "document-refused"
    assert "did you mean 10.0.0.0/8?" in found["evidence"][0]


def test_a_document_that_is_not_there_is_an_error(
    node: Namespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("doctor", "--document", str(tmp_path / "nowhere")) == 2
    assert "does not exist" in capsys.readouterr().err


def test_an_old_kernel_is_told_by_its_name(node: Namespace, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(json.dumps(listed(but="192.168.10.")))
    for backend, expected in (
        ("bpf", {"kernel-too-old": "error"}),
        ("iptables-nft", {"vxlan-masqueraded": "warning"}),
    ):
        words = ["doctor", f"--config={tmp_path / 'config'}", "--enable-ipv6", "-o", "json"]
        argv = ["setarch", platform.machine(), "--uname-2.6", sys.executable, "-m", "ipmasq_agent"]
        done = subprocess.run(
            [*argv, *words, "--backend", backend], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done.stderr
        found = {one["id"]: one["severity"] for one in json.loads(done.stdout)}
        assert found == expected


def test_a_table_of_connections_that_fills_up_is_told(node: Namespace, tmp_path: Path) -> None:
    # The limit is the machine's, not a namespace's: a lower one is laid over it for the verb.
    limit = Path("/proc/sys/net/netfilter/nf_conntrack_max")
    (tmp_path / "limit").write_text("10\n")
    (tmp_path / "config").write_text(json.dumps(KEPT))
    made = "conntrack -I -s 172.20.0.10 -d 10.10.1.200 -p udp --sport $port --dport 53 -t 600"
    sh(node, f"for port in 1 2 3 4 5 6 7 8; do {made}; done")
    words = f"{sys.executable} -m ipmasq_agent doctor --config {tmp_path}/config --enable-ipv6"
    script = f"mount --bind {tmp_path}/limit {limit} && exec {words} -o json"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert [one["id"] for one in json.loads(done.stdout)] == ["conntrack-full"]


def test_ciliums_map_and_its_agents_state_are_signs(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(os.environ[PINS]).parent
    monkeypatch.setattr(bpffs, "mounts", lambda: [place])
    monkeypatch.setattr(doctor_facts, "CILIUM_STATE", tmp_path / "state")
    assert doctor(KEPT) == []
    pinned = place / "cilium_ipmasq_v4"
    words = f"bpftool map create {pinned} type lpm_trie key 8 value 1 entries 8 name m flags 1"
    subprocess.run(words.split(), check=True)
    assert [one["evidence"] for one in doctor(KEPT)] == [[str(pinned)]]
    settings = {"EnableBPFMasquerade": True, "EnableIPv4Masquerade": True}
    (tmp_path / "state").write_text(json.dumps(settings))
    [found] = doctor(KEPT)
    assert (found["id"], len(found["evidence"])) == ("cilium-masquerades", 2)
    (tmp_path / "state").write_text(json.dumps({"EnableBPFMasquerade": False}))
    assert doctor(KEPT) == []


@pytest.mark.parametrize("tables", ["none", "nft", "legacy"])
def test_nothing_is_changed_by_looking(
    node: Namespace, beyond: Namespace, doctor: Doctor, tables: str
) -> None:
    if tables != "none":
        sh(node, BRIDGES.format(beyond=beyond.name))
        sh(node, restore(tables, KUBERNETES), restore(tables, UPSTREAM.format("IP-MASQ-AGENT")))
        sh(node, iptables(tables, FLANNEL.format("fd00:172:20::/48"), "6"))
    before = oracle.snapshot(handles=True), state_of(node)
    found = doctor(KEPT)
    assert [one["id"] for one in found] == (
        [] if tables == "none" else ["foreign-nat", "upstream-chain"]
    )
    assert (oracle.snapshot(handles=True), state_of(node)) == before
    if tables != "none":
        marking = oracle.read_chain(
            "nft" if tables == "nft" else "legacy", "ipv4", "KUBE-MARK-MASQ"
        )
        assert marking is not None
        assert [rule.packets for rule in marking] == [14]


def state_of(ns: Namespace) -> str:
    """Settings, names of devices and rules of routing; what is up or learnt changes by itself."""
    command = "sysctl net.ipv4 net.ipv6.conf; ip rule; ip -6 rule; ip -o link | cut -d: -f2"
    return ns.run(["sh", "-c", command]).stdout


@pytest.mark.parametrize("far", ["10.10.1.200", "fd00:10:10::200"])
@pytest.mark.parametrize("gateway", [True, False], ids=["gateway", "pod"])
def test_a_probe_tells_whether_a_reply_finds_pods(
    node: Namespace, beyond: Namespace, doctor: Doctor, tmp_path: Path, far: str, gateway: bool
) -> None:
    pods = "fd00:172:20::/64" if ":" in far else "172.20.0.0/24"
    if not gateway:
        # As with Calico: the node has no address among the pods'.
        sh(node, "ip address flush dev cni0 scope global", f"ip route add {pods} dev cni0")
    kept = {"nonMasqueradeCIDRs": [*LIST, f"{far}/{128 if ':' in far else 32}"]}
    probe = ("--probe", far)
    [found] = doctor(kept, *probe)
    assert found["id"] == "no-way-back"
    [found] = doctor(kept, "--probe", f"[{far}]:9")
    assert found["id"] == "no-way-back"
    # What is masqueraded finds its way.
    (tmp_path / "applied").write_text(json.dumps(KEPT))
    assert status_of("apply", "--enable-ipv6", "--config", str(tmp_path / "applied")) == 0
    assert doctor(KEPT, *probe) == []


def test_a_probe_that_nobody_answers_tells_nothing(doctor: Doctor) -> None:
    kept = {"nonMasqueradeCIDRs": [*LIST, "10.10.1.0/24"]}
    # One is lost beyond the router, the other never leaves: no neighbour has the address.
    [found, other] = doctor(kept, "--probe", "10.10.1.201", "--probe", "192.168.10.99")
    assert [found["id"], other["id"]] == ["probe-unanswered"] * 2


def test_what_cannot_be_probed_hides_no_other_answer(
    node: Namespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sh(node, "ip -6 address flush dev cni0 scope global")
    (tmp_path / "config").write_text(json.dumps(listed("10.10.1.0/24")))
    probes = ("--probe=fd00:10:10::200", "--probe=203.0.113.9", "--probe=10.10.1.200")
    sh(node, "ip route add prohibit 203.0.113.9")
    words = ("--config", str(tmp_path / "config"), "--enable-ipv6", "-o", "json")
    assert status_of("doctor", *words, *probes) == 2
    captured = capsys.readouterr()
    assert [one["id"] for one in json.loads(captured.out)] == ["no-way-back"]
    assert "error: --probe fd00:10:10::200: no ipv6 pods are on this node" in captured.err
    assert "error: --probe 203.0.113.9: " in captured.err


def test_a_probe_that_finds_its_way_back_is_no_finding(
    node: Namespace, beyond: Namespace, doctor: Doctor
) -> None:
    beyond.run(["ip", "route", "add", "172.20.0.0/24", "via", "192.168.10.100"])
    assert doctor({"nonMasqueradeCIDRs": [*LIST, "10.10.1.0/24"]}, "--probe", "10.10.1.200") == []


def test_programs_are_only_where_packets_lead_out(node: Namespace, doctor: Doctor) -> None:
    assert doctor(listed(but="172."), "--backend", "bpf") == []
    document = {**listed(but="172."), "egressInterfaces": ["eth0", "cni0"]}
    [found] = doctor(document, "--backend", "bpf")
    assert found["id"] == "pod-cidr-masqueraded"
    assert found["title"].endswith("172.20.0.0/24")


CILIUM = """
address flush dev cni0
link delete flannel.1
link delete veth1
link add cilium_host mtu 1500 type veth peer name cilium_net
link set cilium_host up
link set cilium_net up
address add 172.20.0.77/32 dev cilium_host
route add 172.20.0.0/24 via 172.20.0.77 dev cilium_host src 172.20.0.77
route add 172.20.1.0/24 via 172.20.0.77 dev cilium_host src 172.20.0.77 mtu 1450
link add lxc1 mtu 1500 type veth peer name pod netns {beyond}
link set lxc1 up
"""


def test_pods_behind_ciliums_device_are_here_and_those_of_other_nodes_are_not(
    node: Namespace, beyond: Namespace, doctor: Doctor
) -> None:
    batch(node, CILIUM.format(beyond=beyond.name))
    assert doctor(KEPT) == []
    [found] = doctor({**KEPT, "podCIDRs": ["10.244.0.0/16", "fd00:172:20::/48"]})
    assert found["id"] == "pods-not-covered"
    assert found["title"].endswith(": 172.20.0.0/24")
    beyond.run(["ip", "route", "add", "172.20.0.0/24", "via", "192.168.10.100"])
    assert doctor(listed("10.10.1.0/24"), "--probe", "10.10.1.200") == []


def test_rules_elsewhere_that_cannot_be_read_are_no_finding(
    node: Namespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(questions.Here, "elsewhere", ["nftables"])
    monkeypatch.setattr(questions.Here, "unread", ("bpf cannot be looked into: not permitted",))
    (tmp_path / "config").write_text(json.dumps(KEPT))
    words = ("--config", str(tmp_path / "config"), "--enable-ipv6", "-o", "json")
    assert status_of("doctor", *words) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: bpf cannot be looked into: not permitted\n"
    [found] = json.loads(captured.out)
    assert found["evidence"] == ["nftables holds rules of ours that decide too"]


def test_what_may_not_be_looked_at_is_an_error_and_no_clean_node(node: Namespace) -> None:
    words = [sys.executable, "-m", "ipmasq_agent", "doctor", "-o", "json"]
    argv = ["setpriv", "--bounding-set=-net_admin", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "error: the data plane: " in done.stderr
    assert isinstance(json.loads(done.stdout), list)
