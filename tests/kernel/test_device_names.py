"""Every name that the kernel lets a device have is read and written as it is, or refused."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ipmasq_agent.agent.reconcile import reconcile_family
from ipmasq_agent.errors import HostError
from ipmasq_agent.planes import detect
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.plane import AnyPlane
from ipmasq_agent.planes.rules.rule import quote
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import DecisionMap
from ipmasq_agent.policy.model import FamilyPolicy, Guards
from tests.kernel.agent import status_of
from tests.netns import Namespace

NAMES = ("iptables-nft", "iptables-legacy", "ipset-nft", "ipset-legacy", "nftables")
# dev_valid_name, net/core/dev.c, with its isspace of lib/ctype.c.
_NEVER = frozenset(b"/: \t\n\v\f\r\0\xa0")
_BYTES = [n for n in range(1, 256) if n not in _NEVER]
_HARD = b"\"\\'!-+#%$`;&|<>()*?[]{}~^=,.@ab0\x1c\x1f\x7f\x85\xff\xc3\xa9"


def _names() -> st.SearchStrategy[bytes]:
    alphabets = st.sampled_from([_BYTES, sorted(set(_HARD))])
    lists = alphabets.flatmap(lambda some: st.lists(st.sampled_from(some), min_size=1, max_size=15))
    return lists.map(bytes).filter(lambda name: name not in (b".", b".."))


@pytest.fixture(scope="module", params=[(n, f) for n in NAMES for f in Family], ids=str)
def place(request: pytest.FixtureRequest) -> Iterator[tuple[str, AnyPlane, Family]]:
    name, family = request.param
    with Namespace() as namespace, namespace.entered():
        backend = detect.make(name, Placement())
        yield name, backend, family
        backend.close()


def _policy(family: Family, *devices: str) -> FamilyPolicy:
    return FamilyPolicy(DecisionMap(family, ()), Guards(devices=tuple(sorted(devices))))


@given(packed=_names())
@example(packed=b'a"b')
@example(packed=b'"b')
@example(packed=b'"b"')
@example(packed=b'a\\"')
@example(packed=b"!neg")
@example(packed=b"!")
@example(packed=b"-foo")
@example(packed=b"--t")
@example(packed=b"-j")
@example(packed=b"eth+")
@example(packed=b"+")
@example(packed=b"\xe3\x80\x80")  # a space of Unicode, and none of the kernel's
@example(packed=b"\xff\xfe")
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_device_of_any_name_guards_our_chain_and_stands_in_rules_of_others(
    place: tuple[str, AnyPlane, Family], packed: bytes
) -> None:
    name, backend, family = place
    device = packed.decode(errors="surrogateescape")
    variant = "legacy" if "legacy" in str(backend.our_base(family)) else "nft"
    iptables = f"{'iptables' if family is Family.IPV4 else 'ip6tables'}-{variant}"
    # Somebody else's rules, which are on the way of each read.
    lines = ["*nat", ":POSTROUTING ACCEPT [0:0]", ":THEIRS - [0:0]", "-F POSTROUTING"]
    lines += [f"-A POSTROUTING -o {quote(device)} -j THEIRS"]
    lines += [f'-A THEIRS -i {quote(device)} -m comment --comment "a \\"b\\" -o" -j RETURN']
    text = "\n".join([*lines, "COMMIT", ""]).encode(errors="surrogateescape")
    subprocess.run([f"{iptables}-restore", "--noflush"], input=text, check=True)
    reconcile_family(backend, family, _policy(family, "eth0"))
    before = _saved(iptables)

    wanted = _policy(family, "eth0", device)
    if device.endswith("+") and backend.name != "nftables":
        with pytest.raises(HostError, match=r"a \+ at the end stands for all") as caught:
            reconcile_family(backend, family, wanted)
        assert repr(device) in str(caught.value)
        assert _saved(iptables) == before
    else:
        assert reconcile_family(backend, family, wanted)
        fresh = detect.make(name, Placement())
        try:
            assert not reconcile_family(fresh, family, wanted)
            assert fresh.dialect.interpret(fresh.read(family)).policy.guards == wanted.guards
        finally:
            fresh.close()
    assert reconcile_family(backend, family, None)
    assert not reconcile_family(backend, family, None)
    after = _saved(iptables)
    assert b"IP-MASQ" not in after
    assert b"-A POSTROUTING " + (b"-o " + packed + b" " if packed != b"+" else b"") in after


def _saved(iptables: str) -> bytes:
    saved = subprocess.run([f"{iptables}-save", "-t", "nat"], capture_output=True, check=True)
    return re.sub(rb"(?m)^#.*\n|\[\d+:\d+\]", b"", saved.stdout)


@pytest.mark.parametrize("backend", ["iptables-nft", "iptables-legacy", "ipset", "nftables"])
def test_egress_through_every_device_converges_whatever_their_names_are(
    in_ns: Namespace, tmp_path: Path, backend: str
) -> None:
    for device in ('a"b', "!neg", "it's", "-x"):
        in_ns.run(["ip", "link", "add", "name", device, "type", "bridge"])
    document = tmp_path / "config"
    document.write_text('egressInterfaces: ["*"]\nnonMasqueradeCIDRs: [10.0.0.0/8]\n')
    words = (f"--config={document}", f"--backend={backend}", "--enable-ipv6")
    assert status_of("apply", *words) == 0
    assert status_of("diff", *words) == 0
    assert status_of("list", f"--backend={backend}") == 0
    assert status_of("cleanup") == 0
    assert status_of("diff", *words) == 1
