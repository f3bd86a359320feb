"""No text of a document, of a flag or of an object's name is syntax anywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ipmasq_agent
from ipmasq_agent.answers.route_formats import FORMATS
from ipmasq_agent.answers.routes import PodRoute
from ipmasq_agent.cli.options import settings_of
from ipmasq_agent.config.assemble import assemble_family
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.config.model import Flags
from ipmasq_agent.errors import AgentError
from ipmasq_agent.host import commands
from ipmasq_agent.planes.iptables.legacy import IptablesLegacyPlane
from ipmasq_agent.planes.iptables.nft import IptablesNftPlane
from ipmasq_agent.planes.nftables.compile import DEVICES, compile_policy
from ipmasq_agent.planes.nftables.wire import elements_for
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.rules.rule import Option, Rule
from ipmasq_agent.planes.rules.table import POSTROUTING, Chain, Table, empty_table
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.facts import LINKS, Facts, Links
from ipmasq_agent.policy.model import Capabilities
from tests.fuzz import streams
from tests.fuzz.documents import FACTS

V4 = Family.IPV4
PACKAGE = Path(ipmasq_agent.__file__).parent
# What a name of a device may not hold (dev_valid_name, net/core/dev.c).
_NOT_IN_DEVICES = {*"/:\0 \t\n\v\f\r\xa0", "\x85"}
HOSTILE: tuple[str, ...] = (
    "-j",
    "!",
    '"',
    "'",
    "\\",
    '" -j ACCEPT',
    "$(x)",
    "`x`",
    ";",
    "|",
    "#",
    "COMMIT",
    "*nat",
)
HOSTILE += (
    "x\n-A POSTROUTING -j ACCEPT",
    "--",
    "-",
    "",
    "\0",
    "é",
    "\udcff",
    "a\u2028b",
    "[x]",
    "+",
)


def texts(**limits: Any) -> st.SearchStrategy[str]:
    """Any text, often one that has a meaning to some program."""
    return st.text(**limits) | st.lists(st.sampled_from(HOSTILE), min_size=1).map("".join)


def _of_device(text: str) -> str:
    kept = "".join(char for char in text if char not in _NOT_IN_DEVICES)
    raw = kept.encode(errors="surrogateescape")[:15]
    return raw.decode(errors="surrogateescape")


DEVICE_NAMES = (
    texts(alphabet=st.characters(max_codepoint=0x2FF, exclude_categories=["Cs"]))
    .map(_of_device)
    .filter(lambda name: name not in ("", ".", ".."))
)


class Programs:
    """Programs that are recorded and not run: what each was called with, and was fed."""

    def __init__(self) -> None:
        self.calls: list[tuple[Sequence[str], str]] = []
        self.fail = False

    def __call__(self, argv: Sequence[str], how: object, text: str, *_: object) -> int:
        assert how["env"] if isinstance(how, dict) else False
        self.calls.append((argv, text))
        return int(self.fail)


@contextmanager
def programs() -> Iterator[Programs]:
    """Record what goes through the one door by which programs are started."""
    recorded = Programs()
    with mock.patch.object(commands, "_run", recorded):
        yield recorded


def facts_with(devices: Sequence[str]) -> Facts:
    links = Links(tuple(devices), tuple(devices))
    return FACTS.with_(LINKS, links)


def written(placement: Placement, document: dict[str, Any], devices: Sequence[str]) -> Programs:
    """Return what programs are told where a document is put into force with sets and without."""
    flags = Flags(enable_ipv6=True, cidr_limit=None)
    content = yaml.safe_dump(document, allow_unicode=True).encode()
    config = parse_document(content, "document", flags).config
    with programs() as recorded:
        for family in config.families:
            policy = assemble_family(config, family, Capabilities(), facts_with(devices))
            for kind in (IptablesNftPlane, IptablesLegacyPlane):
                for with_set in (False, True):
                    plane = kind(placement, with_set=with_set)
                    plane._lock = 0  # type: ignore[union-attr]
                    change = plane.dialect.plan(empty_table(family), plane.dialect.compile(policy))
                    plane._sets.prepare(family, change.sets)
                    plane.write_rules(family, change)
                    gone = plane.dialect.plan(change.result, plane.dialect.absent(family))
                    plane.write_rules(family, gone)
                    plane._sets.finish(family, gone.sets)
    return recorded


def check(recorded: Programs, chain: str, devices: Sequence[str]) -> None:
    """See that programs were told nothing but our rules, with these names as names."""
    named: set[str] = set()
    for argv, text in recorded.calls:
        program, *rest = argv
        if program == "ipset":
            verb, *names = rest
            assert verb in ("restore", "swap", "destroy")
            named |= {*names, *streams.sets(text)}
            continue
        assert program.removeprefix("ip6").removeprefix("ip") in (
            "tables-nft-restore",
            "tables-legacy-restore",
        )
        assert rest == ["--noflush"]
        told = streams.restored(text)
        assert told.chains <= {chain, POSTROUTING}
        assert told.devices <= set(devices)
        assert told.targets <= {chain, "RETURN", "MASQUERADE", "SNAT"}
        assert all(comment.startswith("ipmasq-agent: ") for comment in told.comments)
        named |= told.sets
    assert all(len(name) < 32 and name.startswith(chain[:16]) for name in named)


DOCUMENT = {
    "nonMasqueradeCIDRs": ["10.0.0.0/8", "fd00::/8"],
    "masqueradeCIDRs": ["10.5.0.0/16"],
    "podCIDRs": ["10.244.0.0/16", "fd01::/64"],
    "snatAddress": {"ipv4": "192.0.2.1", "ipv6": "2001:db8::1"},
}


@settings(derandomize=True)
@given(st.lists(DEVICE_NAMES, min_size=1, max_size=3, unique=True))
@example(['"', "-j", "!"])
def test_names_of_devices_are_names_to_every_program(devices: list[str]) -> None:
    document = {**DOCUMENT, "egressInterfaces": "auto"}
    try:
        recorded = written(Placement(), document, devices)
    except AgentError:
        assert any(name.endswith("+") for name in devices)
        return
    check(recorded, "IP-MASQ", devices)
    assert any("-o" in text for _, text in recorded.calls)


@settings(derandomize=True)
@given(DEVICE_NAMES)
def test_names_of_devices_are_names_to_nf_tables(device: str) -> None:
    config = parse_document(b"egressInterfaces: auto\n", "document", Flags()).config
    policy = assemble_family(config, V4, Capabilities(), facts_with([device]))
    held = compile_policy(policy, Placement()).sets[DEVICES]
    (key,) = list(elements_for(held, V4, range(len(held))))
    assert key == device.encode(errors="surrogateescape").ljust(16, b"\0")


_KEYS = st.sampled_from(
    [*DOCUMENT, "egressInterfaces", "resyncInterval", "cidrLimit", "profile", "x"]
)
_VALUES = texts() | st.lists(texts(), max_size=3) | st.dictionaries(texts(), texts(), max_size=2)


@settings(derandomize=True)
@given(st.dictionaries(_KEYS, _VALUES, max_size=3))
@example({"egressInterfaces": ["*\n-A POSTROUTING -j ACCEPT", "e*"]})
@example({"nonMasqueradeCIDRs": ["10.0.0.0/8\n-A POSTROUTING -j ACCEPT"]})
@example({"snatAddress": "192.0.2.1\nCOMMIT"})
def test_text_of_a_document_is_refused_or_is_no_syntax(changed: dict[str, Any]) -> None:
    devices = ["eth0", "wg-0"]
    try:
        recorded = written(Placement(), {**DOCUMENT, **changed}, devices)
    except (AgentError, yaml.YAMLError):
        return
    check(recorded, "IP-MASQ", devices)


@settings(derandomize=True)
@given(texts(), st.sampled_from(["append", "first"]))
@example("A" * 28, "first")
@example("-A", "append")
@example("a\n", "append")
@example("é", "append")
def test_a_chain_has_a_name_that_is_a_name_or_is_refused(chain: str, position: str) -> None:
    try:
        placement = settings_of({"masq_chain": chain, "jump_position": position}).placement
    except AgentError:
        return
    check(written(placement, DOCUMENT, []), chain, [])


@settings(derandomize=True)
@given(texts(max_size=60), DEVICE_NAMES)
@example("x\n-A POSTROUTING -j ACCEPT", "eth0")
@example('" -j ACCEPT "', '"')
@example("\\", "a")
def test_a_jump_that_others_wrote_is_deleted_by_no_word_of_its_comment(
    comment: str, device: str
) -> None:
    family, chain = V4, "IP-MASQ"
    comment = comment.replace("\0", "")
    options = (
        Option("out-interface", (device,)),
        Option("comment", (comment,)),
        Option("jump", (chain,)),
    )
    jump = Rule(options, tuple(sorted(options[::2])), comment)
    table = Table(
        family, {chain: Chain(chain, None, ()), POSTROUTING: Chain(POSTROUTING, None, (jump,))}
    )
    plane = IptablesNftPlane(Placement(adopt=True))
    change = plane.dialect.plan(table, plane.dialect.absent(family))
    deleted: list[object] = []
    with (
        programs() as recorded,
        mock.patch.object(plane, "_handles_of", return_value=[7]),
        mock.patch("ipmasq_agent.planes.iptables.nft.delete_rules", lambda *a: deleted.append(a)),
    ):
        plane.write_rules(family, change)
    assert recorded.calls
    for _, text in recorded.calls:
        told = streams.restored(text)
        assert told.chains <= {chain, POSTROUTING}
        assert told.comments <= {comment}
        assert told.devices <= {device}
        assert told.targets <= {chain}
    assert bool(deleted) is ("\n" in comment)


@settings(derandomize=True)
@given(texts())
@example("a\nip route add default via 6.6.6.6")
def test_a_node_has_a_name_that_is_no_line_of_a_router(node: str) -> None:
    route = PodRoute(Prefix(V4, 10 << 24, 24), 1, node)
    others = PodRoute(Prefix(V4, 10 << 24, 24), 1, "a")
    for form in FORMATS.values():
        told, plain = (list(form.static([each])) for each in (route, others))
        assert len(told) == len(plain)
        for line, usual in zip(told, plain, strict=True):
            assert line == usual or line.startswith(f"{form.comment} ")
            assert len(line.splitlines()) == 1


# -- the package -----------------------------------------------------------------------------

_OF_SHELLS = {
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("asyncio.create_subprocess_shell", "pty.spawn"),
}
# Guests, which start hosts of their own and never on the agent's behalf.
_GUESTS = ("lab/", "bench/")


def test_programs_are_started_at_one_door_and_no_shell_is_ever_asked() -> None:
    doors = set()
    count = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        place = str(path.relative_to(PACKAGE))
        for node in ast.walk(ast.parse(path.read_bytes())):
            match node:
                case ast.Import(names=names) if "subprocess" in {name.name for name in names}:
                    doors.add(place)
                case ast.ImportFrom(module="subprocess"):
                    doors.add(place)
                case ast.Call():
                    count += 1
                    see_that_no_shell_is_asked(place, node)
    assert count > 1000
    assert {place for place in doors if not place.startswith(_GUESTS)} == {"host/commands.py"}


def see_that_no_shell_is_asked(place: str, call: ast.Call) -> None:
    where = f"{place}:{call.lineno}"
    called = ""
    if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
        called = f"{call.func.value.id}.{call.func.attr}"
    assert called not in _OF_SHELLS, where
    if not place.startswith(_GUESTS):
        assert not called.startswith(("os.exec", "os.spawn", "os.posix_spawn")), where
    assert "shell" not in {keyword.arg for keyword in call.keywords}, where
    match call.args:
        case [ast.List(elts=[ast.Constant(value=program), *_]), *_]:
            assert place.startswith(_GUESTS) or program not in ("sh", "bash"), where


def test_the_reader_of_these_tests_sees_syntax_where_there_is_some() -> None:
    with pytest.raises(AssertionError):
        streams.restored('*nat\n-A IP-MASQ -o "a" -j RETURN\n-P INPUT DROP\nCOMMIT\n')
    with pytest.raises((AssertionError, KeyError)):
        streams.restored("*nat\n-A IP-MASQ -o a -i b -j RETURN\nCOMMIT\n")
    with pytest.raises(AssertionError):
        streams.restored("*nat\n-A IP-MASQ -o -j -j RETURN\nCOMMIT\n")
    with pytest.raises(AssertionError):
        streams.sets("add x 10.0.0.0/8\nflush\n")
    assert list(streams.words(r'-o "a \" b" ! x')) == [
        *(("-o", False), ('a " b', True), ("!", False), ("x", False))
    ]
