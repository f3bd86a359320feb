"""A second reader of the kernel, which knows nothing of the agent.

Tests ask it what the kernel holds after the agent wrote. It may not import the package (a
test proves that it does not), and shares no parser with it: what both get wrong in the same
way would go unseen. Standard library, plus the Debian tools iptables, nftables, ipset and
tcpdump. Every reader takes the name of a network namespace, or acts where the caller is.

``python tests/oracle.py [NAMESPACE]`` prints what it sees, for people.
"""

from __future__ import annotations

import json
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

Variant = Literal["nft", "legacy"]
Family = Literal["ipv4", "ipv6"]
VARIANTS: tuple[Variant, ...] = ("nft", "legacy")
NFT_FAMILY = {"ipv4": "ip", "ipv6": "ip6"}
FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")

# A quoted argument, or a bare one. iptables-save escapes more inside quotes than a shell
# would (a single quote too), so shlex reads some comments wrongly.
_WORD = re.compile(r'"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>\S+)')
# What a comment and a probability bring along, and so adds nothing to them.
_IMPLIED = {("-m", "comment"), ("-m", "statistic"), ("--mode", "random")}
_COUNTERS = re.compile(r"\[(\d+):(\d+)\]")


class Unreadable(AssertionError):
    """What a tool printed is not a whole and readable answer."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule as iptables-save prints it. Two rules are equal when they do the same.

    Attributes:
        destination: prefix of the ``-d`` match, or None for any.
        target: of ``-j``, or empty.
        protocol: of ``-p``, or None for any.
        ports: of ``--to-ports``, such as ``1024-29999`` or ``42``.
        probability: of the statistic match, to nine digits: the kernel keeps 31 bits.
        random_fully: whether the target has ``--random-fully``.
        other: every word that no attribute above accounts for.
        comment: of the comment match; not compared.
        packets: counter; not compared.
        bytes: counter; not compared.
    """

    destination: str | None = None
    target: str = ""
    protocol: str | None = None
    ports: str | None = None
    probability: float | None = None
    random_fully: bool = False
    other: tuple[str, ...] = ()
    comment: str | None = field(default=None, compare=False)
    packets: int = field(default=0, compare=False)
    bytes: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain: its policy (``-`` for one that a user made) and its rules in order."""

    policy: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class IpSet:
    """A set of ``ipset save``: its type, options, and members with theirs, sorted."""

    kind: str
    options: tuple[str, ...]
    members: tuple[str, ...]


def _inside(netns: str | None, argv: Sequence[str]) -> list[str]:
    return ["ip", "netns", "exec", netns, *argv] if netns else list(argv)


def _read(netns: str | None, *argv: str) -> str:
    done = subprocess.run(
        _inside(netns, argv), capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode != 0:
        raise Unreadable(f"{' '.join(argv)} exited with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def legacy_tables(family: Family, netns: str | None = None) -> set[str]:
    """Return the legacy tables that exist, creating none.

    Not through iptables-legacy: opening a table creates it.
    """
    name = "ip_tables_names" if family == "ipv4" else "ip6_tables_names"
    # The namespace that /proc shows is that of the thread which looks.
    path = f"/proc/thread-self/net/{name}"
    return set((_read(netns, "cat", path) if netns else Path(path).read_text()).split())


def nft_tables(family: Family, netns: str | None = None) -> set[str]:
    """Return the names of the family's nft tables, iptables-nft's and native ones alike."""
    answer = json.loads(_read(netns, "nft", "-j", "list", "tables", NFT_FAMILY[family]))
    return {item["table"]["name"] for item in answer["nftables"] if "table" in item}


def save_text(
    variant: Variant, family: Family, netns: str | None = None, table: str = "nat"
) -> str:
    """Return what iptables-save prints for a table, or nothing where it does not exist."""
    if variant == "legacy" and table not in legacy_tables(family, netns):
        return ""
    # Asked for one table that is not there, iptables-nft-save makes up an empty one and
    # iptables-legacy-save creates it; asked for all, both print those that there are.
    program = ("iptables" if family == "ipv4" else "ip6tables") + f"-{variant}-save"
    text = _read(netns, program, "-c")
    # "is incompatible", or "contains incompatible base-chains", and exits with 0.
    if re.search(f"^# Table `{table}' .*incompatible", text, re.MULTILINE):
        raise Unreadable(f"{program} cannot show the {table} table")
    _, found, rest = text.partition(f"*{table}\n")
    return found + rest.partition("\n# Completed")[0]


def read_table(
    variant: Variant, family: Family, netns: str | None = None, table: str = "nat"
) -> dict[str, Chain]:
    """Return the chains of a table by name; none where the table does not exist."""
    text = save_text(variant, family, netns, table)
    policies: dict[str, str] = {}
    rules: dict[str, list[Rule]] = {}
    committed = not text
    for line in text.splitlines():
        if line == f"*{table}":
            continue
        if committed:
            raise Unreadable(f"a line after COMMIT: {line!r}")
        if line.startswith(":"):
            chain, policy, _ = line[1:].split(" ", 2)
            policies[chain] = policy
            rules[chain] = []
        elif line == "COMMIT":
            committed = True
        else:
            chain, rule = parse_rule(line)
            rules[chain].append(rule)
    if not committed:
        raise Unreadable("the answer ends before COMMIT")
    return {name: Chain(policies[name], tuple(rules[name])) for name in policies}


def read_chain(
    variant: Variant, family: Family, chain: str, netns: str | None = None
) -> tuple[Rule, ...] | None:
    """Return the rules of a nat chain in order, or None where there is no such chain."""
    found = read_table(variant, family, netns).get(chain)
    return None if found is None else found.rules


def parse_rule(line: str) -> tuple[str, Rule]:
    """Return the chain and the rule of a line such as ``[0:0] -A CHAIN -d ... -j ...``."""
    words = [
        re.sub(r"\\(.)", r"\1", match["quoted"]) if match["bare"] is None else match["bare"]
        for match in _WORD.finditer(line)
    ]
    counters = _COUNTERS.fullmatch(words[0])
    packets, octets = (int(counters[1]), int(counters[2])) if counters else (0, 0)
    if counters:
        words.pop(0)
    if words[:1] != ["-A"]:
        raise Unreadable(f"not a rule: {line!r}")
    chain, words = words[1], words[2:]
    known: dict[str, str] = {}
    other: list[str] = []
    flags: set[str] = set()
    position = 0
    while position < len(words):
        word = words[position]
        value = words[position + 1] if position + 1 < len(words) else ""
        if word in ("-d", "-p", "-j", "--to-ports", "--comment", "--probability"):
            known[word] = value
            position += 2
        elif (word, value) in _IMPLIED:
            position += 2
        elif word == "--random-fully":
            flags.add(word)
            position += 1
        elif word == "!":
            # Taken with its match, so that `! -d X` is never read as `-d X`.
            other.extend(words[position : position + 3])
            position += 3
        else:
            other.append(word)
            position += 1
    probability = known.get("--probability")
    return chain, Rule(
        destination=known.get("-d"),
        target=known.get("-j", ""),
        protocol=known.get("-p"),
        ports=known.get("--to-ports"),
        probability=None if probability is None else round(float(probability), 9),
        random_fully="--random-fully" in flags,
        other=tuple(other),
        comment=known.get("--comment"),
        packets=packets,
        bytes=octets,
    )


def nft_objects(kind: str, netns: str | None = None) -> list[dict[str, Any]]:
    """Return nft's objects of a kind: ``table``, ``chain``, ``rule`` (with handles), ``set``.

    An iptables-nft rule shows its xtables parts by name only; read those with read_table.
    """
    return [item[kind] for item in _ruleset(netns) if kind in item]


def _ruleset(netns: str | None) -> list[dict[str, Any]]:
    answer = json.loads(_read(netns, "nft", "-j", "list", "ruleset"))
    return [item for item in answer["nftables"] if "metainfo" not in item]


def rule_handles(family: Family, chain: str, netns: str | None = None) -> list[int]:
    """Return the handles of a nat chain's rules in order. One that is deleted and written
    again, alike as it may be, comes back with another handle.
    """
    where = (NFT_FAMILY[family], "nat", chain)
    return [
        rule["handle"]
        for rule in nft_objects("rule", netns)
        if (rule["family"], rule["table"], rule["chain"]) == where
    ]


def ipsets(netns: str | None = None) -> dict[str, IpSet]:
    """Return the sets that ``ipset save`` prints, by name."""
    heads: dict[str, tuple[str, tuple[str, ...]]] = {}
    members: dict[str, list[str]] = {}
    for line in _read(netns, "ipset", "save").splitlines():
        verb, name, rest, *options = line.split(" ")
        if verb == "create":
            # The seed of the hash is new at each creation: part of no comparison.
            kept = " ".join(options)
            heads[name] = rest, tuple(re.sub(r" ?initval \S+", "", kept).split())
            members[name] = []
        else:
            members[name].append(" ".join([rest, *options]))
    return {
        name: IpSet(kind, options, tuple(sorted(members[name])))
        for name, (kind, options) in heads.items()
    }


def snapshot(
    netns: str | None = None, *, counters: bool = False, handles: bool = False
) -> dict[str, object]:
    """Return all that the nat state of a namespace is made of, to compare before and after.

    Both backends and both families, which legacy tables exist, what nft's tables hold, the
    native ones too, and the ipsets.

    Args:
        netns: name of the namespace; where the caller is if None.
        counters: take the packet and byte counts of rules and policies too.
        handles: take nft's handles too, which tell a rule from one written again.
    """
    state: dict[str, object] = {}
    for family in FAMILIES:
        state[f"legacy tables {family}"] = sorted(legacy_tables(family, netns))
        for variant in VARIANTS:
            try:
                text = save_text(variant, family, netns)
            except Unreadable as reason:
                text = str(reason)  # nft, below, shows what iptables cannot
            if not counters:
                text = _COUNTERS.sub("", text)
            state[f"{variant} nat {family}"] = [line.strip() for line in text.splitlines()]
    dropped = (set() if counters else {"packets", "bytes"}) | (set() if handles else {"handle"})
    state["nft"] = [_without(item, dropped) for item in _ruleset(netns)]
    state["ipsets"] = ipsets(netns)
    return state


def _without(item: Any, dropped: set[str]) -> Any:
    if isinstance(item, dict):
        return {k: _without(value, dropped) for k, value in item.items() if k not in dropped}
    if isinstance(item, list):
        return [_without(value, dropped) for value in item]
    return item


class Capture:
    """Packets seen on a device by tcpdump, as (source, destination) addresses.

    A context manager; on entry it returns once tcpdump listens, so nothing sent from then
    on is missed. Read the answers with ``wait``.

    Args:
        netns: the namespace of the receiver.
        device: such as ``eth0``, or ``any``.
        expression: a pcap filter.
    """

    _LINE = re.compile(r"\bIP6? (\S+) > (\S+?): ")

    def __init__(self, netns: str | None, device: str, expression: str = "ip or ip6") -> None:
        self.seen: list[tuple[str, str]] = []
        options = ("--immediate-mode", "-l", "-nn", "-t", "-Q", "in")
        self._argv = _inside(netns, ("tcpdump", *options, "-i", device, expression))
        self._buffer = b""

    def __enter__(self) -> Capture:
        self._child = subprocess.Popen(
            self._argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        assert self._child.stderr is not None
        said = b""
        while b"listening on" not in said:
            piece = self._child.stderr.read(4096)
            if not piece:
                self.__exit__(None, None, None)
                raise Unreadable(f"tcpdump does not listen: {said.decode()}")
            said += piece
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._child.terminate()
        self._child.wait(10)
        for stream in (self._child.stdout, self._child.stderr):
            if stream is not None:
                stream.close()

    def wait(self, count: int = 1, timeout: float = 5.0) -> list[tuple[str, str]]:
        """Return the packets seen so far, once there are ``count`` or time is out."""
        deadline = time.monotonic() + timeout
        assert self._child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            while len(self.seen) < count:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    break
                piece = self._child.stdout.read(65536)
                if not piece:
                    break
                *lines, self._buffer = (self._buffer + piece).split(b"\n")
                for match in filter(None, (self._LINE.search(line.decode()) for line in lines)):
                    self.seen.append((_address(match[1]), _address(match[2])))
        return list(self.seen)

    def sources(self, count: int = 1, timeout: float = 5.0) -> list[str]:
        """Return the source addresses of the packets seen, once there are ``count``."""
        return [source for source, _ in self.wait(count, timeout)]


def _address(text: str) -> str:
    """Return the address of tcpdump's ``ADDRESS`` or ``ADDRESS.PORT``."""
    dots = 0 if ":" in text else 3
    return text.rsplit(".", 1)[0] if text.count(".") > dots else text


if __name__ == "__main__":
    print(json.dumps(snapshot(*sys.argv[1:2], counters=True), indent=2, default=repr))
