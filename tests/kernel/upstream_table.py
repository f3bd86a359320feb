"""What upstream's ip-masq-agent v2.12 makes of a document: written by hand, as plain data.

Each row is a document, the flags beside it, and the rules that upstream would have in its
chain, in order, as iptables-save prints them; or that upstream refuses the document and so
leaves the rules of the last good one. The sources are upstream's README (keys, defaults,
flags), its validation (a list over the limit, host bits set, IPv6 while it is disabled), and
what its libraries do: Go's net.ParseCIDR, time.ParseDuration and encoding/json, and YAML
made into JSON, unless the first byte that is not blank is ``{``.

Left out are the documents that this agent refuses although upstream takes them, which its
documentation lists (docs/document.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tests.oracle import Rule

Rules = tuple[Rule, ...]
REFUSED: Literal["refused"] = "refused"
IPV6 = ("--enable-ipv6=true",)


@dataclass(frozen=True, slots=True)
class Row:
    """One document and upstream's rules for it.

    Attributes:
        name: what is special about it.
        document: its bytes, or None for a file that does not exist.
        ipv4: the rules of the IPv4 chain, or REFUSED.
        ipv6: the rules of the IPv6 chain, or None where upstream does not manage IPv6.
        flags: command line flags beside the document.
        chain: the chain in which the rules are.
    """

    name: str
    document: bytes | None
    ipv4: Rules | Literal["refused"]
    ipv6: Rules | None = None
    flags: tuple[str, ...] = ()
    chain: str = "IP-MASQ"


def stay(*destinations: str | None) -> Rules:
    """Return the rules by which packets to ``destinations`` keep their source."""
    return tuple(Rule(destination, "RETURN") for destination in destinations)


def masq(protocol: str | None = None, ports: str | None = None, share: float | None = None) -> Rule:
    """Return a rule that masquerades at random source ports."""
    return Rule(None, "MASQUERADE", protocol, ports, share, random_fully=True)


MASQ = masq()
PLAIN_MASQ = Rule(None, "MASQUERADE")
LINK_LOCAL = stay("169.254.0.0/16")
LINK_LOCAL6 = stay("fe80::/10")
RFC1918 = stay("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
RESERVED = stay(
    "100.64.0.0/10",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
)
DEFAULTS = (*LINK_LOCAL, *RFC1918, MASQ)
DEFAULTS6 = (*LINK_LOCAL6, MASQ)
# The chain of a document whose one entry is TEN.
TEN = (*LINK_LOCAL, *stay("10.0.0.0/8"), MASQ)


def cidrs(*entries: str, more: str = "") -> bytes:
    """Return a YAML document with ``entries`` as they stand, unquoted."""
    lines = "".join(f"- {entry}\n" for entry in entries)
    return f"nonMasqueradeCIDRs:\n{lines}{more}".encode()


def _many(count: int, first: int = 0) -> tuple[str, ...]:
    return tuple(f"10.{first + n}.0.0/16" for n in range(count))


def _many6(count: int) -> tuple[str, ...]:
    return tuple(f"fd00:{n}::/32" for n in range(1, count + 1))


ABSENT_AND_EMPTY = (
    Row("no file", None, DEFAULTS),
    Row("no file, IPv6 enabled", None, DEFAULTS, DEFAULTS6, IPV6),
    Row("zero bytes", b"", DEFAULTS),
    Row("blank lines", b"\n  \n\n", DEFAULTS),
    Row("a comment only", b"# nothing yet\n", DEFAULTS),
    Row("the document null", b"null\n", DEFAULTS),
    Row("the document ~", b"~\n", DEFAULTS),
    Row("a document marker only", b"---\n", DEFAULTS),
    Row("an empty JSON object", b"{}", DEFAULTS),
    Row("an empty JSON object after blank lines", b"\n\n  {}\n", DEFAULTS),
    Row("only a key that is not the list", b"resyncInterval: 5m\n", DEFAULTS),
    Row("an empty list", b"nonMasqueradeCIDRs: []\n", (*LINK_LOCAL, MASQ)),
    Row("a null list", b"nonMasqueradeCIDRs: null\n", (*LINK_LOCAL, MASQ)),
    Row("a list without a value", b"nonMasqueradeCIDRs:\n", (*LINK_LOCAL, MASQ)),
    Row("a null list in JSON", b'{"nonMasqueradeCIDRs": null}', (*LINK_LOCAL, MASQ)),
    Row(
        "an empty list and link-local masqueraded, both families",
        b"nonMasqueradeCIDRs: []\nmasqLinkLocal: true\nmasqLinkLocalIPv6: true\n",
        (MASQ,),
        (MASQ,),
        IPV6,
    ),
    Row("a null limit", b"cidrLimit: null\n", DEFAULTS),
    Row("a null masqLinkLocal", b"masqLinkLocal: null\n", DEFAULTS),
    Row("a null masqLinkLocalIPv6", b"masqLinkLocalIPv6: ~\n", DEFAULTS, DEFAULTS6, IPV6),
    Row("a null resync interval", b"resyncInterval: null\n", REFUSED),
    Row("an empty resync interval", b'resyncInterval: ""\n', REFUSED),
)

LISTS = (
    Row("one entry", cidrs("10.0.0.0/8"), TEN),
    Row(
        "the order of the document, not of the addresses",
        cidrs("192.168.0.0/16", "10.0.0.0/8", "172.16.0.0/12"),
        (*LINK_LOCAL, *stay("192.168.0.0/16", "10.0.0.0/8", "172.16.0.0/12"), MASQ),
    ),
    Row(
        "duplicates and covered entries",
        cidrs("10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/8"),
        (*LINK_LOCAL, *stay("10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/8"), MASQ),
    ),
    Row(
        "single addresses",
        cidrs("192.0.2.1/32", "192.0.2.255/32"),
        (*LINK_LOCAL, *stay("192.0.2.1/32", "192.0.2.255/32"), MASQ),
    ),
    Row("everything", cidrs("0.0.0.0/0"), (*LINK_LOCAL, *stay(None), MASQ)),
    Row(
        "link-local as an entry",
        cidrs("169.254.0.0/16"),
        (*LINK_LOCAL, *LINK_LOCAL, MASQ),
    ),
    Row(
        "link-local masqueraded but for a part",
        cidrs("169.254.169.254/32", more="masqLinkLocal: true\n"),
        (*stay("169.254.169.254/32"), MASQ),
    ),
    Row("quoted entries", cidrs('"10.0.0.0/8"'), TEN),
    Row("host bits set", cidrs("10.0.0.1/8"), REFUSED),
    Row("one bad entry among good ones", cidrs("10.0.0.0/8", "10.0.0.1/8"), REFUSED),
    Row("no prefix length", cidrs("10.0.0.0"), REFUSED),
    Row("a netmask", cidrs("10.0.0.0/255.0.0.0"), REFUSED),
    Row("an octet with a leading zero", cidrs("010.0.0.0/8"), REFUSED),
    Row("an octet above 255", cidrs("10.256.0.0/16"), REFUSED),
    Row("three octets", cidrs("10.0.0/8"), REFUSED),
    Row("a blank within quotes", cidrs('" 10.0.0.0/8"'), REFUSED),
    Row("a prefix longer than an address", cidrs("10.0.0.0/33"), REFUSED),
    Row("a negative prefix length", cidrs("0.0.0.0/-1"), REFUSED),
    Row("a signed prefix length", cidrs("10.0.0.0/+8"), REFUSED),
    Row("digits of another script", cidrs("10.0.0.0/\N{FULLWIDTH DIGIT EIGHT}"), REFUSED),
    Row("an empty entry", cidrs('""'), REFUSED),
    Row("a host name", cidrs("example.org/24"), REFUSED),
    Row("a number as an entry", cidrs("10"), REFUSED),
    Row("a list within the list", cidrs("[10.0.0.0/8]"), REFUSED),
    Row("a text in place of the list", b"nonMasqueradeCIDRs: 10.0.0.0/8\n", REFUSED),
    Row("a mapping in place of the list", b"nonMasqueradeCIDRs: {a: b}\n", REFUSED),
)

LIMITS = (
    Row("64 entries", cidrs(*_many(64)), (*LINK_LOCAL, *stay(*_many(64)), MASQ)),
    Row("65 entries", cidrs(*_many(65)), REFUSED),
    Row(
        "65 entries with a limit of 65",
        cidrs(*_many(65), more="cidrLimit: 65\n"),
        (*LINK_LOCAL, *stay(*_many(65)), MASQ),
    ),
    Row("65 entries of two families", cidrs(*_many(33), *_many6(32)), REFUSED, flags=IPV6),
    Row("65 duplicates", cidrs(*["10.0.0.0/8"] * 65), REFUSED),
    Row("more entries than a lower limit", cidrs(*_many(3), more="cidrLimit: 2\n"), REFUSED),
    Row("a limit below the number of defaults", b"cidrLimit: 2\n", REFUSED),
    Row(
        "a limit of zero and no entry",
        b"cidrLimit: 0\nnonMasqueradeCIDRs: []\n",
        (*LINK_LOCAL, MASQ),
    ),
    Row("a negative limit and no entry", b"cidrLimit: -1\nnonMasqueradeCIDRs: []\n", REFUSED),
    Row("a whole limit with a point", b"cidrLimit: 64.0\n", DEFAULTS),
    Row("a whole limit with a point in JSON", b'{"cidrLimit": 64.0}', REFUSED),
    Row("a broken limit", b"cidrLimit: 64.5\n", REFUSED),
    Row("a limit as text", b'cidrLimit: "64"\n', REFUSED),
    Row("a limit beyond 64 bits", b"cidrLimit: 9223372036854775808\n", REFUSED),
    Row("a limit in hexadecimal", b"cidrLimit: 0x40\n", DEFAULTS),
    Row("a limit in base sixty, which upstream's YAML lacks", b"cidrLimit: 1:4\n", REFUSED),
)

TWO_FAMILIES = (
    Row("an IPv6 entry while IPv6 is disabled", cidrs("10.0.0.0/8", "fd00::/8"), REFUSED),
    Row(
        "both families, mixed",
        cidrs("fd00::/8", "10.0.0.0/8", "2001:db8::/32", "172.20.0.0/16"),
        (*LINK_LOCAL, *stay("10.0.0.0/8", "172.20.0.0/16"), MASQ),
        (*LINK_LOCAL6, *stay("fd00::/8", "2001:db8::/32"), MASQ),
        IPV6,
    ),
    Row("IPv4 entries only, IPv6 enabled", cidrs("10.0.0.0/8"), TEN, DEFAULTS6, IPV6),
    Row(
        "IPv6 entries only",
        cidrs("fd00::/8"),
        (*LINK_LOCAL, MASQ),
        (*LINK_LOCAL6, *stay("fd00::/8"), MASQ),
        IPV6,
    ),
    Row(
        "upper case and zeros written out",
        cidrs("FD00:0:0:0:0:0:0:0/8", "2001:0DB8::/32"),
        (*LINK_LOCAL, MASQ),
        (*LINK_LOCAL6, *stay("fd00::/8", "2001:db8::/32"), MASQ),
        IPV6,
    ),
    Row(
        "an IPv6 prefix that ends like an IPv4 address",
        cidrs("64:ff9b::192.0.2.0/120"),
        (*LINK_LOCAL, MASQ),
        (*LINK_LOCAL6, *stay("64:ff9b::c000:200/120"), MASQ),
        IPV6,
    ),
    Row(
        "everything, both families",
        cidrs("::/0", "0.0.0.0/0"),
        (*LINK_LOCAL, *stay(None), MASQ),
        (*LINK_LOCAL6, *stay(None), MASQ),
        IPV6,
    ),
    Row(
        "one IPv6 address",
        cidrs("2001:db8::1/128"),
        (*LINK_LOCAL, MASQ),
        (*LINK_LOCAL6, *stay("2001:db8::1/128"), MASQ),
        IPV6,
    ),
    Row("IPv6 host bits set", cidrs("fd00::1/8"), REFUSED, flags=IPV6),
    Row("an IPv6 prefix of 129", cidrs("::/129"), REFUSED, flags=IPV6),
    Row("an IPv6 zone", cidrs('"fe80::%eth0/64"'), REFUSED, flags=IPV6),
    # Upstream takes it for IPv4, and iptables-restore then refuses the whole chain.
    Row("an IPv4-mapped prefix", cidrs("::ffff:10.0.0.0/104"), REFUSED, flags=IPV6),
    Row(
        "IPv6 link-local masqueraded",
        b"masqLinkLocalIPv6: true\n",
        DEFAULTS,
        (MASQ,),
        IPV6,
    ),
    Row("IPv6 link-local masqueraded while IPv6 is disabled", b"masqLinkLocalIPv6: true", DEFAULTS),
    Row(
        "IPv4 link-local leaves IPv6 alone",
        b"masqLinkLocal: true",
        (*RFC1918, MASQ),
        DEFAULTS6,
        IPV6,
    ),
)

SYNTAX = (
    Row(
        "JSON with every key",
        b'{"nonMasqueradeCIDRs": ["10.0.0.0/8"], "cidrLimit": 1, "masqLinkLocal": true,'
        b' "masqLinkLocalIPv6": false, "resyncInterval": "5s"}',
        (*stay("10.0.0.0/8"), MASQ),
    ),
    Row("JSON with escapes", rb'{"nonMasqueradeCIDRs": ["\u0031\u0030.0.0.0\/8"]}', TEN),
    Row("YAML flow style at the top", b"{nonMasqueradeCIDRs: [10.0.0.0/8]}\n", REFUSED),
    Row("YAML flow style after a comment", b"# x\n{nonMasqueradeCIDRs: [10.0.0.0/8]}\n", TEN),
    Row("YAML flow style after a marker", b"--- {nonMasqueradeCIDRs: [10.0.0.0/8]}\n", TEN),
    Row("YAML flow style in the list", b"nonMasqueradeCIDRs: [ '10.0.0.0/8', ]\n", TEN),
    Row("JSON with a trailing comma", b'{"nonMasqueradeCIDRs": ["10.0.0.0/8",]}', REFUSED),
    Row("JSON with a comment", b'{"nonMasqueradeCIDRs": ["10.0.0.0/8"]} # x', REFUSED),
    Row("two JSON objects", b'{"nonMasqueradeCIDRs": []}\n{}', REFUSED),
    Row("JSON cut short", b'{"nonMasqueradeCIDRs": ["10.0.0.0/8"]', REFUSED),
    Row("JSON with a number that JSON lacks", b'{"cidrLimit": NaN}', REFUSED),
    Row("JSON with a YAML boolean", b'{"masqLinkLocal": yes}', REFUSED),
    Row("CRLF at the ends of lines", b"nonMasqueradeCIDRs:\r\n- 10.0.0.0/8\r\n", TEN),
    Row("a byte order mark", b"\xef\xbb\xbf" + cidrs("10.0.0.0/8"), TEN),
    Row("an anchor and its alias", b"mine: &a [10.0.0.0/8]\nnonMasqueradeCIDRs: *a\n", TEN),
    Row(
        "two documents, the first counts",
        cidrs("10.0.0.0/8", more="---\n") + cidrs("0.0.0.0/0"),
        TEN,
    ),
    Row(
        "keys in other cases",
        b"NONMASQUERADECIDRS: [10.0.0.0/8]\nmasqlinklocal: true\n",
        (*stay("10.0.0.0/8"), MASQ),
    ),
    Row(
        "a key in two cases in YAML: sorted by bytes, the last one counts",
        b"nonMasqueradeCIDRs: [10.0.0.0/8]\nNonMasqueradeCIDRs: [192.0.2.0/24]\n",
        TEN,
    ),
    Row(
        "a key in two cases in JSON: the last one written counts",
        b'{"nonMasqueradeCIDRs": ["192.0.2.0/24"], "NonMasqueradeCIDRs": ["10.0.0.0/8"]}',
        TEN,
    ),
    Row("a key twice in YAML", cidrs("192.0.2.0/24") + cidrs("10.0.0.0/8"), TEN),
    Row(
        "a key twice in JSON",
        b'{"nonMasqueradeCIDRs": ["192.0.2.0/24"], "nonMasqueradeCIDRs": ["10.0.0.0/8"]}',
        TEN,
    ),
    Row(
        "unknown keys", cidrs("10.0.0.0/8", more="nonMasqueradeCIDR: [0.0.0.0/0]\nx: {y: 1}\n"), TEN
    ),
    Row("keys that are no text", cidrs("10.0.0.0/8", more="1: one\ntrue: two\n"), TEN),
    Row("the boolean yes", b"masqLinkLocal: yes\n", (*RFC1918, MASQ)),
    Row("the boolean On", b"masqLinkLocal: On\n", (*RFC1918, MASQ)),
    Row("the boolean TRUE", b"masqLinkLocal: TRUE\n", (*RFC1918, MASQ)),
    Row("the boolean off", b"masqLinkLocal: off\n", DEFAULTS),
    Row("a boolean as text", b'masqLinkLocal: "true"\n', REFUSED),
    Row("a boolean as a number", b"masqLinkLocal: 1\n", REFUSED),
    Row("a list at the top", b"- 10.0.0.0/8\n", REFUSED),
    Row("a text at the top", b"10.0.0.0/8\n", REFUSED),
    Row("a number at the top", b"42\n", REFUSED),
    Row("YAML that is none", b"nonMasqueradeCIDRs: [10.0.0.0/8\n", REFUSED),
    Row("a tab as indentation", b"nonMasqueradeCIDRs:\n\t- 10.0.0.0/8\n", REFUSED),
    Row("an alias without an anchor", b"*\n", REFUSED),
    Row("bytes that are not UTF-8", b"nonMasqueradeCIDRs: []\n# \xff\n", REFUSED),
)

INTERVALS = (
    *(
        Row(f"a resync interval of {text}", f"resyncInterval: {text}\n".encode(), DEFAULTS)
        for text in ("1h5m", "1.5s", "300ms", "+1m", ".5s", "1h1h", '"1us"', "1\N{MICRO SIGN}s")
    ),
    *(
        Row(f"a resync interval of {text}", f"resyncInterval: {text}\n".encode(), REFUSED)
        for text in ("60", "1.5", '"60"', "1d", "5 minutes", "5M", "1m 5s", "true", "[1m]")
    ),
)

_TWO = [("1024-29999", 0.469292563), ("32768-65535", None)]
_THREE = [("1024-29999", 0.580727914), ("32768-49151", 0.783173996), ("61000-65535", None)]


def _split(shares: list[tuple[str, float | None]]) -> Rules:
    """Return the rules of all protocols for ranges with their hand-made shares."""
    rules = [masq(p, ports, share) for p in ("tcp", "udp", "sctp") for ports, share in shares]
    return (*rules, MASQ)


FLAGS = (
    Row(
        "all reserved ranges, no file",
        None,
        (*LINK_LOCAL, *RFC1918, *RESERVED, MASQ),
        flags=("--nomasq-all-reserved-ranges",),
    ),
    Row(
        "all reserved ranges, a document without the list",
        b"masqLinkLocal: true\n",
        (*RFC1918, *RESERVED, MASQ),
        flags=("--nomasq-all-reserved-ranges=true",),
    ),
    Row(
        "all reserved ranges, a document with a list",
        cidrs("10.0.0.0/8"),
        TEN,
        flags=("--nomasq-all-reserved-ranges=true",),
    ),
    Row("not all reserved ranges", None, DEFAULTS, flags=("--nomasq-all-reserved-ranges=false",)),
    Row(
        "all reserved ranges are more than the limit",
        b"cidrLimit: 10\n",
        REFUSED,
        flags=("--nomasq-all-reserved-ranges=true",),
    ),
    Row(
        "source ports not at random",
        None,
        (*LINK_LOCAL, *RFC1918, PLAIN_MASQ),
        (*LINK_LOCAL6, PLAIN_MASQ),
        ("--random-fully=false", *IPV6),
    ),
    Row("source ports at random, said", None, DEFAULTS, flags=("--random-fully=true",)),
    Row("IPv6 disabled, said", None, DEFAULTS, flags=("--enable-ipv6=false",)),
    Row("IPv6 enabled in short", None, DEFAULTS, DEFAULTS6, ("-enable-ipv6",)),
    Row(
        "upstream's own chain",
        None,
        DEFAULTS,
        flags=("--masq-chain=IP-MASQ-AGENT",),
        chain="IP-MASQ-AGENT",
    ),
    Row(
        "one range of ports",
        cidrs("10.0.0.0/8"),
        (*TEN[:-1], *_split([("1024-29999", None)])),
        flags=("--to-ports=1024-29999",),
    ),
    Row(
        "two ranges of ports, both families",
        cidrs("10.0.0.0/8"),
        (*TEN[:-1], *_split(_TWO)),
        (*LINK_LOCAL6, *_split(_TWO)),
        ("--to-ports=1024-29999,32768-65535", *IPV6),
    ),
    Row(
        "three ranges of ports",
        cidrs("10.0.0.0/8"),
        (*TEN[:-1], *_split(_THREE)),
        flags=("--to-ports", "1024-29999,32768-49151,61000-65535"),
    ),
    Row(
        "ranges of ports not in order",
        None,
        (*DEFAULTS[:-1], *_split([("32768-65535", 0.530707437), ("1024-29999", None)])),
        flags=("--to-ports=32768-65535,1024-29999",),
    ),
    Row(
        "ranges of ports that overlap",
        None,
        (*DEFAULTS[:-1], *_split([("2000-2002", 0.6), ("2001-2002", None)])),
        flags=("--to-ports=2000-2002,2001-2002",),
    ),
    Row(
        "single ports",
        None,
        (*DEFAULTS[:-1], *_split([("1024", 0.5), ("65535", None)])),
        flags=("--to-ports=1024,65535-65535",),
    ),
    Row(
        "a range of ports, not at random",
        None,
        (
            *DEFAULTS[:-1],
            *(Rule(None, "MASQUERADE", p, "4000-4999") for p in ("tcp", "udp", "sctp")),
            PLAIN_MASQ,
        ),
        flags=("--to-ports=4000-4999", "--random-fully=false"),
    ),
    Row("no ports", None, DEFAULTS, flags=("--to-ports=",)),
)

TABLE = (*ABSENT_AND_EMPTY, *LISTS, *LIMITS, *TWO_FAMILIES, *SYNTAX, *INTERVALS, *FLAGS)
