"""A ConfigMap's manifest means what the ConfigMap would, with the places of the outer text."""

from __future__ import annotations

import base64
import json
import re
import textwrap
from typing import Any

import pytest

from ipmasq_agent.config import manifests
from ipmasq_agent.config.document import Understood, parse_documents
from ipmasq_agent.config.keys import (
    CIDR_LIMIT,
    MASQ_LINK_LOCAL,
    MASQUERADE_CIDRS,
    NATIVE_ROUTING_CIDRS,
    NON_MASQUERADE_CIDRS,
    view,
)
from ipmasq_agent.config.model import Flags
from ipmasq_agent.errors import ConfigError
from ipmasq_agent.policy.decisions import Origin
from ipmasq_agent.sources import location
from tests.fuzz.made_documents import fuzzed
from tests.reasons import origin

FLAGS = Flags(enable_ipv6=True)


def understood(text: str | bytes) -> Understood:
    content = text if isinstance(text, bytes) else textwrap.dedent(text).encode()
    return parse_documents([("cm.yaml", content)], "cm.yaml", FLAGS)


def entries(text: str | bytes) -> list[tuple[str, str | None, int | None, int | None]]:
    listed = understood(text).config[NON_MASQUERADE_CIDRS]
    return [(str(p), *reason[1:]) for p, reason in listed]


def problems(text: str | bytes) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        understood(text)
    return caught.value.problems


MANIFEST = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: ip-masq-agent
  namespace: kube-system
data:
  config: |
    # ours
    nonMasqueradeCIDRs:
      - 10.0.0.0/8
      - {entry}
    cidrLimit: 70
"""


def test_the_keys_are_those_of_the_sources() -> None:
    assert manifests.KEYS == location.KEYS


def test_a_manifest_is_unwrapped_and_places_are_those_of_the_file() -> None:
    text = MANIFEST.format(entry="fd00::/8")
    assert entries(text) == [("10.0.0.0/8", "cm.yaml", 10, 9), ("fd00::/8", "cm.yaml", 11, 9)]
    assert understood(text).config[CIDR_LIMIT] == 70
    assert problems(MANIFEST.format(entry="10.0.0.1/8")) == (
        'cm.yaml:11:9: nonMasqueradeCIDRs: "10.0.0.1/8" has host bits set; '
        "did you mean 10.0.0.0/8?",
    )


@pytest.mark.parametrize("indicator", ["|-", "|+", "|4", "| # note"])
def test_every_form_of_a_literal_block_keeps_its_places(indicator: str) -> None:
    text = MANIFEST.format(entry="10.0.0.1/8").replace("config: |", f"config: {indicator}")
    text = text.replace("|4", "|2")
    assert problems(text)[0].startswith("cm.yaml:11:9: nonMasqueradeCIDRs")
    crlf = text.replace("\n", "\r\n").encode()
    assert problems(crlf)[0].startswith("cm.yaml:11:9: nonMasqueradeCIDRs")


def test_long_lists_in_a_block_have_their_places() -> None:
    lines = "".join(f"      - 10.0.{n}.0/24\n" for n in range(60))
    text = MANIFEST.format(entry="11.0.0.0/8").replace("    cidrLimit: 70\n", lines)
    found = entries(text)
    assert found[2:4] == [("10.0.0.0/24", "cm.yaml", 12, 9), ("10.0.1.0/24", "cm.yaml", 13, 9)]
    assert len(found) == 62


@pytest.mark.parametrize(
    ("inner", "place"),
    [
        ("---\nnonMasqueradeCIDRs: [10.0.0.1/8]\n", "cm.yaml:4:26: "),
        ('\n{"nonMasqueradeCIDRs":\n  ["10.0.0.1/8"]}\n', "cm.yaml:5:8: "),
        ("nonMasqueradeCIDRs: [10.0.0.1/8\n", "cm.yaml:4:1: is not YAML"),
        ("masqLinkLocal: true\n---\nx: [\n", None),
        ("cidrLimit: x\n---\nx: [\n", "cm.yaml:2:11 config:1:12: "),
        ("color: blue\n", "cm.yaml:3:5: none of its keys is known"),
        ("kind: ConfigMap\ndata: {config: 'cidrLimit: 70'}\n", "cm.yaml:3:5: none of its keys"),
        ("- 10.0.0.0/8\n", "cm.yaml:3:5: the document is a list"),
    ],
)
def test_what_is_in_a_block_is_read_as_it_stands(inner: str, place: str | None) -> None:
    text = "data:\n  config: |\n" + textwrap.indent(inner, "    ") + "kind: ConfigMap\n"
    if place is None:
        assert understood(text.encode()).config[MASQ_LINK_LOCAL] is True
    else:
        assert problems(text.encode())[0].startswith(place)


@pytest.mark.parametrize(
    ("form", "place"),
    [
        ('"nonMasqueradeCIDRs:\\n- 10.0.0.1/8\\n"', "cm.yaml:3:11 config:2:3: "),
        ("'nonMasqueradeCIDRs: [10.0.0.1/8]'", "cm.yaml:3:11 config:1:22: "),
        (">\n    nonMasqueradeCIDRs:\n\n    - 10.0.0.1/8\n", "cm.yaml:3:11 config:2:3: "),
    ],
)
def test_a_scalar_whose_lines_are_others_tells_its_place_and_the_one_within(
    form: str, place: str
) -> None:
    text = f"kind: ConfigMap\ndata:\n  config: {form}"
    assert problems(text.encode())[0].startswith(place)


def test_what_kubectl_prints_as_json_is_unwrapped() -> None:
    item = {"kind": "ConfigMap", "data": {"ip-masq-agent": "nonMasqueradeCIDRs: [10.0.0.0/8]\n"}}
    assert entries(json.dumps(item)) == [
        ("10.0.0.0/8", "cm.yaml:1:49 ip-masq-agent", 1, 22),
    ]
    listed = {"apiVersion": "v1", "kind": "List", "items": [{"kind": "Secret"}, item]}
    assert len(entries(json.dumps(listed, indent=2))) == 1
    of_maps = {"kind": "ConfigMapList", "items": [{"data": item["data"]}]}
    assert len(entries(json.dumps(of_maps))) == 1


def test_binary_data_is_unwrapped() -> None:
    encoded = base64.b64encode("masqLinkLocal: true\n".encode("utf-16")).decode()
    text = f"kind: ConfigMap\nbinaryData:\n  config: {encoded}\n"
    assert understood(text).config[MASQ_LINK_LOCAL] is True
    assert problems(text.replace(encoded, "'*'"))[0] == "cm.yaml:3:11: config is not base64"


def test_keys_are_chosen_as_the_sources_choose_them() -> None:
    both = """\
        kind: ConfigMap
        data:
          ip-masq-agent: "cidrLimit: 1"
          config: "cidrLimit: 70"
          notes: hello
        """
    assert understood(both).config[CIDR_LIMIT] == 70
    neither = """\
        kind: ConfigMap
        data:
          b: "nonMasqueradeCIDRs: [11.0.0.0/8]"
          a: "nonMasqueradeCIDRs: [10.0.0.0/8]"
        """
    assert [entry[0] for entry in entries(neither)] == ["10.0.0.0/8", "11.0.0.0/8"]


@pytest.mark.parametrize("key", ["config", "ip-masq-agent"])
def test_the_data_alone_is_unwrapped_too(key: str) -> None:
    assert problems(f"{key}: |\n  cidrLimit: x\n")[0].startswith("cm.yaml:2:14: cidrLimit")


def test_of_a_stream_of_manifests_the_config_map_is_taken_and_the_rest_is_noted() -> None:
    before = "---\n# Source: chart/sa.yaml\nkind: ServiceAccount\nmetadata: {name: sa}\n---\n"
    after = "---\nkind: DaemonSet\n---\nkind: ConfigMap\nmetadata: {name: z}\ndata: {x: y}\n---\n"
    told = understood(before + MANIFEST.format(entry="11.0.0.0/8") + after)
    assert [origin(o).line for _, o in told.config[NON_MASQUERADE_CIDRS]] == [15, 16]
    assert told.warnings == ()
    assert told.notes == (
        "cm.yaml:3:1: ServiceAccount sa is passed over",
        "cm.yaml:19:1: DaemonSet is passed over",
        "cm.yaml:21:1: ConfigMap z is passed over",
    )


def test_several_config_maps_are_merged_in_the_order_of_their_names() -> None:
    one = "kind: ConfigMap\nmetadata: {name: %s}\ndata: {config: 'cidrLimit: %d'}\n"
    assert understood(one % ("b", 71) + "---\n" + one % ("a", 70)).config[CIDR_LIMIT] == 71


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kind: Secret\ndata: {config: eA==}\n", "cm.yaml: holds manifests, and none is of a Con"),
        ("kind: ConfigMap\nmetadata: {name: x}\n", "cm.yaml:1:1: ConfigMap x has no data"),
        ("kind: ConfigMap\ndata: {}\n", "cm.yaml:1:1: ConfigMap has no data"),
        ("kind: ConfigMap\ndata:\n  config: {cidrLimit: 70}\n", "cm.yaml:3:11: config is not text"),
        ("config: {cidrLimit: 70}\n", "cm.yaml:1:9: config is not text; write `config: |`"),
        ("kind: ConfigMap\ndata: {config: ''}\n---\nx: [\n", "cm.yaml:5:1: is not YAML"),
        ("---\n---\ncidrLimit: 70\n", "cm.yaml: its first YAML document is empty"),
        ("kind: ConfigMap\ndata: {readme: hello}\n", "cm.yaml:2:16 readme:1:1: the document is"),
    ],
)
def test_manifests_without_a_document_are_refused(text: str, problem: str) -> None:
    assert problems(text)[0].startswith(problem)


def test_an_empty_value_means_the_defaults_as_it_does_in_the_config_map() -> None:
    assert len(entries("kind: ConfigMap\ndata: {config: ''}\n")) == 3
    assert len(entries("---\n---\n# nothing\n")) == 3


def read_or_refused(text: str, flags: Flags) -> tuple[Any, list[Any]]:
    """What is understood, and where each entry stands; None where it is refused."""
    try:
        config = parse_documents([("cm", text.encode())], "cm", flags).config
    except ConfigError:
        return None, []
    lists = (config[NON_MASQUERADE_CIDRS], config[MASQUERADE_CIDRS], config[NATIVE_ROUTING_CIDRS])
    reasons = [reason for entries in lists for _, reason in entries]
    return view(config), [o[1:] for o in reasons if isinstance(o, Origin)]


def test_any_document_means_in_a_manifest_what_it_means_alone() -> None:
    compared = placed = 0
    for seed in range(1000):
        document = fuzzed(seed)
        try:
            (text,) = (content.decode() for _, content in document.parts)
        except ValueError:
            continue  # several parts, or not text
        if (
            "ConfigMap" in text
            or re.search("^(config|ip-masq-agent|kind):", text, re.M)
            or re.search("[\ufeff\u0085\u2028\u2029]", text)
        ):
            continue  # manifests themselves, and line breaks that no block is indented by
        alone, places = read_or_refused(text, document.flags)
        block = "".join(f"  {line}\n" for line in text.split("\n"))
        wrapped = f"kind: ConfigMap\ndata:\n config: |1\n{block}"
        inside, within = read_or_refused(wrapped, document.flags)
        assert inside == alone, f"fuzzed({seed})"
        compared += 1
        if any(name == "cm" for name, _, _ in within):
            shifted = [(name, line + 3, column + 2) for name, line, column in places]
            assert within == shifted, f"fuzzed({seed})"
            placed += 1
    assert compared > 300
    assert placed > 10


HOSTILE = {
    "one map many times": "kind: List\nitems:\n"
    "- &a {kind: ConfigMap, data: &d {" + ", ".join(f"k{n}: ''" for n in range(30_000)) + "}}\n"
    "- [" + "*a," * 30_000 + "]\n" + "- *a\n" * 20_000,
    "one text many times": "x: &t '"
    + "#" * 500_000
    + "'\nkind: List\nitems:\n"
    + "- {kind: ConfigMap, data: {config: *t}}\n" * 10_000,
    "many maps": "- {kind: ConfigMap, data: {config: ''}}\n".join(
        ["kind: List\nitems:\n"] + [""] * 20_000
    ),
    "many others": "kind: List\nitems:\n" + "- {kind: Pod}\n" * 20_000,
    "lists of lists": "x: &k0 [x]\n"
    + "".join(
        f"k{n}: &k{n} {{kind: List, items: [*k{n - 1}, *k{n - 1}]}}\n" for n in range(1, 9_000)
    )
    + "kind: List\nitems: [*k8999]\n",
}


@pytest.mark.parametrize("label", HOSTILE)
@pytest.mark.timeout(60)
def test_manifests_made_to_be_endless_are_refused(label: str) -> None:
    assert all(len(problem) < 500 for problem in problems(HOSTILE[label]))
