"""A long list is read to the letter as YAML and JSON read it, runs or no runs."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ipmasq_agent.config import tree
from ipmasq_agent.config.document import Understood, parse_document
from ipmasq_agent.config.keys import NON_MASQUERADE_CIDRS
from ipmasq_agent.config.model import Flags
from ipmasq_agent.config.runs import JSON_RUN, Cut, items
from ipmasq_agent.config.tree import NodeTree
from ipmasq_agent.errors import ConfigError
from tests.reasons import origin

ONE = Flags(cidr_limit=None)
BOTH = Flags(enable_ipv6=True, cidr_limit=None)


class Whole:
    """In place of ``Cut``: finds no run in any text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __bool__(self) -> bool:
        return False


def flat(node: yaml.Node | None, seen: tuple[int, ...] = ()) -> Any:
    """A tree as plain values: kind, tag, value, line and column of each node."""
    if node is None or id(node) in seen:
        return None
    value: Any = node.value
    seen = (*seen, id(node))
    if isinstance(node, yaml.SequenceNode):
        value = [flat(item, seen) for item in items(node)]
    elif isinstance(node, yaml.MappingNode):
        value = [(flat(key, seen), flat(item, seen)) for key, item in value]
    return type(node).__name__, node.tag, value, node.start_mark.line, node.start_mark.column


def read(text: str) -> Any:
    """Everything there is to know about a text: its tree, or what is wrong with it."""
    try:
        found = NodeTree(text.encode(), "cm")
    except ConfigError as refusal:
        return refusal.problems
    return flat(found.root), found.more, found.is_json


def understand(text: str, flags: Flags) -> Any:
    try:
        return parse_document(text.encode(), "cm", flags)
    except ConfigError as refusal:
        return refusal.problems


def check_alike(text: str) -> None:
    with mock.patch.object(tree, "Cut", Whole), mock.patch.object(tree, "JSON_RUN") as pattern:
        pattern.match.return_value = None
        tree_of_all, meaning, refusal = read(text), understand(text, BOTH), understand(text, ONE)
    assert read(text) == tree_of_all
    assert understand(text, BOTH) == meaning
    assert understand(text, ONE) == refusal


PLAIN = ["10.0.0.0/8", "10.1.0.0/16", "192.168.7.0/24", "fd00::/8", "fd00:1::/32", "0.0.0.0/0"]
ODD = ["a/1", "'::/0'", '"10.2.0.0/16"', "'10.3.0.0/16'", "10.0.0.0/08", "10.0.0.1/8", "1:2/3"]
CIDRS = st.sampled_from([*PLAIN, *ODD])
TAILS = st.sampled_from(
    ["", "", "", " ", "  # why", " #", "#", " # café", " # \x07", "\t", " x", ": y"]
)
BREAKS = st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\u2028", "\x85"])
_LINES = (
    *("", "  ", "# text", "      # text", "\t", "---", "...", "- ", "-", "- x", "  - [a, b]", "x"),
    *("k: |", "k: >", "k: 'a", 'k: "a', "'", '"', "k: [", "]", "k: a", "k:", "  k:", "? ", ": v"),
    *("- &a 10.0.0.0/8", "- *a", "k: &b", "k: *b", "- !!int", "- !x 10.0.0.0/8", "- - 10.0.0.0/8"),
    *("nonMasqueradeCIDRs:", "masqueradeCIDRs:", "cidrLimit: 9", "- |", "- 'a", "é: ü", "<<: *b"),
    *("# ü\ufeff", "# \u2028", "# 😀", "# é\x85", "# \x80", "# \ufffe", "# \u2029- 10.0.0.0/8"),
    *("\ufeff", "%YAML 1.1", "? - 10.0.0.0/8", "{", "}", "- >-", "key: - 10.0.0.0/8"),
)
LINES = st.sampled_from(_LINES)


@st.composite
def runs(draw: st.DrawFn) -> str:
    """Lines of a list: of one form mostly, with here and there one of another."""
    indent = " " * draw(st.integers(0, 3))
    line_break = draw(BREAKS)
    lines = [f"{indent}- {draw(CIDRS)}"] * draw(st.integers(0, 24))
    for _ in range(draw(st.integers(0, 3))):
        odd = draw(st.builds(lambda c, t: f"{indent}- {c}{t}", CIDRS, TAILS) | LINES)
        lines.insert(draw(st.integers(0, len(lines))), odd)
    return "".join(line + line_break for line in lines)


@st.composite
def documents(draw: st.DrawFn) -> str:
    pieces = draw(
        st.lists(runs() | st.builds("{}{}".format, LINES, BREAKS), min_size=1, max_size=8)
    )
    return draw(st.sampled_from(["", "nonMasqueradeCIDRs:\n"])) + "".join(pieces)


RUN = "- 10.0.0.0/8\n" * 20


@settings(max_examples=300)
@given(documents())
@example(f"nonMasqueradeCIDRs:\n{RUN}")
@example(f"nonMasqueradeCIDRs: |\n{RUN}")
@example(f"nonMasqueradeCIDRs: '\n{RUN}'")
@example(f"? k\n: {RUN.replace(chr(10), chr(10) + '  ')}")
@example(f"nonMasqueradeCIDRs:\n{RUN}---\n{RUN}")
@example(f"nonMasqueradeCIDRs: &a\n{RUN}masqueradeCIDRs: *a\n")
@example(f"nonMasqueradeCIDRs:\n{RUN}\n  - 10.0.0.0/8\n{RUN}")
@example(f"é: ü\nnonMasqueradeCIDRs:\n{RUN}cidrLimit: [\n")
@example(f"<<:\n{RUN}")
@example(f"podCIDRs:\n{RUN}egressInterfaces:\n{RUN}")
def test_runs_change_nothing_about_what_a_document_says(text: str) -> None:
    check_alike(text)


@pytest.mark.long
@settings(max_examples=5_000)
@given(documents())
def test_runs_change_nothing_about_a_great_many_documents(text: str) -> None:
    check_alike(text)


SCALARS = st.sampled_from(["10.0.0.0/8", "fd00::/8", "a/1", "x", "\n/1", 'a"/1', 7, None])
# Not of what is long already: twenty times twenty times twenty would be a megabyte.
REPEATED = st.builds(
    lambda item, count: [item] * count,
    SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.sampled_from("ab"), SCALARS),
    st.integers(14, 20),
)
VALUES = st.recursive(
    SCALARS | REPEATED,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("ab"), inner),
)


@settings(max_examples=200)
@given(
    VALUES,
    st.sampled_from([None, 1]),
    st.sampled_from([(", ", ": "), (",", ":"), (" ,\r\n\t", ":"), ("\n,", " : ")]),
)
def test_json_with_runs_says_the_same(
    value: object, indent: int | None, separators: tuple[str, str]
) -> None:
    check_alike(json.dumps({"nonMasqueradeCIDRs": value}, indent=indent, separators=separators))


LONG = [f"10.{n >> 8}.{n & 255}.0/24" for n in range(2_000)]
FORMS = {
    "plain": "nonMasqueradeCIDRs:\n" + "".join(f"- {cidr}\n" for cidr in LONG),
    "indented": "nonMasqueradeCIDRs:\n" + "".join(f"    - {cidr}\n" for cidr in LONG),
    "quoted": "nonMasqueradeCIDRs:\n" + "".join(f"  - '{cidr}'\n" for cidr in LONG),
    "CRLF": "nonMasqueradeCIDRs:\r\n" + "".join(f'- "{cidr}"\r\n' for cidr in LONG),
    "commented": "nonMasqueradeCIDRs:\n" + "".join(f"# a\n- {c} # b\n\n" for c in LONG),
    "JSON": json.dumps({"nonMasqueradeCIDRs": LONG}),
    "JSON, indented": json.dumps({"nonMasqueradeCIDRs": LONG}, indent=2),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_long_list_makes_few_nodes(form: str) -> None:
    root = NodeTree(FORMS[form].encode(), "cm").root
    assert isinstance(root, yaml.MappingNode)
    ((_, value),) = root.value
    assert len(list(items(value))) == len(LONG)
    assert len(value.value) <= 3
    check_alike(FORMS[form])
    understood = parse_document(FORMS[form].encode(), "cm", BOTH)
    assert isinstance(understood, Understood)
    listed = understood.config[NON_MASQUERADE_CIDRS]
    assert [str(prefix) for prefix in listed.prefixes()] == LONG
    assert list(listed) == [listed[index] for index in range(len(LONG))]
    lines = FORMS[form].split("\n")
    for _, reason in (listed[0], listed[1], listed[1_000], listed[-2], listed[-1]):
        text, _, line, column = origin(reason)
        assert lines[line - 1][column - 1 :].lstrip("'\"").startswith(text)


def test_one_wrong_entry_in_a_long_list_is_named_with_its_place() -> None:
    text = FORMS["plain"].replace("- 10.3.4.0/24\n", "- 10.3.4.1/24\n")
    with pytest.raises(ConfigError) as caught:
        parse_document(text.encode(), "cm", BOTH)
    (problem,) = caught.value.problems
    assert problem.startswith("cm:774:3: ")
    assert "did you mean 10.3.4.0/24?" in problem


def test_a_list_of_text_is_cut_only_where_yaml_says_that_it_is_a_list() -> None:
    cut = Cut(f"k: |\n{RUN}")
    assert cut
    assert cut.text.count("\n") == 21
    assert cut.text.count("/") == 2
    assert JSON_RUN.match('"10.0.0.0/8", ' * 16)
    assert not JSON_RUN.match('"10.0.0.0/8", ' * 15)
