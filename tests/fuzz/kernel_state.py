"""What the kernel and the programs that speak for it tell, as messages, text and maps."""

from __future__ import annotations

from ipmasq_agent.answers.observed import Sight
from ipmasq_agent.bpf import lpm
from ipmasq_agent.netlink import ct, rt, sockets
from ipmasq_agent.netlink.expressions import expressions_of
from ipmasq_agent.netlink.ipset import set_header
from ipmasq_agent.netlink.nft_batch import delete_rules
from ipmasq_agent.netlink.nft_elements import elements_of, intervals_of
from ipmasq_agent.netlink.nft_objects import (
    ListedRule,
    base_chains,
    chain_info,
    list_intervals,
    list_keys,
    list_rules,
    set_info,
    table_infos,
)
from ipmasq_agent.planes.bpf import interpret as bpf
from ipmasq_agent.planes.bpf import layout
from ipmasq_agent.planes.bpf.bitmap import PARTS, bitmap, code_of
from ipmasq_agent.planes.bpf.state import BpfRules, BpfState, DevicePrograms, describe
from ipmasq_agent.planes.iptables import interpret as iptables
from ipmasq_agent.planes.iptables import set_text
from ipmasq_agent.planes.iptables.compile import absent
from ipmasq_agent.planes.iptables.nft_native import is_shown_in_full, told_by_expressions
from ipmasq_agent.planes.iptables.ownership import refuse_others
from ipmasq_agent.planes.iptables.plan import plan, restore_text
from ipmasq_agent.planes.iptables.save import Sieve, parse_listed, parse_saved
from ipmasq_agent.planes.iptables.shape import counts_of, digest_of
from ipmasq_agent.planes.nftables import interpret as nftables
from ipmasq_agent.planes.nftables.compile import absent as no_table
from ipmasq_agent.planes.nftables.plan import plan as plan_table
from ipmasq_agent.planes.nftables.read import read_frame, read_table, read_table_at
from ipmasq_agent.planes.nftables.state import SetKind
from ipmasq_agent.planes.nftables.wire import devices_of, set_of
from ipmasq_agent.planes.prefixset import AddressSet, element
from ipmasq_agent.planes.rules.native import as_iptables, told
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import EgressDevice
from ipmasq_agent.policy.flows import Flow
from ipmasq_agent.policy.ports import kernel_pools, own_pool
from tests.fuzz.documents import PLACEMENT
from tests.fuzz.doors import kernel

CHAIN = PLACEMENT.chain
V4 = Family.IPV4


def _text(data: bytes) -> tuple[str, Family]:
    return data.decode(errors="surrogateescape"), list(Family)[len(data) % 2]


def show(flow: Flow) -> None:
    """Show a connection as programs and people get it."""
    sight = Sight(0.0, flow)
    sight.as_data()
    sight.cells()


# -- text ----------------------------------------------------------------------------------


def iptables_save(data: bytes) -> None:
    """Read a whole table, say what it decides, and plan to leave it."""
    text, family = _text(data)
    sieve = Sieve((CHAIN, "POSTROUTING"))
    kept = "\n".join(line for line in text.split("\n") if sieve(line))
    parse_saved(kept, family, writer="iptables-save")
    table = parse_saved(text, family, writer="iptables-save")
    interpretation = iptables.interpret(table, PLACEMENT)
    interpretation.policy.decisions.decide(1)
    iptables.interpret(table, PLACEMENT, 1)
    refuse_others(table, CHAIN)
    restore_text(plan(table, absent(PLACEMENT)))


def iptables_list(data: bytes) -> None:
    """Read one chain as iptables-nft lists it."""
    text, family = _text(data)
    for rule in parse_listed(text, family, CHAIN, writer="iptables-nft", unreadable=(1,)):
        str(rule.text)


def ipset(data: bytes) -> None:
    """Read a saved set."""
    text, family = _text(data)
    found = set_text.parse_saved(text, family)
    found.lines()
    list(found.matched())


def legacy_table(data: bytes) -> None:
    """Take the digest of a table of either family."""
    for family in Family:
        digest_of(memoryview(data), family, 0, len(data) - 1)


def legacy_counts(data: bytes) -> None:
    """Read what the rules of a chain in a table of either family have counted."""
    for family in Family:
        counts_of(memoryview(data), family, "IP-MASQ")


# -- netlink --------------------------------------------------------------------------------


def nft_rule(data: bytes) -> None:
    """Take a rule apart, and tell it in the words of either program."""
    expressions = expressions_of(data)
    for family in Family:
        is_shown_in_full(expressions, family)
        as_iptables(told(expressions, family, {}, str)).text.encode(errors="surrogateescape")
        for rule in told_by_expressions([ListedRule(CHAIN, 1, data, None)], family):
            rule.text.encode(errors="surrogateescape")


def nft_elements(data: bytes) -> None:
    """Take the elements of a set apart; the first byte says of which family and kind."""
    choice, data = (data[0], data[1:]) if data else (0, b"")
    family = list(Family)[choice & 1]
    if choice & 2:
        devices_of(one.key for one in elements_of(data))
        return
    kinds = SetKind.ADDRESSES, SetKind.TRANSLATIONS, SetKind.PARTS
    held = set_of(kinds[choice // 4 % 3], family, intervals_of(family, data))
    list(held.lines(family))


def nft_table(data: bytes) -> None:
    """Read our table, and what others have beside it."""
    with kernel(data):
        frame = read_frame(V4, "ip-masq")
        for table in (read_table(frame), read_table_at(frame, 1)):
            interpretation = nftables.interpret(table)
            interpretation.policy.decisions.decide(1)
            table.lines()
            plan_table(table, no_table(V4, PLACEMENT))
    with kernel(data):
        table_infos(V4)
        base_chains(V4)
        chain_info(V4, "nat", CHAIN)
        list_rules(V4, "nat", CHAIN)
        set_info(V4, "nat", CHAIN)
        list_keys(V4, "nat", CHAIN)
        list_intervals(V4, "nat", CHAIN)


def nft_commit(data: bytes) -> None:
    """Read what the kernel answers to a transaction."""
    with kernel(data):
        delete_rules(V4, "nat", CHAIN, [1, 2])


def network(data: bytes) -> None:
    """Read devices, addresses, routes and sockets; a question for each input."""
    questions = (
        rt.list_links,
        rt.list_addresses,
        lambda: list(rt.list_routes(V4)),
        lambda: list(rt.list_routes(Family.IPV6, kinds=None)),
        lambda: rt.look_up(V4, 1),
        rt.tunnel_ends,
        lambda: rt.routing_marks(V4),
        lambda: rt.proxies(V4, 1),
        sockets.list_connected,
        lambda: set_header("IP-MASQ-4"),
    )
    choice, data = (data[0], data[1:]) if data else (0, b"")
    with kernel(data):
        questions[choice % len(questions)]()


def conntrack(data: bytes) -> None:
    """Read connections, each message and a whole list of them."""
    flow = ct.flow_of(data)
    if flow is not None:
        show(flow)
    with kernel(data):
        ct.ports_taken(kernel_pools(()), 5)
    with kernel(data):
        for flow in ct.tracked():
            show(flow)


# -- bpf ------------------------------------------------------------------------------------

_PORTS = (own_pool(()), own_pool(()))
_ENTRY = 40 + 32  # a flow's key and its value: the largest of what maps hold
_MOST_ENTRIES = 50
_TRIE_KEY = lpm.key_size(layout.ADDRESS_SIZE)


def bpf_maps(data: bytes) -> None:
    """Read maps that somebody else has written to; sizes alone are the kernel's promise."""
    end = min(len(data), _MOST_ENTRIES * _ENTRY)
    entries = [data[at : at + _ENTRY] for at in range(0, end - _ENTRY + 1, _ENTRY)]
    for each in entries:
        key, value = each[:40], each[40:]
        show(layout.unpack_flow("flows", key, value, 1).flow)
        show(layout.unpack_flow("kept", key, value[:8], 1).flow)
        layout.unpack_exhausted(each[:20], each[20:28])
        layout.unpack_own(each[:20])
        str(layout.unpack_device(1, each[:44]).device.sources)
        str(layout.unpack_settings(each + bytes(8)))
        for _, flow in layout.unpack_begun(each + bytes(8)):
            show(flow)
        for shared in layout.shared_ports(key, value, 1):
            layout.unpack_shared(shared, _PORTS)
        layout.expiries("flows", value)
    keys = [(each[:_TRIE_KEY], each[_TRIE_KEY]) for each in entries]
    for family in Family:
        found = sorted({element(a, n, v == 1) for a, n, v in lpm.unpack_keys(family, keys)})
        rules = BpfRules(AddressSet("decisions", family, found))
        device = EgressDevice(1, {})
        state = BpfState(
            family, rules, {"eth0": DevicePrograms(device, complete=True)}, present={"eth0": device}
        )
        describe(state)
        bpf.interpret(state).policy.decisions.decide(1)
        if family is V4:
            made = bitmap(found)
            blocks = {256 | n: made.outline[n * 64 : n * 64 + 64] for n in range(PARTS)}
            code_of(1, {**blocks, **made.details}.get)
