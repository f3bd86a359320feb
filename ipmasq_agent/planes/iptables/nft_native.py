"""Rules of a nat table that iptables cannot show, or shows in part: told by their expressions.

``iptables-nft-save`` leaves out what it does not know and exits with 0: of a native
``tcp window 5 accept`` it prints ``-p tcp -j ACCEPT``, of ``ip saddr 10.0.0.0/8 ip saddr
10.1.0.0/16`` the second half. So a rule counts as shown in full only where it is made of
what iptables-nft itself writes for IPv4 and IPv6 (observed of 1.8.9; its sources are
iptables/nft-shared.c and nft-ipv4.c). Numbers: include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache

from ipmasq_agent.netlink.core import attributes
from ipmasq_agent.netlink.nf import Expression, Expressions, ListedRule
from ipmasq_agent.planes.iptables.text import parse_rule
from ipmasq_agent.planes.rules.rule import Option, Rule, quote
from ipmasq_agent.policy.addresses import Family

_META_DREG, _META_KEY = 1, 2
_PAYLOAD_DREG, _PAYLOAD_BASE, _PAYLOAD_OFFSET, _PAYLOAD_LENGTH = 1, 2, 3, 4
_CMP_OP, _CMP_DATA, _RANGE_OP = 2, 3, 2
_BITWISE_MASK, _BITWISE_XOR, _BITWISE_OP = 4, 5, 6
_IMMEDIATE_DREG, _IMMEDIATE_DATA = 1, 2
_DATA_VALUE, _DATA_VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 1, 2, 1, 2
_MATCH_NAME, _MATCH_INFO = 1, 3
_JUMP, _GOTO = -3, -4
_EQUAL_OR_NOT = (0, 1)
_OIFNAME = 7

_FLAGS, _PROTOCOL, _FRAGMENT, _MARK = "flags", "protocol", "fragment", "mark"
_PORTS = {(0, 2): "sport", (2, 2): "dport", (0, 4): "sport and dport"}
_META = {3: _MARK, 4: "iif", 5: "oif", 6: "iif", 7: "oif", 16: _PROTOCOL}
_NETWORK = {  # (offset, longest) of the header fields that -s, -d, -p and -f are about
    Family.IPV4: {12: ("source", 4), 16: ("destination", 4), 9: (_PROTOCOL, 1), 6: (_FRAGMENT, 2)},
    Family.IPV6: {8: ("source", 16), 24: ("destination", 16), 6: (_PROTOCOL, 1)},
}
_MASKED = frozenset({"source", "destination", _MARK, _FLAGS, _FRAGMENT})
_ALWAYS_MASKED = frozenset({_FLAGS, _FRAGMENT})
_FRAGMENT_OFFSET = b"\x1f\xff"
_TCP, _UDP = 6, 17
# xt_addrtype_info_v1 (linux/netfilter/xt_addrtype.h): source, destination, flags.
_ADDRTYPE = struct.Struct("=HHI")
_NOT_LOCAL = (0, 1 << 2, 2)  # bit of RTN_LOCAL, XT_ADDRTYPE_INVERT_DEST


@lru_cache(maxsize=4096)  # the rules of a pass are mostly those of the pass before
def is_shown_in_full(expressions: Expressions, family: Family) -> bool:
    """Whether iptables-nft prints all of a rule that is made of these expressions."""
    return _Walk(family).is_plain(expressions)


class _Walk:
    """One walk along a rule: what was loaded last, and what was compared before."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.loaded: str | None = None  # what waits for its comparison
        self.masked = False
        self.seen: set[str] = set()
        self.protocol: int | None = None

    def is_plain(self, expressions: Sequence[Expression]) -> bool:
        for position, (kind, data) in enumerate(expressions):
            if kind in ("counter", "match", "target", "limit"):
                continue
            parts = dict(attributes(data))
            if kind == "log":  # NFLOG ends a rule of iptables, and goes unseen before a verdict
                fine = position == len(expressions) - 1
            elif kind == "immediate":
                fine = _number(parts.get(_IMMEDIATE_DREG)) == 0  # the verdict, no data
            elif kind == "meta":
                subject = _META.get(_number(parts.get(_META_KEY)))
                fine = _META_DREG in parts and self._load(subject)
            elif kind == "payload":
                fine = _PAYLOAD_DREG in parts and self._load(self._field(parts))
            elif kind == "bitwise":
                fine = self._mask(parts)
            elif kind == "cmp":
                fine = self._compare(parts)
            else:
                fine = (
                    kind == "range"
                    and self.loaded in ("sport", "dport")
                    and _number(parts.get(_RANGE_OP)) in _EQUAL_OR_NOT
                )
                self.loaded = None
            if not fine:
                return False
        return self.loaded is None

    def _field(self, parts: Mapping[int, bytes]) -> str | None:
        base = _number(parts.get(_PAYLOAD_BASE))
        offset = _number(parts.get(_PAYLOAD_OFFSET))
        length = _number(parts.get(_PAYLOAD_LENGTH))
        if base == 1:  # the network header
            name, longest = _NETWORK[self.family].get(offset, (None, 0))
            exact = name not in ("source", "destination")
            return name if length == longest or (length < longest and not exact) else None
        if base == 2 and self.protocol in (_TCP, _UDP):
            if (offset, length) in _PORTS:
                return _PORTS[offset, length]
            if (offset, length) == (13, 1) and self.protocol == _TCP:
                return _FLAGS
        return None

    def _load(self, subject: str | None) -> bool:
        # iptables prints one value of each; marks alone are matches that may come again.
        names = set(subject.split(" and ")) if subject else set()
        again = bool(names & self.seen) and subject != _MARK
        if subject is None or self.loaded is not None or again:
            return False
        self.seen |= names
        self.loaded, self.masked = subject, False
        return True

    def _mask(self, parts: Mapping[int, bytes]) -> bool:
        mask = _value(parts.get(_BITWISE_MASK))
        self.masked = True
        return (
            self.loaded in _MASKED
            and _number(parts.get(_BITWISE_OP)) == 0
            and not any(_value(parts.get(_BITWISE_XOR)))
            and (self.loaded != _FRAGMENT or mask == _FRAGMENT_OFFSET)
        )

    def _compare(self, parts: Mapping[int, bytes]) -> bool:
        subject, self.loaded = self.loaded, None
        operation = _number(parts.get(_CMP_OP))
        compared = _value(parts.get(_CMP_DATA))
        if subject in ("iif", "oif") and compared.rstrip(b"\0").endswith(b"+"):
            return False  # iptables would print it as the beginning of a name
        if subject == _PROTOCOL and operation == 0:
            self.protocol = int.from_bytes(_value(parts.get(_CMP_DATA)), "big")
        return (
            subject is not None
            and operation in _EQUAL_OR_NOT
            and (self.masked or subject not in _ALWAYS_MASKED)
            and (subject != _FRAGMENT or not any(_value(parts.get(_CMP_DATA))))
        )


def told_by_expressions(rules: Sequence[ListedRule], family: Family) -> list[Rule]:
    """Return the rules of a chain without asking iptables, which may refuse to list it.

    A jump that depends on nothing but what our jumps have (a source, a device it leaves
    through, ``! --dst-type LOCAL``) is told by its expressions, in the words that
    iptables deletes it by: it compares the comment too. Any other rule is carried as one
    that cannot be read.
    """
    return [_Telling(family, rule.comment).rule(rule.expressions) for rule in rules]


class _Telling:
    """A rule being told: the options found so far, and what waits for its comparison."""

    def __init__(self, family: Family, comment: str | None) -> None:
        self.family = family
        self.options: list[str] = []
        if comment is not None:
            self._comment(comment)
        self.target: str | None = None
        self.verb = "-j"
        self.loaded: str | None = None
        self.mask: bytes | None = None

    def rule(self, expressions: Expressions) -> Rule:
        plain = True
        for kind, data in expressions:
            plain &= self._takes(kind, data)  # all of them: the jump comes last
        if self.target is not None and plain and self.loaded is None:
            # In the order of iptables' own list, whatever that of the expressions.
            options = sorted(
                self.options, key=lambda o: ("-m", "-o", "-s").index(o[:2]), reverse=True
            )
            return parse_rule(" ".join([*options, self.verb, quote(self.target)]), self.family)
        kinds = ", ".join(kind for kind, _ in expressions)
        meaning = (Option("jump", (self.target,)),) if self.target else ()
        return Rule(f"(native: {kinds})", meaning, readable=False)

    def _takes(self, kind: str, data: bytes) -> bool:
        """Take in one expression; false where it is not one of a jump of ours."""
        parts = dict(attributes(data))
        if kind == "immediate":
            return self._verdict(parts)
        if kind == "meta":
            return self._load("device" if _number(parts.get(_META_KEY)) == _OIFNAME else None)
        if kind == "payload":
            base, offset = (_number(parts.get(n)) for n in (_PAYLOAD_BASE, _PAYLOAD_OFFSET))
            name, _ = _NETWORK[self.family].get(offset, (None, 0)) if base == 1 else (None, 0)
            return self._load("source" if name == "source" else None)
        if kind == "bitwise":
            self.mask = _value(parts.get(_BITWISE_MASK))
            return self.loaded == "source" and not any(_value(parts.get(_BITWISE_XOR)))
        if kind == "cmp":
            return _number(parts.get(_CMP_OP)) == 0 and self._compared(_value(parts[_CMP_DATA]))
        if kind == "match":
            return self._match(_name(parts.get(_MATCH_NAME, b"")), parts.get(_MATCH_INFO, b""))
        return kind == "counter"

    def _match(self, name: str, info: bytes) -> bool:
        if name == "comment":  # struct xt_comment_info: text that ends at a zero
            self._comment(_name(info.partition(b"\0")[0]))
            return True
        if name != "addrtype":
            return False
        info = info[: _ADDRTYPE.size]
        self.options.append("-m addrtype ! --dst-type LOCAL")
        return len(info) == _ADDRTYPE.size and _ADDRTYPE.unpack(info) == _NOT_LOCAL

    def _comment(self, said: str) -> None:
        self.options.append(f"-m comment --comment {quote(said)}")

    def _verdict(self, parts: Mapping[int, bytes]) -> bool:
        data = dict(attributes(parts.get(_IMMEDIATE_DATA, b"")))
        verdict = dict(attributes(data.get(_DATA_VERDICT, b"")))
        code = int.from_bytes(verdict.get(_VERDICT_CODE, b""), "big", signed=True)
        self.verb = "-g" if code == _GOTO else "-j"
        if code in (_JUMP, _GOTO) and _VERDICT_CHAIN in verdict:
            self.target = _name(verdict[_VERDICT_CHAIN])
        return True

    def _load(self, what: str | None) -> bool:
        known = what is not None and self.loaded is None
        self.loaded, self.mask = what, None
        return known

    def _compared(self, value: bytes) -> bool:
        loaded, self.loaded = self.loaded, None
        if loaded == "device":
            self.options.append(f"-o {quote(_name(value))}")
            return _is_one_device(value)
        if loaded != "source":
            return False
        width = self.family.bits // 8
        mask = self.mask if self.mask is not None else b"\xff" * len(value)
        address = int.from_bytes(value.ljust(width, b"\0"), "big")
        bits = int.from_bytes(mask.ljust(width, b"\0"), "big")
        holes = bits ^ self.family.last_address
        self.options.append(
            f"-s {self.family.show(address)}/{self.family.bits - holes.bit_length()}"
        )
        return not holes & (holes + 1)


def _is_one_device(value: bytes) -> bool:
    """Whether a comparison is with the whole name of a device that iptables can name.

    Without its terminating zero a name stands for all that begin so, which iptables writes
    with a ``+`` at its end.
    """
    return value.endswith(b"\0") and not value.rstrip(b"\0").endswith(b"+")


def _number(data: bytes | None) -> int:
    return int.from_bytes(data, "big") if data else 0


def _value(data: bytes | None) -> bytes:
    return dict(attributes(data)).get(_DATA_VALUE, b"") if data else b""


def _name(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="surrogateescape")
