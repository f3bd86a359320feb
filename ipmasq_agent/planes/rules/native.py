"""Rules of nf_tables, whoever wrote them and however, told by the kernel's own expressions.

What comes of them are the options that rules of iptables are read into, so that one
interpretation answers for all: what a packet's destination, source, device or mark decides
is told exactly; what narrows a rule to some packets in another way is told as such; and what
cannot be read is an option that no reader knows, which makes the rule unreadable for the
packets that the rest of it matches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from ipmasq_agent.netlink import expressions as expr
from ipmasq_agent.netlink import nft_numbers as nft
from ipmasq_agent.netlink.attributes import text
from ipmasq_agent.planes.rules.rule import Option, Rule
from ipmasq_agent.planes.rules.table import Spans
from ipmasq_agent.planes.rules.xtables import match_of, target_of
from ipmasq_agent.policy.addresses import Family, Prefix, range_text

Devices = tuple[str, ...]
Held = Spans | Devices
"""What is known of a set: addresses, or names of devices."""

_ENDINGS = {nft.NF_ACCEPT: "ACCEPT", nft.NF_DROP: "DROP", nft.NFT_RETURN: "RETURN"}
_VERBS = {nft.NFT_JUMP: "jump", nft.NFT_GOTO: "goto"}
_SIGNS = {nft.NFT_CMP_EQ: "", nft.NFT_CMP_NEQ: "!= ", nft.NFT_CMP_LT: "< ", nft.NFT_CMP_LTE: "<= "}
_SIGNS |= {nft.NFT_CMP_GT: "> ", nft.NFT_CMP_GTE: ">= "}
_NETWORK = {  # offset in the header → field
    Family.IPV4: {12: "source", 16: "destination", 9: "protocol"},
    Family.IPV6: {8: "source", 24: "destination", 6: "protocol"},
}
_PORTS = {(0, 2): "sport", (2, 2): "dport"}
_META = {
    nft.NFT_META_PROTOCOL: ("ethertype", "meta nfproto"),
    nft.NFT_META_MARK: ("mark", "meta mark"),
    nft.NFT_META_IIF: ("iif", "iifname"),
    nft.NFT_META_OIF: ("oif", "oifname"),
    nft.NFT_META_IIFNAME: ("in-interface", "iifname"),
    nft.NFT_META_OIFNAME: ("out-interface", "oifname"),
    nft.NFT_META_NFPROTO: ("nfproto", "meta nfproto"),
    nft.NFT_META_L4PROTO: ("protocol", "meta l4proto"),
}
_DEVICES = {"iif": "in-interface", "oif": "out-interface"}
_DEVICES |= {"in-interface": "in-interface", "out-interface": "out-interface"}
_CT_REPLY = 1  # IP_CT_DIR_REPLY, whose source is the destination of what was sent
_CT_SOURCES = frozenset({nft.NFT_CT_SRC, nft.NFT_CT_SRC_IP, nft.NFT_CT_SRC_IP6})
_CT_DESTINATIONS = frozenset({nft.NFT_CT_DST, nft.NFT_CT_DST_IP, nft.NFT_CT_DST_IP6})
_STATES = {1: "INVALID", 2: "ESTABLISHED", 4: "RELATED", 8: "NEW", 64: "UNTRACKED"}
_TYPES = {1: "UNICAST", 2: "LOCAL", 3: "BROADCAST", 4: "ANYCAST", 5: "MULTICAST"}  # RTN_...
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}
_FAMILIES = {nft.NFPROTO_IPV4: "ipv4", nft.NFPROTO_IPV6: "ipv6"}
_ETHERTYPES = {0x0800: "ipv4", 0x86DD: "ipv6"}
_NARROWING = frozenset({"limit", "quota", "connlimit"})
_SILENT = frozenset({"log", "last"})
_ORDER = ["source", "destination", "in-interface", "out-interface", "protocol", "mark"]
_ORDER += ["dst-type", "jump", "goto", "to-source"]


def told(
    expressions: Iterable[expr.Expression],
    family: Family,
    sets: Mapping[str, Held],
    device: Callable[[int], str],
) -> Rule:
    """Return the rule that expressions are, for packets of one family.

    Args:
        expressions: as the kernel lists them.
        family: whose packets; a table of the family inet has rules for both.
        sets: what is known of the sets that the rule asks; the rest cannot be read.
        device: the name of the device with a number.
    """
    program = _Program(family, sets, device)
    comment = None
    for expression in expressions:
        program.step(expression)
        if isinstance(expression, expr.XtMatch) and expression.name == "comment":
            comment = text(expression.info.partition(b"\0")[0])  # struct xt_comment_info
    return Rule(" ".join(program.words), tuple(sorted(program.options)), comment)


def as_iptables(rule: Rule) -> Rule:
    """Return a rule as iptables would write it, where it has words for all of it."""
    if any(option.name not in _ORDER for option in rule.meaning):
        return rule
    return replace(rule, written=tuple(sorted(rule.meaning, key=lambda o: _ORDER.index(o.name))))


class _Loaded(NamedTuple):
    """What a register holds: which field, the mask laid over it, or plain data."""

    subject: str
    shown: str
    mask: bytes | None = None
    data: bytes = b""


_NOTHING = _Loaded("unreadable", "(unknown)")


def _narrowing(shown: str) -> _Loaded:
    """Return a field that is not the destination, so that comparing it narrows a rule."""
    return _Loaded("narrowing", shown)


class _Program:
    """A rule on its way from expressions to options."""

    def __init__(
        self, family: Family, sets: Mapping[str, Held], device: Callable[[int], str]
    ) -> None:
        self.family = family
        self.sets = sets
        self.device = device
        self.options: list[Option] = []
        self.words: list[str] = []
        self.registers: dict[int, _Loaded] = {}

    def step(self, expression: expr.Expression) -> None:
        match expression:
            case expr.Payload(into=int(into), base=base, offset=offset, length=length):
                self.registers[into] = self._header_field(base, offset, length)
            case expr.Meta(key=key, source=int()):  # something is set
                is_mark = key == nft.NFT_META_MARK
                words = f"meta {'mark' if is_mark else key} set"
                self._take(words, *(Option("marks"),) * is_mark)
            case expr.Meta(into=int(into), key=key):
                self.registers[into] = (
                    _Loaded(*_META[key]) if key in _META else _narrowing(f"meta {key}")
                )
            case expr.Conntrack(into=int(into), key=key, direction=direction):
                self.registers[into] = _tracked(key, direction)
            case expr.Conntrack(key=key):
                self.words.append(f"ct {key} set")
            case expr.Fib(into, result, flags):
                self.registers[into] = _routed(result, flags)
            case expr.NumberGenerator(into, modulus, kind):
                how = "random" if kind == nft.NFT_NG_RANDOM else "inc"
                self.registers[into] = _narrowing(f"numgen {how} mod {modulus}")
            case expr.OtherLoad(kind, int(into)):
                self.registers[into] = _narrowing(kind)
            case expr.Bitwise():
                self._mask(expression)
            case expr.ByteOrder(register, into):
                self.registers[into] = self._held(register)
            case expr.Compare():
                self._compare(expression)
            case expr.Range():
                self._range(expression)
            case expr.SetLookup():
                self._look_up(expression)
            case expr.Immediate(data=expr.NftVerdict(code, chain)):
                self._end(code, chain)
            case expr.Immediate(into, bytes(data)):
                self.registers[into] = _Loaded("data", "", data=data)
            case expr.Masquerade(flags, first, last):
                ports = self._ports(first, last)
                self._to(f"masquerade{ports and f' to {ports}'}{_how(flags)}", "MASQUERADE")
            case expr.Nat():
                self._translate(expression)
            case expr.XtMatch(name, revision, info):
                words, options = match_of(name, revision, info)
                self._take(words, *options)
            case expr.XtTarget(name, revision, info):
                words, options = target_of(name, revision, info)
                self._take(words, *options)
            case expr.Counter() | expr.ObjectReference(type=nft.NFT_OBJECT_COUNTER):
                pass
            case expr.Opaque(kind="notrack"):
                self._to("notrack", "NOTRACK")
            case expr.Opaque(kind=kind) if kind in _NARROWING:
                self._take(kind, Option("narrowing", (kind,)))
            case expr.Opaque(kind=kind) if kind in _SILENT:
                pass
            case _:
                kind = expr.kind_of(expression)
                self._take(f"({kind})", Option("expression", (kind,)))

    def _held(self, register: int | None) -> _Loaded:
        return _NOTHING if register is None else self.registers.get(register, _NOTHING)

    def _take(self, words: str, *options: Option) -> None:
        self.words.append(words)
        self.options += options

    def _to(self, words: str, target: str, *options: Option) -> None:
        self._take(words, Option("jump", (target,)), *options)

    def _header_field(self, base: int, offset: int, length: int) -> _Loaded:
        family = self.family
        if base == nft.NFT_PAYLOAD_NETWORK_HEADER:
            subject, ip = _NETWORK[family].get(offset), nft.NFT_FAMILY[family]
            if subject is not None:
                shown = {"source": f"{ip} saddr", "destination": f"{ip} daddr"}
                return _Loaded(subject, shown.get(subject, "meta l4proto"))
            start = 16 if family is Family.IPV4 else 24
            within = offset < start + family.bits // 8 and offset + length > start
            return _Loaded(
                "unreadable" if within else "narrowing", f"@nh,{offset * 8},{length * 8}"
            )
        if base == nft.NFT_PAYLOAD_TRANSPORT_HEADER and (offset, length) in _PORTS:
            return _narrowing(f"th {_PORTS[offset, length]}")
        bases = {nft.NFT_PAYLOAD_LL_HEADER: "@ll", nft.NFT_PAYLOAD_TRANSPORT_HEADER: "@th"}
        if base not in bases:
            return _NOTHING
        return _narrowing(f"{bases[base]},{offset * 8},{length * 8}")

    def _mask(self, done: expr.Bitwise) -> None:
        held = self._held(done.register)
        plain = done.operation == nft.NFT_BITWISE_BOOL and not any(done.xor) and held.mask is None
        if not plain and held.subject != "narrowing":
            held = _Loaded("unreadable", held.shown)
        self.registers[done.into] = _Loaded(held.subject, held.shown, done.mask)

    def _compare(self, done: expr.Compare) -> None:
        held, operation, value = self._held(done.register), done.operation, done.data
        sign = _SIGNS.get(operation, "? ")
        negated = operation == nft.NFT_CMP_NEQ
        subject = held.subject
        if subject in ("source", "destination"):
            shown, option = self._address(subject, held.mask, operation, value)
        elif subject == "narrowing":
            shown, option = str(int.from_bytes(value, "big")), Option(subject, (held.shown,))
        elif operation not in (nft.NFT_CMP_EQ, nft.NFT_CMP_NEQ):
            shown, option = f"0x{value.hex()}", Option("expression", (held.shown,))
        elif subject in _DEVICES:
            name = self.device(_host(value)) if subject in ("iif", "oif") else _device(value)
            shown = f'"{name.replace("+", "*")}"'
            option = Option(_DEVICES[subject], (name,), negated)
        elif subject == "mark":
            mask = _host(held.mask) if held.mask else 0xFFFFFFFF
            shown = f"{_host(value):#x}" + (f"/{mask:#x}" if held.mask else "")
            option = Option("mark", (shown,), negated)
        elif subject == "ctstate":
            sign = ""
            shown, option = _state(held.mask, _host(value), negated)
        elif subject in ("nfproto", "ethertype"):
            names = _FAMILIES if subject == "nfproto" else _ETHERTYPES
            shown = names.get(int.from_bytes(value, "big"), "other")
            option = Option("nfproto", (shown,), negated)
        elif subject == "dst-type":
            kind = _TYPES.get(_host(value), str(_host(value)))
            shown, option = kind.lower(), Option(subject, (kind,), negated)
        elif subject == "protocol":
            protocol = int.from_bytes(value, "big")
            shown = _PROTOCOLS.get(protocol, str(protocol))
            option = Option(subject, (shown,), negated)
        else:
            shown, option = f"0x{value.hex()}", Option("expression", (held.shown,))
        self._take(f"{held.shown} {sign}{shown}", option)

    def _address(
        self, subject: str, mask: bytes | None, operation: int, value: bytes
    ) -> tuple[str, Option]:
        """Return how an address is compared. A prefix may be loaded by its whole bytes only."""
        family, width = self.family, self.family.bits // 8
        bits = mask if mask is not None else b"\xff" * len(value)
        holes = int.from_bytes(bits.ljust(width, b"\0"), "big") ^ family.last_address
        first = int.from_bytes(value.ljust(width, b"\0"), "big")
        negated = operation == nft.NFT_CMP_NEQ
        if len(value) > width or holes & (holes + 1) or first & holes:
            shown = f"0x{value.hex()}/0x{bits.hex()}"
            return shown, Option(subject, (shown,), negated)
        last = first | holes
        if negated or operation == nft.NFT_CMP_EQ:
            shown = range_text(family, first, last)
            prefix = str(Prefix(family, first, family.bits - holes.bit_length()))
            return shown, Option(subject, (prefix,), negated)
        # What is below `first`, or all but that; and the same of what comes after `last`.
        edge = first if operation in (nft.NFT_CMP_LT, nft.NFT_CMP_GTE) else last + 1
        negated = operation in (nft.NFT_CMP_GT, nft.NFT_CMP_GTE)
        return family.show(first), self._between(subject, 0, edge - 1, negated=negated)

    def _between(self, subject: str, first: int, last: int, *, negated: bool) -> Option:
        name = "dst-range" if subject == "destination" else "src-range"
        ends = f"{self.family.show(first)}-{self.family.show(last)}" if first <= last else None
        return Option(name, () if ends is None else (ends,), negated)

    def _range(self, done: expr.Range) -> None:
        held, negated = self._held(done.register), done.operation == nft.NFT_CMP_NEQ
        option = Option("expression", (held.shown,))
        low, high = int.from_bytes(done.first, "big"), int.from_bytes(done.last, "big")
        shown = f"{low}-{high}"
        if held.subject in ("source", "destination") and held.mask is None:
            option = self._between(held.subject, low, high, negated=negated)
            shown = f"{self.family.show(low)}-{self.family.show(high)}"
        elif held.subject in ("narrowing", "protocol"):
            option = Option("narrowing", (held.shown,))
        self._take(f"{held.shown} {'!= ' if negated else ''}{shown}", option)

    def _look_up(self, done: expr.SetLookup) -> None:
        held, known = self._held(done.register), self.sets.get(done.set)
        subject, negated = held.subject, bool(done.flags & nft.NFT_LOOKUP_F_INV)
        devices: tuple[Option, ...] = ()
        if subject in ("in-interface", "out-interface") and isinstance(known, tuple):
            devices = (Option(subject, known, negated),)
        if done.into == nft.NFT_REG_VERDICT:
            jump = Option("jump", (f"vmap @{done.set}",))
            self._take(f"{held.shown} vmap @{done.set}", *devices, jump)
            return
        if done.into is not None:
            self.registers[done.into] = _Loaded("unreadable", f"{held.shown} map @{done.set}")
            return
        option = Option("expression", (f"@{done.set}",))
        if subject in ("source", "destination") and held.mask is None:
            side = "dst" if subject == "destination" else "src"
            if not isinstance(known, tuple | None) or side == "src":
                option = Option("match-set", (done.set, side), negated)
        elif devices:
            (option,) = devices
        elif subject in ("narrowing", "protocol", "ctstate"):
            option = Option("narrowing", (held.shown,))
        self._take(f"{held.shown} {'!= ' if negated else ''}@{done.set}", option)

    def _end(self, code: int, chain: str | None) -> None:
        if code in _VERBS and chain is not None:
            self._take(f"{_VERBS[code]} {chain}", Option(_VERBS[code], (chain,)))
        else:
            ending = _ENDINGS.get(code, f"verdict {code}")
            self._to(ending.lower(), ending)

    def _translate(self, done: expr.Nat) -> None:
        family = self.family
        if done.family not in (0, nft.PROTOCOL[family]):
            self._take("snat (of the other family)", Option("nfproto", ("other",)))
            return
        low, high = self._held(done.first_address), self._held(done.last_address)
        rest = self._ports(done.first_port, done.last_port) + _how(done.flags)
        one = done.last_address in (None, done.first_address) or low.data == high.data
        if len(low.data) * 8 == family.bits and one and not done.flags & nft.NF_NAT_RANGE_NETMAP:
            address = family.show(int.from_bytes(low.data, "big"))
            self._to(f"snat to {address}{rest}", "SNAT", Option("to-source", (address,)))
        elif done.first_address is not None:
            shown = low.shown or "an address of several"
            self._to(f"snat to {shown}{rest}", "SNAT", Option("to-source", ("several",)))
        else:
            self._to(f"snat{rest}", "SNAT")

    def _ports(self, first: int | None, last: int | None) -> str:
        """Return the ports in registers, as they stand behind an address."""
        if first is None:
            return ""
        ends = [int.from_bytes(self._held(end).data, "big") for end in (first, last or first)]
        return ":" + "-".join(map(str, sorted({*ends})))


def _tracked(key: int, direction: int | None) -> _Loaded:
    if key == nft.NFT_CT_STATE:
        return _Loaded("ctstate", "ct state")
    if key in _CT_DESTINATIONS or (key in _CT_SOURCES and direction == _CT_REPLY):
        return _NOTHING
    return _narrowing(f"ct {key}")


def _routed(result: int, flags: int) -> _Loaded:
    if (result, flags) == (nft.NFT_FIB_RESULT_ADDRTYPE, nft.NFTA_FIB_F_DADDR):
        return _Loaded("dst-type", "fib daddr type")
    return _narrowing("fib saddr") if flags & nft.NFTA_FIB_F_SADDR else _NOTHING


def _state(mask: bytes | None, value: int, negated: bool) -> tuple[str, Option]:
    """Return a comparison of the connection's state: ``& mask != 0``, or ``== state``."""
    bits = value if mask is None else _host(mask)
    if mask is not None:
        negated = not negated
        if value:
            return f"{bits:#x} {value:#x}", Option("expression", ("ct state",))
    names = ",".join(name for bit, name in _STATES.items() if bits & bit)
    return f"{'!= ' if negated else ''}{names.lower()}", Option("ctstate", (names,), negated)


def _how(flags: int) -> str:
    return " fully-random" if flags & nft.NF_NAT_RANGE_PROTO_RANDOM_FULLY else ""


def _host(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)


def _device(value: bytes) -> str:
    """Return a device's name. Compared without its terminating zero it stands for many."""
    name = value.rstrip(b"\0").decode(errors="surrogateescape")
    return name if value.endswith(b"\0") else f"{name}+"
