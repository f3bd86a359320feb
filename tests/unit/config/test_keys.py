"""One record makes a key: it is read, joined, shown, described; and the schema is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from ipmasq_agent.config import document
from ipmasq_agent.config import keys as keys_module
from ipmasq_agent.config import schema as schema_module
from ipmasq_agent.config.document import parse_documents
from ipmasq_agent.config.keys import KEYS, PROFILE, view
from ipmasq_agent.config.model import Flags, Key
from ipmasq_agent.config.runs import items
from ipmasq_agent.config.scalars import SWITCH, word
from ipmasq_agent.config.schema import markdown, schema
from ipmasq_agent.config.tree import NodeTree, is_null
from ipmasq_agent.errors import ConfigError
from tests.fuzz.made_documents import fuzzed

DOCS = Path(__file__).parents[3] / "docs"
FLAGS = Flags(enable_ipv6=True, cidr_limit=None)
VALIDATOR = jsonschema.Draft202012Validator(schema())
COLOUR: Key[str] = Key("chainColour", word({"red": "R", "blue": "B"}), "R", "the colour")


def add(monkeypatch: pytest.MonkeyPatch, key: Key[Any]) -> None:
    """Let the table have one more key."""
    for module in (document, keys_module, schema_module):
        monkeypatch.setattr(module, "KEYS", (*KEYS, key))


# -- one record a key -------------------------------------------------------------------


def test_a_key_is_added_by_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch, COLOUR)
    parts = [("a", b"chainColour: red\n"), ("b", b"CHAINCOLOUR: blue\nmasqLinkLocal: true\n")]
    understood = parse_documents(parts, "ab", FLAGS)
    assert understood.warnings == ()
    assert understood.config[COLOUR] == "B"
    assert view(understood.config)["chainColour"] == "blue"
    absent = parse_documents([], "none", FLAGS).config
    assert absent[COLOUR] == "R"
    assert "chainColour" not in view(absent)
    with pytest.raises(ConfigError, match='a:1:14: chainColour: "green" is not red or blue'):
        parse_documents([("a", b"chainColour: green\n")], "a", FLAGS)
    near = parse_documents([("a", b"chainColor: red\nmasqLinkLocal: true")], "a", FLAGS)
    assert near.warnings[0].endswith("did you mean chainColour?")
    validator = jsonschema.Draft202012Validator(schema())
    assert validator.is_valid({"chainColour": "red"})
    assert not validator.is_valid({"chainColour": "green"})
    assert not validator.is_valid({"chaincolour": "green"})
    assert "| `chainColour` | none | the colour |\n" in markdown()


def test_what_a_profile_would_say_otherwise_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    loud = Key("loud", SWITCH, False, "x", default_of=lambda config: config[PROFILE] is not None)
    add(monkeypatch, loud)
    for text, shown in (
        ("{}", None),
        ("loud: false", None),
        ("loud: true", True),
        ("profile: cilium", True),
        ("profile: cilium\nloud: false", False),
    ):
        config = parse_documents([("a", text.encode())], "a", FLAGS).config
        assert view(config).get("loud") is shown


def test_what_is_published_is_what_the_table_says() -> None:
    """After a change: ``ipmasq-agent config schema``, and with ``-o text`` for the table."""
    published = (DOCS / "document.schema.json").read_text()
    assert published == json.dumps(schema(), indent=2) + "\n"
    assert markdown() in (DOCS / "document.md").read_text()


# -- the schema and the reader ----------------------------------------------------------


def plain(node: Any, depth: int = 0) -> Any:
    """A document as data, each scalar as Go's YAML resolves it; the last of two keys counts."""
    if node is None or is_null(node) or depth > 5:
        return None
    if isinstance(node, yaml.SequenceNode):
        return [plain(item, depth + 1) for item in items(node)]
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): plain(value, depth + 1) for key, value in node.value}
    kind = node.tag.rpartition(":")[2]
    unquoted = node.style in (None, "")
    if kind == "bool" or (unquoted and node.value.lower() in ("y", "n")):
        return node.value.lower() in ("y", "yes", "on", "true")
    digits = node.value.replace("_", "")
    if kind in ("int", "float") or (unquoted and digits[:1].isdigit()):
        for read in (lambda: int(digits, 0), lambda: int(digits, 8), lambda: float(digits)):
            try:
                return read()
            except ValueError:
                continue
    return node.value


def accepts(text: str | bytes) -> bool:
    content = text.encode() if isinstance(text, str) else text
    tree = NodeTree(content, "a")
    pairs = tree.pairs() if isinstance(tree.root, yaml.MappingNode) else ()
    own: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for is_merged, key, value in pairs:
        (merged if is_merged else own).setdefault(str(key.value), None)
        if is_merged:
            merged[str(key.value)] = merged[str(key.value)] or plain(value)
        else:
            own[str(key.value)] = plain(value)
    return bool(VALIDATOR.is_valid(merged | own if pairs else plain(tree.root)))


def understands(text: str) -> bool:
    try:
        parse_documents([("a", text.encode())], "a", FLAGS)
    except ConfigError:
        return False
    return True


BOTH_TAKE = [
    "",
    "{}",
    "null",
    "nonMasqueradeCIDRs: [10.0.0.0/8, 0.0.0.0/0, 192.168.1.1/32]",
    "nonMasqueradeCIDRs: ['fd00::/8', '::/0', '2001:db8::1/128', '64:ff9b::192.0.2.0/120']",
    "nonMasqueradeCIDRs: null",
    "NONMASQUERADECIDRS: []",
    "masqueradeCIDRs:\n- 9.0.0.0/8\nnativeRoutingCIDRs: [8.0.0.0/8]",
    *(f"cidrLimit: {value}" for value in ("64", "0x46", "7e1", "7_0", "null", "0o100")),
    *(f"masqLinkLocal: {value}" for value in ("true", "yes", "y", "Off", "null")),
    *(f"resyncInterval: {value}" for value in ("60s", "1h30m", "1.5s", ".5m", "+7s", "1ms", "5µs")),
    '{"resyncInterval": "1m", "masqLinkLocalIPv6": true}',
    *(f"defaultAction: {value}" for value in ("keep", "masquerade", "null")),
    *(f"podCIDRs: {value}" for value in ("auto", "null", "[172.20.0.0/16, 'fd00::/64']")),
    *(f"egressInterfaces: {v}" for v in ("auto", "null", "[eth*, '!eth1', 5, on, 'e[01]']")),
    *(f"snatAddress: {v}" for v in ("192.0.2.1", "'fd00::1'", "auto-route", "null")),
    "snatAddress: {IPv4: 192.0.2.1, ipv6: auto-route}",
    "exemptNodeIPs: on\nprofile: cilium\nunknown: [1, 2]",
    "profile: cilium\nnonMasqueradeCIDRs: [10.1.2.3/8]",
    "profile: {cilium: tunnel}\nnonMasqueradeCIDRs: [10.1.2.3/8]",
    "profile: {cilium: native}",
    "mas\N{KELVIN SIGN}: 1\nmasqLin\N{KELVIN SIGN}Local: true",
]
BOTH_REFUSE = [
    "[]",
    "text",
    "5",
    "unknown: 1",
    "nonMasqueradeCIDR: [10.0.0.0/8]",
    "nonMasqueradeCIDRs: 10.0.0.0/8",
    "nonMasqueradeCIDRs: {a: b}",
    *(f"nonMasqueradeCIDRs: [{value}]" for value in ("5", "null", "true", "[]", "x", "''")),
    *(f"masqueradeCIDRs: ['{c}']" for c in ("10.0.0.0", "10.0.0.0/33", "256.0.0.0/8", "1.2.3/8")),
    *(f"NativeRoutingCIDRs: ['{c}']" for c in ("::/129", "10.0.0.0/08", "010.0.0.0/8", " ::/0")),
    *(f"cidrLimit: {value}" for value in ("'64'", "1.5", "many", "[1]", "true", f"{1 << 63}")),
    *(f"masqLinkLocal: {value}" for value in ("'true'", "1", "maybe", "[]")),
    *(
        f"resyncInterval: {value}"
        for value in ("60", "null", "0s", "-1s", "1d", "'60'", "[]", "''")
    ),
    *(f"defaultAction: {value}" for value in ("drop", "Keep", "true", "[keep]")),
    *(f"podCIDRs: {value}" for value in ("[]", "5", "automatic", "[auto]", "172.20.0.0/16")),
    *(f"egressInterfaces: {v}" for v in ("[]", "eth0", "['a b']", "['!']", "[null]", "[[a]]")),
    *(f"snatAddress: {v}" for v in ("eth0", "[192.0.2.1]", "{ipv5: 192.0.2.1}", "5", "1.2.3.4/8")),
    *(f"snatAddress: {{ipv4: {v}}}" for v in ("'fd00::1'", "null", "[192.0.2.1]")),
    "exemptNodeIPs: 'yes'",
    "profile: calico",
    "PROFILE: calico",
    *(f"profile: {v}" for v in ("{cilium: vxlan}", "{cilium: null}", "{}", "[cilium]")),
]
# What one value cannot tell: the schema's description says that they are for the reader.
READER_REFUSES = [
    "nonMasqueradeCIDRs: [10.1.2.3/8]",
    "nonMasqueradeCIDRs: ['1::2::3/8', '::ffff:10.0.0.0/104']",
    "nonMasqueradeCIDRs: [10.0.0.0/8, 11.0.0.0/8]\ncidrLimit: 1",
    "nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqueradeCIDRs: [10.0.0.0/8]",
    "snatAddress: 127.0.0.1",
    "resyncInterval: 9999999h",
    '{"cidrLimit": 70.0}',
]


@pytest.mark.parametrize("text", BOTH_TAKE)
def test_what_the_reader_takes_the_schema_accepts(text: str) -> None:
    assert (understands(text), accepts(text)) == (True, True)


@pytest.mark.parametrize("text", BOTH_REFUSE)
def test_a_wrong_type_word_or_shape_is_refused_by_both(text: str) -> None:
    assert (understands(text), accepts(text)) == (False, False)


@pytest.mark.parametrize("text", READER_REFUSES)
def test_what_one_value_cannot_tell_only_the_reader_refuses(text: str) -> None:
    assert (understands(text), accepts(text)) == (False, True)


def test_the_schema_accepts_every_document_of_many_that_the_reader_does() -> None:
    taken = 0
    for seed in range(2_000):
        document = fuzzed(seed)
        try:
            for name, content in document.parts:
                understood = parse_documents([(name, content)], name, FLAGS)
                tree = NodeTree(content, name)
                manifest = isinstance(tree.root, yaml.MappingNode) and any(
                    key.value in ("kind", "config", "ip-masq-agent") for key, _ in tree.root.value
                )
                repeated = any("twice" in w or "spell" in w for w in understood.warnings)
                if tree.more or manifest or repeated:
                    continue
                taken += 1
                assert accepts(content), (seed, content)
        except ConfigError:
            continue
    assert taken > 200


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
