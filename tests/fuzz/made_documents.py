"""Documents made at random from all keys, types and forms that there are; one for each seed.

Most parts of a document are what a user would write, so that many documents are accepted
and what is odd meets what is right; a seed makes the same document on every machine.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from ipmasq_agent.config.model import Flags
from ipmasq_agent.policy.model import PortRange

Word = Callable[[Random], str]

_V4 = ("10.0.0.0", "10.1.2.3", "0.0.0.0", "255.255.255.255", "172.16.0.0", "169.254.0.0")
_V6 = ("::", "fd00::", "fe80::1", "2001:db8::", "::ffff:1.2.3.4", "::1.2.3.4", "fe80::1%eth0")
_ODD_ADDRESSES = (
    "010.0.0.0",
    "10.0.0",
    "256.1.1.1",
    "",
    "::1::",
    "1.2.3.4.5",
    "fe80::%",
    ":::",
    "٣.0.0.0",
)
_ODD_LENGTHS = ("", "/", "/08", "/255.0.0.0", "/-1", "/+8", "/²", "/99999", "/8/8", "/0x8", "/ 8")
_ODD = (
    *("", "~", "null", "true", "y", "0", "-1", "1.5", ".inf", "-.INF", ".nan", "1e400", "0o17"),
    *("1:30", "2001-01-01", "0x", "0b", "+", "-", ".", "[]", "{}", "[[]]", "{a: [b]}", "<<", "="),
    *('"', "'", "|", ">", "&a", "*a", "*nowhere", "!", "!!", "!x y", "!!null x", "!!binary eA=="),
    *("!!int ~", "!!bool maybe", "!!str 5", "!!float 1", "!!timestamp 1", "!!set {a}", "@", "`"),
    *("? a", "- a", "a: b", "# a", "%", "\t", "\x00", "\x1b", "\ud800", "\ufeff", "\u2028", "é"),
    *("9" * 30, "9" * 5000, "x" * 3000, "[" * 120, "{a: " * 120, "auto", "auto-route", "cilium"),
    *("keep", "10.0.0.0/8", "fd00::/8", "60s", "eth*", "!eth0", "2**63", "9223372036854775808"),
)


_PIECES = (
    *(b"\t", b": ", b"\n", b"- ", b"[", b"}", b"\n---\n", b"\n...\n", b"%YAML 1.2\n", b"\xff"),
    *(b"\x00", b"\xef\xbb\xbf", b"&a ", b"*a", b"!!int ", b"\r", b'"', b" "),
)


def _cidr(random: Random) -> str:
    if random.random() < 0.01:
        return random.choice(_ODD_ADDRESSES) + random.choice((*_ODD_LENGTHS, "/8"))
    bits, odd = (32, _V4) if random.random() < 0.7 else (128, _V6)
    length = random.choice((0, 1, 8, bits - 1, bits, random.randrange(bits)))
    first = random.getrandbits(bits) >> bits - length << bits - length
    family = ipaddress.IPv4Address if bits == 32 else ipaddress.IPv6Address
    address = str(family(first)) if random.random() < 0.99 else random.choice(odd)
    if random.random() < 0.01:
        return f"{address}/{bits + 1}"
    if random.random() < 0.01:
        return address + random.choice(_ODD_LENGTHS)
    return f"{address}/{length}"


def _unaligned(random: Random) -> str:
    """A CIDR as Cilium takes it, and what it makes of the strangest addresses."""
    if random.random() < 0.5:
        return f"{random.choice(_V4)}/{random.choice((8, 12, 24, 32))}"
    return f"{random.choice(_V6)}/{random.choice((8, 64, 96, 100, 127, 128))}"


def _cidrs(random: Random) -> str:
    return _list(_unaligned if random.random() < 0.2 else _cidr)(random)


def _list(item: Word) -> Word:
    def make(random: Random) -> str:
        # Long ones are read in another way than short ones.
        count = random.choice((0, 1, 1, 2, 3, 5, 20, 70))
        items = [item(random) for _ in range(count)]
        quote = random.choice(("", "", '"', "'"))
        words = [f"{quote}{word}{quote}" for word in items]
        if words and random.random() < 0.05:
            words[random.randrange(count)] = random.choice(_ODD)
        if random.random() < 0.3:
            return "[" + ", ".join(words) + random.choice(("]", "]", ",]"))
        indent = random.choice(("", "  ", "    "))
        tail = random.choice(("", "", "  # why", "\r"))
        lines = [f"\n{indent}- {word}{tail}" for word in words]
        if len(lines) > 4 and random.random() < 0.1:
            lines.insert(
                random.randrange(count), random.choice(("\n", "\n# note", "\n\t", "\n  x"))
            )
        return "".join(lines)

    return make


def _of(*words: str) -> Word:
    return lambda random: random.choice(words)


def _snat(random: Random) -> str:
    address = random.choice((*_V4, *_V6, "192.0.2.1", "auto-route"))
    if random.random() < 0.5:
        return address
    family = random.choice(("ipv4", "ipv6", "IPv4", "[ipv4]", "5"))
    return random.choice(("{%s: %s}", "{%s: [%s]}", "{%s: {a: %s}}")) % (family, f'"{address}"')


_SWITCH = _of("true", "false", "yes", "No", "ON", "y", "~", "!!bool true")
_VALUES: dict[str, Word] = {
    "nonMasqueradeCIDRs": _cidrs,
    "masqueradeCIDRs": _cidrs,
    "nativeRoutingCIDRs": _cidrs,
    "podCIDRs": lambda random: _cidrs(random) if random.random() < 0.7 else "auto",
    "egressInterfaces": _list(
        _of("eth0", "eth*", "bond0", "*", "[a-z]*", "[", "[!", "a/b", "lo", "x" * 64, "'!eth1'")
    ),
    "cidrLimit": _of("64", "1000", "0", "-1", "70.0", "7e1", "0x46", "0106", "7_0", "0o100", "5"),
    "masqLinkLocal": _SWITCH,
    "masqLinkLocalIPv6": _SWITCH,
    "exemptNodeIPs": _SWITCH,
    "resyncInterval": _of("60s", "1ns", "1h5m", "300ms", "0s", "-1s", "2562047h", "1.5h", '"5"'),
    "defaultAction": _of("keep", "keep", "masquerade", "masquerade", "drop"),
    "snatAddress": _snat,
    "profile": _of("cilium", "cilium", "cilium", "cilium", "calico"),
}
_KEYS = tuple(_VALUES)
_STRANGE_KEYS = (
    *(
        "color",
        "kind",
        "config",
        "? [a]\n",
        "~",
        "5",
        "''",
        "<<",
        "yes",
        "1.5",
        "!!str x",
        "nonMasq",
    ),
)


def _spelt(random: Random, key: str) -> str:
    form = random.random()
    if form < 0.9:
        return key
    return random.choice((key.upper(), key.lower(), f'"{key}"', f"'{key}'", f"? {key}\n", key[:-1]))


def _mapping(random: Random) -> str:
    keys = random.sample(_KEYS, random.choice((0, 1, 1, 2, 3, 5, len(_KEYS))))
    if keys and random.random() < 0.1:
        keys.append(random.choice(keys))
    if random.random() < 0.1:
        keys.insert(random.randrange(len(keys) + 1), random.choice(_STRANGE_KEYS))
    lines = []
    for key in keys:
        make = _VALUES.get(key, _of(*_ODD))
        value = make(random) if random.random() < 0.96 else random.choice(_ODD)
        anchor = random.choice((" &a", " &b", " *a")) if random.random() < 0.02 else ""
        lines.append(f"{_spelt(random, key)}:{anchor} {value}\n")
    if random.random() < 0.15:
        lines.append("profile: cilium\n")
    if random.random() < 0.03:
        lines.append("<<: {" + f"cidrLimit: {random.choice(_ODD)}" + "}\n")
    if random.random() < 0.03:
        lines.insert(0, "x: &a [y]\ny: &b {<<: *b, k: [*a, *a]}\n")
    return "".join(lines)


def _plain(random: Random, depth: int = 0) -> object:
    """A value of JSON, of any type."""
    if depth < 3 and random.random() < 0.3:
        if random.random() < 0.5:
            return [_plain(random, depth + 1) for _ in range(random.randrange(4))]
        return {random.choice(_ODD): _plain(random, depth + 1) for _ in range(random.randrange(3))}
    return random.choice(
        (None, True, False, 0, -1, 64, 1.5, 1e300, 1 << 70, "", *random.sample(_ODD, 3))
    )


def _json(random: Random) -> str:
    document: dict[str, object] = {}
    for key in random.sample(_KEYS, random.randrange(5)):
        value: object = _VALUES[key](random)
        if key.endswith("CIDRs"):
            value = [_cidr(random) for _ in range(random.choice((0, 1, 3, 40)))]
        elif key in ("cidrLimit", "exemptNodeIPs") or key.startswith("masqLink"):
            value = random.choice((64, 1000, True, False, 5, None))
        document[key] = value if random.random() < 0.93 else _plain(random)
    text = json.dumps(document, indent=random.choice((None, 1)), ensure_ascii=random.random() < 0.5)
    if random.random() < 0.1:
        key = random.choice(_KEYS)
        text = text[:-1] + f', "{key}": 5, "{key.upper()}": {json.dumps(_plain(random))}}}'
    return text


def _wrapped(random: Random, text: str) -> str:
    """A manifest that holds the document, or looks as if it did."""
    key = random.choice(("config", "config", "ip-masq-agent", "b", "5", "~"))
    style = random.choice(("|", "|", "|-", "|+", ">", "|2", "json", "plain"))
    if style == "json":
        value = f" {json.dumps(text)}"
    elif style == "plain":
        value = f" {text}"
    else:
        value = f" {style}\n" + "".join(f"    {line}\n" for line in text.split("\n"))
    data = random.choice(("data", "data", "binaryData", "immutable"))
    manifest = f"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n{data}:\n  {key}:{value}\n"
    match random.randrange(6):
        case 0:
            return f"{key}:{value}\n"
        case 1:
            other = random.choice(("kind: Secret\napiVersion: v1\n", "{a: ", "", "kind: ConfigMap"))
            return f"{other}\n---\n{manifest}---\n{manifest}"
        case 2:
            items = "".join(f"  {line}\n" for line in manifest.split("\n"))
            kind = random.choice(("List", "ConfigMapList"))
            return f"kind: {kind}\napiVersion: v1\nitems:\n-{items[1:]}"
    return manifest


def _bytes(random: Random, text: str) -> bytes:
    coding = random.random()
    if coding < 0.01:
        return text.encode("utf-16", "surrogatepass")
    content = text.encode("utf-8", "surrogatepass" if coding < 0.02 else "replace")
    if random.random() < 0.12:
        changed = bytearray(content)
        for _ in range(random.randrange(1, 4)):
            place = random.randrange(len(changed) + 1)
            length = random.choice((0, 0, 1, 2, 30))
            changed[place : place + length] = random.choice(_PIECES)
        content = bytes(changed)
    return content


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """Documents that are merged into one, and the flags of the agent that reads them."""

    parts: Sequence[tuple[str, bytes]]
    flags: Flags


def fuzzed(seed: int) -> Fuzzed:
    """Return what ``seed`` stands for."""
    random = Random(seed)
    parts = []
    for number in range(random.choice((1, 1, 1, 1, 1, 2, 3, 0))):
        text = _json(random) if random.random() < 0.2 else _mapping(random)
        if random.random() < 0.1:
            text = _wrapped(random, text)
        if random.random() < 0.05:
            text = random.choice(("---\n", "%YAML 1.1\n---\n", "%YAML 1.2\n---\n", " \n")) + text
        if random.random() < 0.05:
            text += random.choice(("---\n", "...\n", "...\nx", "---\nkind: ConfigMap\n", "\n\t"))
        if random.random() < 0.01:
            text = random.choice(_ODD)
        parts.append((f"part{number}", _bytes(random, text)))
    flags = Flags(
        enable_ipv6=random.random() < 0.8,
        nomasq_all_reserved_ranges=random.random() < 0.3,
        random_fully=random.random() < 0.7,
        to_ports=random.choice(((), (PortRange(1024, 29999), PortRange(32768, 65535)))),
        cidr_limit=random.choice((None, None, None, None, 64, 64, 3, 0)),
    )
    return Fuzzed(parts, flags)
