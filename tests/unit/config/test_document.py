"""The document means what it means to ip-masq-agent; each fault is named with its place."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ipmasq_agent.config.document import parse_document, parse_documents
from ipmasq_agent.config.durations import parse_duration
from ipmasq_agent.config.keys import (
    CIDR_LIMIT,
    MASQ_LINK_LOCAL,
    NON_MASQUERADE_CIDRS,
    RESYNC_INTERVAL,
    listed,
    view,
)
from ipmasq_agent.config.model import Config, Flags
from ipmasq_agent.errors import ConfigError
from ipmasq_agent.policy.addresses import Family
from tests.reasons import origin
from tests.unit.strategies import prefixes

RFC_1918 = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]
DUAL = Flags(enable_ipv6=True)


def read(text: str | bytes, flags: Flags = DUAL) -> Config:
    content = text if isinstance(text, bytes) else text.encode()
    return parse_document(content, "cm", flags).config


def warnings(text: str) -> tuple[str, ...]:
    return parse_document(text.encode(), "cm", DUAL).warnings


def problems(text: str | bytes, flags: Flags = DUAL) -> tuple[str, ...]:
    content = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(ConfigError) as caught:
        parse_document(content, "cm", flags)
    return caught.value.problems


def cidrs(config: Config) -> list[str]:
    return [str(prefix) for prefix, _ in config[NON_MASQUERADE_CIDRS]]


# -- what a key means -------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b" \n\n",
        b"# nothing\n",
        b"---\n",
        b"null",
        b"~",
        b"{}",
        b"\xef\xbb\xbf",
    ],
)
def test_a_document_without_content_means_the_defaults(content: bytes | None) -> None:
    understood = parse_document(content, "cm", Flags())
    assert cidrs(understood.config) == RFC_1918
    assert view(understood.config) == {
        "nonMasqueradeCIDRs": RFC_1918,
        "cidrLimit": 64,
        "masqLinkLocal": False,
        "masqLinkLocalIPv6": False,
        "resyncInterval": "1m0s",
    }
    assert understood.warnings == ()


def test_all_reserved_ranges_come_after_the_private_ones() -> None:
    shown = cidrs(parse_documents([], "x", Flags(nomasq_all_reserved_ranges=True)).config)
    assert shown[:3] == RFC_1918
    assert len(shown) == 11
    assert shown[-1] == "240.0.0.0/4"


@pytest.mark.parametrize("value", ["", "null", "~", "[]", "Null"])
def test_a_null_or_empty_list_masquerades_everything(value: str) -> None:
    assert cidrs(read(f"nonMasqueradeCIDRs: {value}")) == []


def test_absent_keys_keep_their_defaults() -> None:
    config = read("masqLinkLocal: true")
    assert (cidrs(config), config[MASQ_LINK_LOCAL]) == (RFC_1918, True)


@pytest.mark.parametrize("key", ["cidrLimit", "masqLinkLocal", "masqLinkLocalIPv6"])
def test_a_null_number_or_switch_keeps_its_default(key: str) -> None:
    assert read(f"{key}: null") == read("")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        *((word, True) for word in ("true", "True", "TRUE", "yes", "Yes", "on", "ON", "y", "Y")),
        *((word, False) for word in ("false", "no", "No", "off", "n", "N", "!!bool false")),
    ],
)
def test_switches_are_yaml_1_1_booleans(text: str, meant: bool) -> None:
    assert read(f"masqLinkLocal: {text}")[MASQ_LINK_LOCAL] is meant


@pytest.mark.parametrize(
    "text",
    [
        *("1", "0", '"true"', "maybe", '"y"', "[]", "{}", "1.0", "yEs"),
        *("!!str yes", "!!str y", "!!bool yEs", "!yes yes"),
    ],
)
def test_what_is_not_a_boolean_is_refused(text: str) -> None:
    (problem,) = problems(f"masqLinkLocal: {text}")
    assert problem.startswith("cm:1:16: masqLinkLocal: ")
    assert problem.endswith("is not a boolean; write true or false")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("70", 70),
        ("64.0", 64),
        ("6.4e1", 64),
        ("7e1", 70),
        ("0x46", 70),
        ("0106", 70),
        ("7_0", 70),
        ("0b1000110", 70),
        ("0o106", 70),
        ("0X46", 70),
        ("08", 8),
        ("! 70", 70),
        ('!!int "70"', 70),
        ("!!float 70", 70),
        ("+70", 70),
        ("3.", 3),
    ],
)
def test_the_limit_is_a_whole_number_in_any_form_of_yaml(text: str, meant: int) -> None:
    assert read(f"cidrLimit: {text}")[CIDR_LIMIT] == meant


@pytest.mark.parametrize(
    "text",
    [
        '"70"',
        "64.5",
        "true",
        "many",
        "1:30",
        ".inf",
        ".nan",
        "1e400",
        "9223372036854775808",
        "[]",
        "9" * 5000,
        "!!int x",
        "2001-01-01",
        "!!str 70",
        "!limit 70",
        "!!int 7e1",
        "!!null 70",
        "!!binary NzA=",
        "\N{ARABIC-INDIC DIGIT SEVEN}0",
        "0b2",
        "0o8",
    ],
)
def test_what_is_not_a_whole_number_is_refused(text: str) -> None:
    (problem,) = problems(f"cidrLimit: {text}")
    assert problem.startswith("cm:1:12: cidrLimit: ")
    assert len(problem) < 500


@pytest.mark.parametrize(
    ("text", "meant"), [("1h5m", "1h5m"), ('"1000ms"', "1s"), ("1.5s", "1.5s")]
)
def test_the_interval_is_a_go_duration(text: str, meant: str) -> None:
    assert read(f"resyncInterval: {text}")[RESYNC_INTERVAL] == parse_duration(meant)


@pytest.mark.parametrize("text", ["1ns", "300ms", '"0.999s"'])
def test_an_interval_that_would_burn_a_core_is_a_second_and_warns(text: str) -> None:
    assert view(read(f"resyncInterval: {text}"))["resyncInterval"] == "1s"
    (warning,) = warnings(f"resyncInterval: {text}")
    assert warning.startswith("cm:1:17: resyncInterval: ")
    assert "is taken for 1s, the shortest that is" in warning


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("60", 'did you mean "60s"?'),
        ("null", 'like "60s"'),
        ("true", 'like "60s"'),
        ("1.5", 'like "60s"'),
        ('"60"', "did you mean 60s?"),
        ("0s", "write a duration above 0"),
        ("-5s", "write a duration above 0"),
        ("[1s]", 'like "60s"'),
        ("1d", "is not a duration like 60s"),
        ("1e9h", "is not a duration like 60s"),
        ("9999999h", "292 years"),
    ],
)
def test_an_interval_that_go_or_the_agent_cannot_use_is_refused(text: str, remedy: str) -> None:
    (problem,) = problems(f"resyncInterval: {text}")
    assert problem.startswith("cm:1:17: resyncInterval: ")
    assert remedy in problem


# -- entries ----------------------------------------------------------------------------


def test_entries_keep_their_order_and_know_their_place() -> None:
    text = "# first\nnonMasqueradeCIDRs:\n  - 10.0.0.0/8\n  - 'fd00::/8'\n  - 10.0.0.0/8\n"
    config = read(text)
    assert cidrs(config) == ["10.0.0.0/8", "fd00::/8", "10.0.0.0/8"]
    origins = [origin for _, origin in config[NON_MASQUERADE_CIDRS]]
    assert [origin(o)[1:] for o in origins] == [
        ("cm", 3, 5),
        ("cm", 4, 5),
        ("cm", 5, 5),
    ]


def test_places_count_characters_past_a_byte_order_mark_and_other_letters() -> None:
    text = "\ufeff# é\nnonMasqueradeCIDRs: [10.0.0.0/8, {é: é}, 10.0.0.1/8]\n"
    first, second = problems(text)
    assert first.startswith("cm:2:34: nonMasqueradeCIDRs: a mapping is not a CIDR")
    assert second.startswith('cm:2:42: nonMasqueradeCIDRs: "10.0.0.1/8" has host bits set; did')


def test_an_ipv6_entry_without_the_flag_is_refused() -> None:
    (problem,) = problems("nonMasqueradeCIDRs: [fd00::/8]", Flags())
    assert "--enable-ipv6" in problem


@pytest.mark.parametrize("item", ["10", "1.5", "null", "[10.0.0.0/8]", "true", "{a: 1}"])
def test_an_entry_that_is_not_text_is_refused(item: str) -> None:
    (problem,) = problems(f"nonMasqueradeCIDRs: [{item}]")
    assert problem.startswith("cm:1:22: ")


@pytest.mark.parametrize("value", ["10.0.0.0/8", "{a: b}", "5", "true"])
def test_entries_that_are_not_a_list_are_refused(value: str) -> None:
    (problem,) = problems(f"nonMasqueradeCIDRs: {value}")
    assert "is not a list; write [10.0.0.0/8]" in problem


def test_the_limit_counts_both_families_and_the_defaults() -> None:
    many = [f"10.0.{n}.0/24" for n in range(40)] + [f"fd00:{n}::/32" for n in range(25)]
    (problem,) = problems(json.dumps({"nonMasqueradeCIDRs": many}))
    assert "has 65 entries, cidrLimit allows 64" in problem
    assert len(cidrs(read(json.dumps({"nonMasqueradeCIDRs": many, "cidrLimit": 65})))) == 65
    (problem,) = problems("cidrLimit: 2")
    assert "has 3 entries, cidrLimit allows 2" in problem
    (problem,) = problems("{nonMasqueradeCIDRs: [], cidrLimit: -1}".replace("{", "---\n{"))
    assert problem.startswith("cm:2:37: ")


def test_duplicates_and_covered_entries_warn_with_both_lines() -> None:
    found = warnings(
        "nonMasqueradeCIDRs:\n- 10.1.0.0/16\n- 10.0.0.0/8\n- 10.0.0.0/8\n- fd00::/8\n- 11.0.0.0/8\n"
    )
    assert found == (
        "cm:4:3: 10.0.0.0/8 repeats 10.0.0.0/8 in line 3",
        "cm:2:3: 10.1.0.0/16 is covered by 10.0.0.0/8 in line 3",
    )


# -- keys -------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["CIDRLIMIT", "cidrlimit", "CidrLimit", "'cidrLimit'"])
def test_keys_match_without_regard_to_case(key: str) -> None:
    assert read(f"{key}: 70")[CIDR_LIMIT] == 70


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("cidrLimit: 70\ncidrLimit: 71\n", 71),
        # From YAML the spellings are sorted, and capitals come before small letters.
        ("cidrLimit: 70\nCIDRLIMIT: 71\n", 70),
        ("CIDRLIMIT: 71\ncidrLimit: 70\n", 70),
        ("CIDRLIMIT: 71\ncidrLimit: null\n", 71),
        # From JSON they come as they are written.
        ('{"cidrLimit": 70, "CIDRLIMIT": 71}', 71),
        ('{"CIDRLIMIT": 71, "cidrLimit": 70}', 70),
        ('{"cidrLimit": 70, "cidrLimit": 71}', 71),
    ],
)
def test_of_equal_keys_the_one_counts_that_counts_upstream(text: str, limit: int) -> None:
    assert read(text)[CIDR_LIMIT] == limit
    assert any("is set" in warning for warning in warnings(text))


def test_a_null_list_in_a_second_spelling_empties_the_list() -> None:
    assert cidrs(read("NONMASQUERADECIDRS: [10.0.0.0/8]\nnonMasqueradeCIDRs: null\n")) == []


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("nonMasqueradeCIDR", "nonMasqueradeCIDRs"),
        ("nonMasqCIDRs", "nonMasqueradeCIDRs"),
        ("resync_interval", "resyncInterval"),
        ("masqLinkLocalIpv4", "masqLinkLocalIPv6"),
        ("cidrlimits", "cidrLimit"),
    ],
)
def test_an_unknown_key_warns_and_names_the_nearest(key: str, nearest: str) -> None:
    (warning,) = warnings(f"{key}: 5\nmasqLinkLocal: true\n")
    assert warning == f"cm:1:1: unknown key {key!r} is ignored; did you mean {nearest}?"
    (problem,) = problems(f"{key}: 5")  # upstream takes the defaults, which nobody meant
    assert problem.startswith(f"cm:1:1: none of its keys is known, like {key!r}; write keys")
    assert problem.endswith(f"; did you mean {nearest}?")


def test_an_unknown_key_that_is_near_nothing_warns_without_a_guess() -> None:
    found = warnings("color: blue\nmasqLinkLocal: true\n")
    assert found == ("cm:1:1: unknown key 'color' is ignored",)


def test_a_key_that_is_not_text_is_refused() -> None:
    assert problems("? [a]\n: 5") == ("cm:1:3: a list cannot be a key; write a word",)


def test_merge_keys_and_anchors_work_and_own_keys_win() -> None:
    text = """\
        base: &base {cidrLimit: 70, masqLinkLocal: yes}
        nearer: &nearer {cidrLimit: 71}
        <<: [*nearer, *base]
        nonMasqueradeCIDRs: &list [10.0.0.0/8]
        resyncInterval: 5s
        """
    config = read(textwrap.dedent(text))
    assert (config[CIDR_LIMIT], config[MASQ_LINK_LOCAL]) == (71, True)
    assert read("x: &x {cidrLimit: 70}\n<<: *x\ncidrLimit: 72\n")[CIDR_LIMIT] == 72
    assert cidrs(read("x: &x [10.0.0.0/8]\nnonMasqueradeCIDRs: *x\n")) == ["10.0.0.0/8"]


@pytest.mark.parametrize("key", ["~", "null", "!!null ''", "2001-01-01"])
def test_a_key_that_the_converter_cannot_take_is_refused(key: str) -> None:
    (problem,) = problems(f"{key}: 5\ncidrLimit: 70\n")
    assert problem.startswith("cm:1:1: ")
    assert problem.endswith(" cannot be a key; write a word")


@pytest.mark.parametrize(
    "text",
    [
        '{"cidrLimit": "x", "cidrLimit": 70}',
        '{"cidrLimit": 70.0, "cidrLimit": 70}',
        '{"nonMasqueradeCIDRs": [5], "nonMasqueradeCIDRs": []}',
        '{"masqLinkLocal": 5, "MASQLINKLOCAL": true}',
        "masqLinkLocal: true\nMASQLINKLOCAL: 5\n",
        "RESYNCINTERVAL: 5\nresyncInterval: 5s\n",
    ],
)
def test_a_value_that_another_overwrites_is_checked_where_the_decoder_meets_it(text: str) -> None:
    assert len(problems(text)) == 1


def test_a_value_that_the_converter_drops_is_not_checked() -> None:
    assert read("cidrLimit: x\ncidrLimit: 70\n")[CIDR_LIMIT] == 70


def test_of_equal_lists_the_last_one_counts_whole() -> None:
    text = '{"nonMasqueradeCIDRs": ["10.0.0.0/8"], "nonmasqueradecidrs": ["11.0.0.0/8"]}'
    assert cidrs(read(text)) == ["11.0.0.0/8"]


def test_a_tag_on_a_list_changes_nothing_and_on_an_entry_is_refused() -> None:
    assert cidrs(read("nonMasqueradeCIDRs: !!null [10.0.0.0/8]")) == ["10.0.0.0/8"]
    assert cidrs(read("nonMasqueradeCIDRs: !nets [!!str 10.0.0.0/8]")) == ["10.0.0.0/8"]
    assert "is not a list" in problems("nonMasqueradeCIDRs: !!null x")[0]
    for tag in ("!net", "!!binary", "!!int"):
        assert problems(f"nonMasqueradeCIDRs: [{tag} 10.0.0.0/8]")[0].startswith("cm:1:22: ")


def test_utf_16_is_read_where_it_is_marked() -> None:
    text = "nonMasqueradeCIDRs: [10.0.0.0/8]  # é\n"
    assert cidrs(read(text.encode("utf-16"))) == ["10.0.0.0/8"]
    assert cidrs(read(b"\xfe\xff" + text.encode("utf-16-be"))) == ["10.0.0.0/8"]
    assert cidrs(read("{nonMasqueradeCIDRs: [10.0.0.0/8]}".encode("utf-16"))) == ["10.0.0.0/8"]


def test_yaml_1_2_is_refused_since_it_says_other_things_in_the_same_words() -> None:
    (problem,) = problems("# mine\n%YAML 1.2\n---\nmasqLinkLocal: yes\n")
    assert problem.startswith("cm:2:1: says that it is YAML 1.2")
    assert read("%YAML 1.1\n---\nmasqLinkLocal: yes\n")[MASQ_LINK_LOCAL] is True


@pytest.mark.parametrize("text", ["<<: 5", "<<: [1]", "x: &x [1]\n<<: *x\n"])
def test_merging_what_is_not_a_mapping_is_refused(text: str) -> None:
    (problem,) = problems(text)
    assert "is merged with <<, and is not a mapping" in problem


# -- syntax -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("a: [", "cm:1:5:", "is not YAML"),
        ("nonMasqueradeCIDRs:\n\t- 10.0.0.0/8\n", "cm:2:1:", "blanks, not tabs"),
        ("a: b: c", "cm:1:5:", "mapping values are not allowed"),
        ("nonMasqueradeCIDRs: [::/0]", "cm:1:22:", 'needs quotes, as in ["::/0"]'),
        ("x: é\x01", "cm:1:5:", "control character"),
        ("x: *nowhere", "cm:1:4:", "the anchor &nowhere is not defined"),
        ("- 10.0.0.0/8", "cm:1:1:", "the document is a list; write keys"),
        ("10.0.0.0/8", "cm:1:1:", 'the document is the text "10.0.0.0/8"; write keys'),
        ("{cidrLimit: 70}", "cm:1:2:", "is read as JSON"),
        ('{"cidrLimit": 70,}', "cm:1:", "is read as JSON"),
        ('{"cidrLimit": 70} x', "cm:1:19:", "is read as JSON"),
        ('{"x": "NaN",\n "y": -Infinity}', "cm:2:7:", "-Infinity is not JSON"),
        ('{"cidrLimit": 64.0}', "cm:1:15:", "is not a whole number"),
        ("\n" + "[" * 200, "cm:2:101:", "nested more than 100 levels"),
        ('{"x":' + "[" * 200 + "]" * 200 + "}", "cm:1:105:", "nested more than 100 levels"),
        ('{"x":' * 100_000, "cm:", "nested more than 100 levels"),
    ],
)
def test_broken_syntax_is_refused_with_place_and_hint(text: str, place: str, hint: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(place)
    assert hint in problem


def test_bytes_that_are_not_utf8_are_refused_with_their_place() -> None:
    assert problems(b"\xef\xbb\xbfa: \xc3\xa9\nx: \xc3\xa9\xff") == ("cm:2:5: is not UTF-8 text",)
    assert problems("é: b\né".encode("utf-16") + b"x") == ("cm:2:2: is not UTF-16 text",)
    assert problems(b'{"note": "\xff", "cidrLimit": 70}') == ("cm:1:11: is not UTF-8 text",)


@pytest.mark.parametrize(
    "text",
    [
        '{"nonMasqueradeCIDRs":\t["10.0.0.0/8"]}',
        '\n {"nonMasqueradeCIDRs"\n: ["10.0.0.0/8"], "note": "\\ud83d\\ude00 \\/ \\ud800"}',
        '{"'
        + "k" * 2_000
        + '": [1.5e3, -0, true, null, {}], "nonMasqueradeCIDRs": ["10.0.0.0/8"]}',
        "---\n{nonMasqueradeCIDRs: [10.0.0.0/8]}",
        "nonMasqueradeCIDRs: [10.0.0.0/8]\n---\n{broken",
    ],
)
def test_json_and_flow_style_are_read(text: str) -> None:
    assert cidrs(read(text)) == ["10.0.0.0/8"]


def test_only_the_first_document_of_a_stream_counts_and_the_rest_warns() -> None:
    for follows in ("---\ncidrLimit: 80\n", "...\nfoo [", "---\n{", "...\n%FOO\n---\n"):
        text = f"cidrLimit: 70\n{follows}"
        assert read(text)[CIDR_LIMIT] == 70
        (warning,) = warnings(text)
        assert warning == "cm: only the first YAML document is used; remove what follows it"


def test_every_problem_is_shown_at_once() -> None:
    found = problems("cidrLimit: x\nmasqLinkLocal: 5\nresyncInterval: 5\nnonMasqueradeCIDRs: 1\n")
    assert [line.split(":")[1] for line in found] == ["4", "1", "2", "3"]


def test_many_problems_and_many_warnings_are_shortened() -> None:
    entries = "".join(f"- 10.0.0.{n % 255 + 1}/8\n" for n in range(100))
    found = problems(f"nonMasqueradeCIDRs:\n{entries}")
    assert len(found) == 21
    assert found[-1] == "... and 80 more of the kind"
    assert len(warnings("cidrLimit: 5\n" + "".join(f"x{n}: 1\n" for n in range(100)))) == 21


def test_messages_hold_no_control_characters_and_no_endless_lines() -> None:
    text = json.dumps({"nonMasqueradeCIDRs": ["\x1b[31m\n\x00", "\ud800", "x" * 100_000]})
    for problem in problems(text):
        assert problem.isprintable()
        assert len(problem) < 500


# -- size and hostility -----------------------------------------------------------------


@pytest.mark.parametrize(("style", "count"), [("yaml", 100_000), ("json", 30_000)])
def test_very_many_entries_are_read(style: str, count: int) -> None:
    entries = [f"10.{n >> 8 & 255}.{n & 255}.{n >> 16 << 4}/28" for n in range(count)]
    if style == "json":
        text = json.dumps({"cidrLimit": 100_000, "nonMasqueradeCIDRs": entries})
    else:
        text = "cidrLimit: 100000\nnonMasqueradeCIDRs:\n- " + "\n- ".join(entries)
    assert cidrs(read(text)) == entries


HOSTILE = {
    "open lists": "'[' * M",
    "open lists as a value": "'x: ' + '[' * M",
    "open list items": "'- ' * (M // 2)",
    "open keys": "'? ' * (M // 2)",
    "open mappings": "'---\\n' + '{a: ' * (M // 4)",
    "open JSON": "'{\"a\":' * (M // 5)",
    "closed lists": "'x: ' + '[' * 99 + '[],' * (M // 3)",
    "a list in itself": "'a: &a [' + '*a,' * (M // 3) + ']'",
    "lists of lists": "'a: &k0 [x]\\n' + ''.join(f'k{i}: &k{i} [*k{i-1},*k{i-1}]\\n' "
    "for i in range(1, 30000))",
    "an address of lists of lists": "'k0: &k0 [x]\\n' + "
    "''.join(f'k{i}: &k{i} [*k{i-1},*k{i-1}]\\n' for i in range(1, 60))"
    " + 'snatAddress: {ipv4: *k59, ? *k59 : *k59}\\n'",
    "merges of merges": "'k: &k0 {a: 1, b: 2}\\n' + ''.join(f'k{i}: &k{i} {{<<: [*k{i-1},*k{i-1}]}}"
    "\\n' for i in range(1, 9000)) + '<<: *k8999'",
    "merged into itself": "'&a\\n<<: *a\\nx: &x {<<: [*x, *a]}\\n'",
    "unknown keys": "''.join(f'nonMasqC{i:05d}: 1\\n' for i in range(60000))",
    "quotes": "'\"' * M",
    "one quoted word": "'x: \"' + 'a ' * (M // 2)",
    "a long key": "'x' * M + ': 1'",
    "colons": "':' * M",
    "tags": "'!' * M",
    "anchors": "'&a ' * (M // 3)",
    "documents": "'---\\n' * (M // 4)",
    "comments": "'#\\n' * (M // 2)",
    "backslashes": "'{\"a\": \"' + '\\\\\\\\' * (M // 2) + '\"}'",
    "digits": "'cidrLimit: ' + '9' * M",
    "an interval of digits": "'resyncInterval: ' + '9' * M",
    "an entry of digits": "'nonMasqueradeCIDRs: [10.0.0.0/' + '9' * M + ']'",
    "NUL": "chr(0) * M",
}


@pytest.mark.parametrize("label", HOSTILE)
def test_a_hostile_megabyte_neither_crashes_nor_holds_up_the_agent(label: str) -> None:
    # In a process of its own, as what it guards against ends the process. The limit is
    # ten times what the slowest takes on a busy machine: quadratic work takes far longer.
    program = f"""
        from ipmasq_agent.config.document import parse_document
        from ipmasq_agent.config.model import Flags
        from ipmasq_agent.errors import ConfigError
        M = 1 << 20
        try:
            parse_document(({HOSTILE[label]}).encode(), "cm", Flags())
        except ConfigError as refusal:
            assert all(len(line) < 500 for line in refusal.problems)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


VALID = [
    b"nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- fd00::/8\ncidrLimit: 70\nmasqLinkLocal: yes\n",
    b'{"nonMasqueradeCIDRs": ["10.0.0.0/8"], "resyncInterval": "1m0s", "cidrLimit": 3}',
    b"x: &x {cidrLimit: 70}\n<<: *x\nresyncInterval: 1h5m\nmasqLinkLocalIPv6: !!bool 'true'\n",
    b"---\n{nonMasqueradeCIDRs: ['::/0', 0.0.0.0/0], cidrLimit: 0x10}\n...\n",
]


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A valid document with a few bytes changed, cut or repeated."""
    content = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 5))):
        place = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 6))
        new = draw(
            st.binary(max_size=3)
            | st.sampled_from(
                [b"\t", b": ", b"- ", b"[", b"]", b"{", b"}", b"&a ", b"*a", b"!!int "]
            )
            | st.just(bytes(content[place : place + length]) * 2)
        )
        content[place : place + length] = new
    return bytes(content)


def check_any(content: bytes) -> None:
    try:
        understood = parse_document(content, "cm", DUAL)
    except ConfigError as refusal:
        lines = refusal.problems
    else:
        lines = understood.warnings
        assert understood.config[RESYNC_INTERVAL] > 0
        assert listed(understood.config) <= (understood.config[CIDR_LIMIT] or 0)
    assert all(line.startswith(("cm:", "... and")) and line.isprintable() for line in lines)


@settings(max_examples=200)
@given(mutations() | st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
@example(b"{")
@example(b'{"a": "\\ud800", "\\ud800": 1}')
@example(b"{\xef\xbb\xbf}")
def test_any_bytes_are_understood_or_refused_and_nothing_else(content: bytes) -> None:
    check_any(content)


@pytest.mark.long
@settings(max_examples=10_000)
@given(mutations() | st.binary(max_size=300))
def test_a_great_many_bytes_are_understood_or_refused(content: bytes) -> None:
    check_any(content)


@given(st.lists(st.sampled_from(list(Family)).flatmap(prefixes), max_size=20), st.booleans())
def test_a_view_of_a_document_is_a_document_that_means_the_same(
    entries: list[object], link_local: bool
) -> None:
    written = json.dumps(
        {"nonMasqueradeCIDRs": [str(e) for e in entries], "masqLinkLocal": link_local}
    )
    config = read(written)
    again = read(json.dumps(view(config)))
    assert view(again) == view(config)
    assert cidrs(config) == [str(e) for e in entries]
