"""Rules of a nat table that iptables cannot show, or shows in part.

``iptables-nft-save`` leaves out what it does not know and exits with 0: of a native
``tcp window 5 accept`` it prints ``-p tcp -j ACCEPT``, of ``ip saddr 10.0.0.0/8 ip saddr
10.1.0.0/16`` the second half. So a rule counts as shown in full only where it is made of
what iptables-nft itself writes for IPv4 and IPv6 (observed of 1.8.9; its sources are
iptables/nft-shared.c and nft-ipv4.c).
"""

from __future__ import annotations

from collections.abc import Sequence

from ipmasq_agent.netlink import expressions as expr
from ipmasq_agent.netlink import nft_numbers as nft
from ipmasq_agent.netlink.attributes import text
from ipmasq_agent.netlink.nft_objects import ListedRule
from ipmasq_agent.planes.rules.native import told
from ipmasq_agent.planes.rules.rule import Option, Rule, read_prefix
from ipmasq_agent.policy.addresses import Family

_FLAGS, _PROTOCOL, _FRAGMENT, _MARK = "flags", "protocol", "fragment", "mark"
_PORTS = {(0, 2): "sport", (2, 2): "dport", (0, 4): "sport and dport"}
_META = {
    nft.NFT_META_MARK: _MARK,
    nft.NFT_META_IIF: "iif",
    nft.NFT_META_IIFNAME: "iif",
    nft.NFT_META_OIF: "oif",
    nft.NFT_META_OIFNAME: "oif",
    nft.NFT_META_L4PROTO: _PROTOCOL,
}
_NETWORK = {  # (offset, longest) of the header fields that -s, -d, -p and -f are about
    Family.IPV4: {12: ("source", 4), 16: ("destination", 4), 9: (_PROTOCOL, 1), 6: (_FRAGMENT, 2)},
    Family.IPV6: {8: ("source", 16), 24: ("destination", 16), 6: (_PROTOCOL, 1)},
}
_MASKED = frozenset({"source", "destination", _MARK, _FLAGS, _FRAGMENT})
_ALWAYS_MASKED = frozenset({_FLAGS, _FRAGMENT})
_FRAGMENT_OFFSET = b"\x1f\xff"
_TCP, _UDP = 6, 17
_EQUAL_OR_NOT = (nft.NFT_CMP_EQ, nft.NFT_CMP_NEQ)
_FIELDS = ("source", "out-interface")
_NOT_LOCAL = Option("dst-type", ("LOCAL",), negated=True)


def is_shown_in_full(expressions: Sequence[expr.Expression], family: Family) -> bool:
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

    def is_plain(self, expressions: Sequence[expr.Expression]) -> bool:
        for position, expression in enumerate(expressions):
            match expression:
                case expr.Counter() | expr.XtMatch() | expr.XtTarget() | expr.Opaque(kind="limit"):
                    fine = True
                case expr.Opaque(kind="log"):
                    # NFLOG ends a rule of iptables, and goes unseen before a verdict.
                    fine = position == len(expressions) - 1
                case expr.Immediate(into=into):
                    fine = into == nft.NFT_REG_VERDICT
                case expr.Meta(into=int(), key=key):
                    fine = self._load(_META.get(key))
                case expr.Payload(into=int(), base=base, offset=offset, length=length):
                    fine = self._load(self._field(base, offset, length))
                case expr.Bitwise():
                    fine = self._mask(expression)
                case expr.Compare():
                    fine = self._compare(expression)
                case expr.Range(operation=operation):
                    fine = self.loaded in ("sport", "dport") and operation in _EQUAL_OR_NOT
                    self.loaded = None
                case _:
                    fine = False
            if not fine:
                return False
        return self.loaded is None

    def _field(self, base: int, offset: int, length: int) -> str | None:
        if base == nft.NFT_PAYLOAD_NETWORK_HEADER:
            name, longest = _NETWORK[self.family].get(offset, (None, 0))
            exact = name not in ("source", "destination")
            return name if length == longest or (length < longest and not exact) else None
        if base == nft.NFT_PAYLOAD_TRANSPORT_HEADER and self.protocol in (_TCP, _UDP):
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

    def _mask(self, done: expr.Bitwise) -> bool:
        self.masked = True
        return (
            self.loaded in _MASKED
            and done.operation == nft.NFT_BITWISE_BOOL
            and not any(done.xor)
            and (self.loaded != _FRAGMENT or done.mask == _FRAGMENT_OFFSET)
        )

    def _compare(self, done: expr.Compare) -> bool:
        subject, self.loaded = self.loaded, None
        if subject in ("iif", "oif") and done.data.rstrip(b"\0").endswith(b"+"):
            return False  # iptables would print it as the beginning of a name
        if subject == _PROTOCOL and done.operation == nft.NFT_CMP_EQ:
            self.protocol = int.from_bytes(done.data, "big")
        return (
            subject is not None
            and done.operation in _EQUAL_OR_NOT
            and (self.masked or subject not in _ALWAYS_MASKED)
            and (subject != _FRAGMENT or not any(done.data))
        )


def told_by_expressions(rules: Sequence[ListedRule], family: Family) -> list[Rule]:
    """Return the rules of a chain without asking iptables, which may refuse to list it.

    A jump that depends on nothing but what our jumps have (a source, a device it leaves
    through, ``! --dst-type LOCAL``) is told by its expressions, in the words that
    iptables deletes it by: it compares the comment too. Any other rule is carried as one
    that cannot be read.
    """
    return [_told(rule, family) for rule in rules]


def _told(listed: ListedRule, family: Family) -> Rule:
    expressions = listed.expressions
    # In the order of the rule, as iptables finds it by no other.
    matches = [] if listed.comment is None else [Option("comment", (listed.comment,))]
    chain: str | None = None
    plain = True
    for expression in expressions:
        match expression:
            case expr.XtMatch(
                "comment", _, info
            ):  # struct xt_comment_info: text that ends at a zero
                matches.append(Option("comment", (text(info.partition(b"\0")[0]),)))
            case expr.XtMatch("addrtype"):
                matches.append(_NOT_LOCAL)  # if it is another one, what is told says so
            case expr.Immediate(data=expr.NftVerdict(nft.NFT_JUMP | nft.NFT_GOTO, to)):
                chain = to
            case expr.Meta(key=nft.NFT_META_OIFNAME) | expr.Compare(operation=nft.NFT_CMP_EQ):
                pass
            case (
                expr.Payload(base=nft.NFT_PAYLOAD_NETWORK_HEADER) | expr.Bitwise() | expr.Counter()
            ):
                pass
            case _:
                plain = False
    meaning = told(expressions, family, {}, str).meaning
    if chain is None or not plain or not all(_is_of_ours(option, family) for option in meaning):
        kinds = ", ".join(map(expr.kind_of, expressions))
        seen = () if chain is None else (Option("jump", (chain,)),)
        return Rule(f"(native: {kinds})", seen, readable=False)
    fields = [option for option in reversed(meaning) if option.name in _FIELDS]
    jump = [option for option in meaning if option.name in ("jump", "goto")]
    comment = next((m.values[0] for m in reversed(matches) if m.name == "comment"), None)
    return Rule((*fields, *matches, *jump), meaning, comment)


def _is_of_ours(option: Option, family: Family) -> bool:
    """Whether an option is one that jumps of ours have, and that iptables can say."""
    if option.name == "source":
        return not option.negated and read_prefix(option.values[0], family) is not None
    if option.name == "out-interface":
        # One that ends with + stands for all devices whose names begin so.
        return not option.values[0].endswith("+")
    return option.name in ("jump", "goto") or option == _NOT_LOCAL
