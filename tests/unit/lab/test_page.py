"""The page of a story says what was captured, and what was not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ipmasq_agent.lab.page import page
from ipmasq_agent.lab.probes import Check
from ipmasq_agent.lab.scene import Expectation, Scene, one
from ipmasq_agent.lab.story import PlayedScene
from ipmasq_agent.lab.trace import Trace
from tests.pages import asks_for_nothing, figures, words
from tests.unit.lab.ways import LOOP, NODE, POD, masqueraded, trace

WHOLE = trace(masqueraded())
TCP = Check("curl-pod", "loop1", "tcp", POD, LOOP, NODE, NODE, True, True, False, WHOLE)
UDP = replace(TCP, protocol="udp", trace=trace(masqueraded("udp"), "udp"))


def played(*checks: Check, config: str = "", **parts: Any) -> PlayedScene:
    expected = (Expectation("curl-pod", "loop1", "k8s-ctr"),)
    scene = Scene("A <title> & more", one(config), expected, "<why>")
    step = PlayedScene(scene, config, checks, None, (), (), {"k8s-ctr": "$ rules\n-A one"})
    return replace(step, **parts)


def told(*steps: PlayedScene, ipv6: bool = False) -> str:
    text = page(steps, "a <machine>", ipv6=ipv6)
    asks_for_nothing(text)
    return text


def drawn(text: str, place: str = "s1-1") -> str:
    """The letters of a drawing."""
    figure = figures(text)[place]
    drawing = figure.find("svg")
    assert drawing is not None
    return " | ".join(words(part) for part in drawing.iter("text"))


def without(host: str) -> Trace:
    return trace(c for c in masqueraded() if c.host != host)


def test_packets_are_drawn_with_the_ends_that_they_had_at_each_hop() -> None:
    assert drawn(told(played(TCP))) == " | ".join(
        (
            *("curl-pod", "", "k8s-ctr", "", "router", "loop1"),
            f"{POD} → {LOOP}",
            "source changed",
            f"{NODE} → {LOOP}",
            f"{LOOP} → {NODE}",
            "destination changed back",
            f"{LOOP} → {POD}",
        )
    )


def test_protocols_share_a_drawing_where_their_packets_went_the_same_way() -> None:
    assert list(figures(told(played(TCP, UDP)))) == ["s1-1"]
    assert "tcp udp" in words(figures(told(played(TCP, UDP)))["s1-1"])
    elsewhere = replace(UDP, trace=Trace(TCP.trace.request[:3] if TCP.trace else (), ()))
    assert list(figures(told(played(TCP, elsewhere)))) == ["s1-1", "s1-2"]


def test_what_was_captured_nowhere_is_said_to_be_so() -> None:
    silent = replace(TCP, reply=False, trace=trace(c for c in masqueraded() if c.time < 1_500))
    assert drawn(told(played(silent))).endswith(f"{NODE} → {LOOP} | no reply was captured")
    gone = replace(TCP, seen=None, reply=False, trace=trace(masqueraded()[:4]))
    assert f"{NODE} → {LOOP} | captured nowhere after this | no reply" in drawn(told(played(gone)))
    unseen = replace(TCP, seen=None, reply=False, trace=trace([]))
    assert "no request was captured | no reply was captured" in drawn(told(played(unseen)))
    assert "a capture" not in told(played(replace(TCP, trace=None)))


def test_a_hop_that_is_missing_is_no_hop() -> None:
    letters = drawn(told(played(replace(TCP, trace=without("k8s-ctr")))))
    assert "k8s-ctr" not in letters
    started_elsewhere = drawn(told(played(replace(TCP, trace=without("curl-pod")))))
    assert started_elsewhere.startswith("curl-pod | ")
    assert f"{POD} → {LOOP} | source changed" in started_elsewhere


def test_a_capture_that_lost_packets_says_so() -> None:
    assert "lost packets at router" in told(
        played(replace(TCP, trace=trace(masqueraded(), lost=("router",))))
    )
    assert "lost packets" not in told(played(TCP))


def test_what_a_destination_saw_beside_what_was_captured_there() -> None:
    assert "captured there" not in told(played(TCP))
    assert f"captured there: {NODE}" in told(played(replace(TCP, seen=POD)))


def test_what_is_wrong_comes_first_and_leads_to_its_place() -> None:
    wrong = replace(TCP, expected=POD)
    text = told(played(TCP), played(wrong, failures=("it <fell>",)))
    assert text.index("1 of 2 checks are wrong") < text.index('href="#s2"') < text.index("<main>")
    assert f"✗ expected: {POD}; a reply" in words(figures(text)["s2-1"])
    assert "it &lt;fell&gt;" in text
    assert "All 1 checks are as they should be" in told(played(TCP))


def test_packets_are_listed_with_host_device_and_ports() -> None:
    text = told(played(TCP, UDP))
    rows = [words(row) for row in figures(text)["s1-1"].iter("tr")]
    assert f"0.000 curl-pod eth0 out {POD}:10000 {LOOP}:80" in rows
    assert f"0.000 router eth1 in {NODE}:10000 {LOOP}:9000" in rows
    titles = [words(title) for title in figures(text)["s1-1"].iter("h3")]
    assert titles == ["tcp: SYN", "tcp: SYN ACK", "udp: datagram", "udp: datagram"]


def test_lines_that_are_new_stand_out_in_documents_and_rules() -> None:
    before, after = "nonMasqueradeCIDRs:\n- <a>\n- b\n", "nonMasqueradeCIDRs:\n- <a>\n- b\n- c\n"
    rules = {"k8s-ctr": "$ rules\n-A one\n-A two", "k8s-w1": "$ rules\n-A one"}
    text = told(played(TCP, config=before), played(TCP, config=after, rules=rules))
    assert text.count("<ins>") == 2
    assert "<ins>- c</ins>" in text
    assert "<ins>-A two</ins>" in text
    assert "- &lt;a&gt;" in text
    assert "<del>- c</del>" in told(played(TCP, config=after), played(TCP, config=before))


def test_nodes_with_the_same_rules_share_them() -> None:
    rules = {"k8s-ctr": "-A one", "k8s-w1": "-A one", "k8s-b1": "-A two"}
    text = told(played(TCP, rules=rules))
    assert "In force on k8s-ctr and k8s-w1" in text
    assert "In force on k8s-b1" in text


def test_the_drawing_of_the_hosts_has_the_addresses_of_the_storys_family() -> None:
    assert "fd00:172:20::10" not in told(played(TCP))
    assert "fd00:172:20::10" in told(played(TCP), ipv6=True)


def test_drawings_are_told_in_words() -> None:
    drawing = figures(told(played(TCP)))["s1-1"].find("svg")
    assert drawing is not None
    label = drawing.attrib["aria-label"]
    assert f"k8s-ctr to router: from {NODE} to {LOOP}" in label
    assert "reply: router to k8s-ctr" in label
