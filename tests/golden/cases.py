"""The plans whose restore text stands in the files of this directory, letter by letter.

After an intended change, write them anew with ``python -m tests.golden.cases``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ipmasq_agent.config.assemble import assemble_family
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.config.model import Flags
from ipmasq_agent.planes.iptables.compile import absent, compile_policy
from ipmasq_agent.planes.iptables.plan import ChainPlan, plan
from ipmasq_agent.planes.iptables.plan import restore_text as text_of
from ipmasq_agent.planes.iptables.text import parse_rule
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.rules.table import Chain, Table, empty_table
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import Capabilities, FamilyPolicy, PortRange

V4, V6 = Family.IPV4, Family.IPV6
PORTS = (PortRange(1024, 29999), PortRange(32768, 49151), PortRange(61000, 65535))
STORY = "nonMasqueradeCIDRs: [172.20.0.0/16, 192.168.10.101/32]"
STORY_2 = "nonMasqueradeCIDRs: [172.20.0.0/16, 10.10.1.0/24, 10.10.2.0/24, 192.168.10.101/32]"


def _policy(document: str, flags: Flags, family: Family, capable: bool = True) -> FamilyPolicy:
    config = parse_document(document.encode(), "cm", flags).config
    return assemble_family(config, family, Capabilities(random_fully=capable))


def _new(document: str, flags: Flags, family: Family, capable: bool = True) -> ChainPlan:
    policy = _policy(document, flags, family, capable)
    return plan(empty_table(family), compile_policy(policy, Placement()))


def _crowded() -> Table:
    """A table in which kube-proxy and Docker live, and our jump stands twice."""
    jump = "-m addrtype ! --dst-type LOCAL -j IP-MASQ"
    hook = ("-j KUBE-POSTROUTING", jump, "-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", jump)
    rules = ("-d 10.0.0.0/8 -j RETURN", "-j MASQUERADE")
    return Table(
        V4,
        {
            "POSTROUTING": Chain("POSTROUTING", "ACCEPT", tuple(parse_rule(r, V4) for r in hook)),
            "IP-MASQ": Chain("IP-MASQ", None, tuple(parse_rule(r, V4) for r in rules)),
        },
    )


def _edited() -> ChainPlan:
    first = compile_policy(_policy(STORY, Flags(), V4), Placement())
    second = compile_policy(_policy(STORY_2, Flags(), V4), Placement())
    return plan(plan(empty_table(V4), first).result, second)


def _healed_first() -> ChainPlan:
    placement = Placement(jump_first=True)
    return plan(_crowded(), compile_policy(_policy(STORY, Flags(), V4), placement))


DUAL = Flags(enable_ipv6=True)
CASES: dict[str, Callable[[], ChainPlan]] = {
    "defaults": lambda: _new("", Flags(), V4),
    "defaults-ipv6": lambda: _new("", DUAL, V6),
    "reserved-ranges": lambda: _new("", Flags(nomasq_all_reserved_ranges=True), V4),
    "everything-masqueraded": lambda: _new("{nonMasqueradeCIDRs: [], masqLinkLocal: true}"
        .replace("{", "---\n{"), Flags(), V4),
    "nothing-masqueraded": lambda: _new("nonMasqueradeCIDRs: [0.0.0.0/0]", Flags(), V4),
    "port-ranges": lambda: _new(STORY, Flags(to_ports=PORTS), V4),
    "port-ranges-ipv6-old-host": lambda: _new(
        "nonMasqueradeCIDRs: ['fd00::/8']", Flags(enable_ipv6=True, to_ports=PORTS[:1]), V6, False
    ),
    "two-entries-more": _edited,
    "jump-first-healed": _healed_first,
    "cleanup": lambda: plan(_crowded(), absent(Placement())),
}  # fmt: skip

if __name__ == "__main__":
    for name, case in CASES.items():
        Path(__file__).with_name(f"{name}.restore").write_text(text_of(case()))
