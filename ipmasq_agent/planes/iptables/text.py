"""Rules of iptables from text, whoever wrote them, and options in their one canonical form."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from ipmasq_agent.planes.rules.rule import Option, Rule, quote, read_prefix
from ipmasq_agent.policy.addresses import Family

_LONG = {
    "-s": "source", "--source": "source", "--src": "source",
    "-d": "destination", "--destination": "destination", "--dst": "destination",
    "-p": "protocol", "--protocol": "protocol", "--proto": "protocol",
    "-i": "in-interface", "--in-interface": "in-interface",
    "-o": "out-interface", "--out-interface": "out-interface",
    "-j": "jump", "--jump": "jump",
    "-g": "goto", "--goto": "goto",
    "-m": "match", "--match": "match",
    "-f": "fragment", "--fragment": "fragment",
}  # fmt: skip
# Matches that mean nothing by their name alone: their options say it all. The options of
# any other are named with it (``connmark.mark``), as two matches may share a name.
_SILENT_MODULES = frozenset({"addrtype", "comment", "mark", "multiport", "sctp", "set"})
_SILENT_MODULES |= {"statistic", "tcp", "udp", "conntrack", "icmp", "icmp6"}
_CORE = frozenset(_LONG.values())
# Options whose one value is free text, which may look like an option itself.
_FREE_TEXT = frozenset({"--comment", "--log-prefix", "--nflog-prefix", "--string"})
_PROTOCOLS = {"6": "tcp", "17": "udp", "132": "sctp", "1": "icmp", "58": "ipv6-icmp", "0": "all"}
_PROTOCOLS |= {"icmpv6": "ipv6-icmp"}
# Words end at what the kernel calls a space: a device's name may hold any other character.
_WORD = re.compile(r"\S+", re.ASCII)
_TOKEN = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"|(\S+)', re.DOTALL | re.ASCII)
# Listings quote free text, and print names as they are, a quote at their beginning included.
_NAMED = r"(?:-[Aiojg]|--physdev-(?:in|out)|--(?:match|add|del|map)-set)"
_QUOTED = r'"(?:[^"\\]|\\.)*"(?= |\Z)'
_LISTED = re.compile(rf'({_NAMED}) ([^ ]+)|({_QUOTED})|([^ "][^ ]*)', re.DOTALL)
_PLAINLY_QUOTED = re.compile(rf'[^"]*(?:(?<= ){_QUOTED}[^"]*)*', re.DOTALL)
_QUOTE_IN_NAME = re.compile(rf'(?:^| ){_NAMED} [^ ]*"')
_LIKE_AN_OPTION = re.compile(rf"(?:^| ){_NAMED} [-!]")
_PROBABILITY_UNIT = 1 << 31  # the kernel keeps a probability as 31 bits (xt_statistic.h)


@lru_cache(maxsize=1024)  # most lines of a pass are those of the pass before
def parse_rule(text: str, family: Family, *, readable: bool = True) -> Rule:
    """Return the rule that ``text`` (without ``-A CHAIN``) writes down.

    Options that are not known are kept as they are, so that a rule of someone else's
    compares equal to itself and is never mistaken for one that does less.
    """
    comment: str | None = None
    options: list[Option] = []
    modules: Counter[str] = Counter()
    prefix = ""
    for option in _options(_words(text)):
        name = option.name
        if name == "comment":
            comment = option.values[0] if option.values else ""
        elif name == "match":
            module = option.values[0] if option.values else ""
            modules[module] += 1
            prefix = "" if module in _SILENT_MODULES else f"{module}."
            if modules[module] > 1 and module != "comment":
                # The second set match is not to be taken for the first one's options.
                prefix = f"{module}#{modules[module]}."
        elif name in _CORE:
            canonical = _canonical(option, family)
            if canonical is not None:
                options.append(canonical)
            if name in ("jump", "goto"):
                prefix = ""  # what follows belongs to the target
        elif prefix:
            options.append(option._replace(name=prefix + name))
        else:
            options.append(_canonical(option, family) or option)
    options += (Option("match", (name,)) for name in modules if name not in _SILENT_MODULES)
    return Rule(text, tuple(sorted(options)), comment, readable)


def rule_of(options: tuple[Option, ...], family: Family) -> Rule:
    """Return the rule that options make, in the order in which they are to be written."""
    comment = next((values[0] for name, values, _ in options if name == "comment"), None)
    canonical = (_canonical(option, family) for option in options if option.name != "comment")
    meaning = tuple(sorted(option for option in canonical if option is not None))
    return Rule(options, meaning, comment)


def unlisted(text: str) -> str:
    """Return a rule as ``iptables -S`` and ``iptables-save`` list it in the words of a restore.

    The two differ where a name holds a quote, or begins as an option does: a listing prints
    it as it is, a restore takes it in quotes (xtables_save_string and save_iface of
    iptables, add_param_to_argv).
    """
    if '"' not in text and not _LIKE_AN_OPTION.search(text):
        return text
    words = _listed_words(text)
    return text if words is None else " ".join(words)


def is_whole(text: str) -> bool:
    """Whether a line of a listing does not end within a quoted text, which may hold line feeds."""
    if '"' not in text:
        return True
    if _PLAINLY_QUOTED.fullmatch(text) and not _QUOTE_IN_NAME.search(text):
        return True  # nearly all are
    return _listed_words(text) is not None


def _listed_words(text: str) -> list[str] | None:
    """Return the words of a listed rule, quoted for a restore; None where a quote is open."""
    words: list[str] = []
    position = 0
    while position < len(text):
        if text[position] == " ":
            position += 1
            continue
        found = _LISTED.match(text, position)
        if found is None:
            return None
        flag, name, quoted, word = found.groups()
        words += (
            (flag, quote(name)) if flag else (quoted or (quote(word) if '"' in word else word),)
        )
        position = found.end()
    return words


def _words(text: str) -> list[tuple[str, bool]]:
    """Return the words of a rule, each with whether it was quoted."""
    if '"' not in text:
        return [(word, False) for word in _WORD.findall(text)]
    return [
        (match[2], False)
        if match[1] is None
        else (re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL), True)
        for match in _TOKEN.finditer(text)
    ]


def _options(words: list[tuple[str, bool]]) -> Iterator[Option]:
    """Group words into options: a flag, an ``!`` before it, the words that follow."""
    position, negated = 0, False
    while position < len(words):
        word, quoted = words[position]
        position += 1
        if word == "!" and not quoted:
            negated = True
            continue
        values: list[str] = []
        while position < len(words) and (
            (word in _FREE_TEXT and not values) or not _begins_option(*words[position])
        ):
            values.append(words[position][0])
            position += 1
        yield Option(_LONG.get(word, word.lstrip("-")), tuple(values), negated)
        negated = False


def _begins_option(word: str, quoted: bool) -> bool:
    if quoted:
        return False
    return word == "!" or (len(word) > 1 and word[0] == "-" and not word[1:].isdigit())


def _canonical(option: Option, family: Family) -> Option | None:
    """Return the one form of an option, or None where it restricts nothing."""
    name, values, negated = option
    if name in ("source", "destination") and len(values) == 1:
        prefix = read_prefix(values[0], family)
        if prefix is None:
            return option
        if prefix.length == 0 and not negated:
            return None
        return Option(name, (str(prefix),), negated)
    if name == "protocol" and len(values) == 1:
        protocol = _PROTOCOLS.get(values[0], values[0].lower())
        return None if protocol == "all" and not negated else Option(name, (protocol,), negated)
    if name == "probability" and len(values) == 1:
        if not re.fullmatch(r"[01](\.\d{0,30})?", values[0], re.ASCII):
            return option
        return Option(name, (str(round(float(values[0]) * _PROBABILITY_UNIT)),), negated)
    if name in ("to-ports", "dport", "sport") and len(values) == 1:
        first, dash, last = values[0].replace(":", "-").partition("-")
        return Option(name, (f"{first}-{last if dash else first}",), negated)
    if name == "to-source" and len(values) == 1:
        return Option(name, (_canonical_source(values[0], family),), negated)
    return option


def _canonical_source(text: str, family: Family) -> str:
    """Return ``ADDRESS:FIRST-LAST`` (the address of IPv6 in brackets) in its one form."""
    match = re.fullmatch(r"\[?([0-9A-Fa-f.:]+?)\]?(?::(\d+)(?:-(\d+))?)?", text, re.ASCII)
    if match is None or (family is Family.IPV6 and match[2] and not text.startswith("[")):
        match = re.fullmatch(r"([0-9A-Fa-f.:]+)()()", text, re.ASCII)
    prefix = read_prefix(match[1], family) if match else None
    if match is None or prefix is None:
        return text
    address = family.show(prefix.first)
    if not match[2]:
        return address
    ports = f"{match[2]}-{match[3] or match[2]}"
    return f"[{address}]:{ports}" if family is Family.IPV6 else f"{address}:{ports}"
