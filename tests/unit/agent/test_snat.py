"""What is said of a source address that the document names."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from ipmasq_agent.agent import snat
from ipmasq_agent.agent.snat import Replies, replies, tell
from ipmasq_agent.agent.status import ConfigStatus, Look, Sighting, Status
from ipmasq_agent.config.assemble import follows
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.config.keys import SNAT_ADDRESS
from ipmasq_agent.config.model import AUTO, Config, Flags
from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.host.routes import Delivery
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.facts import ADDRESSES

FLAGS = Flags(enable_ipv6=True)


def config(text: str = "snatAddress: {ipv4: 192.0.2.9, ipv6: '2001:db8::9'}") -> Config:
    return parse_document(text.encode(), "cm", FLAGS).config


def test_an_address_of_the_node_is_no_matter() -> None:
    assert replies(config(), lambda *_: Delivery.HERE) == Replies()


def test_each_family_has_its_own_word() -> None:
    found = {Family.IPV4: Delivery.NOWHERE, Family.IPV6: Delivery.BY_ROUTERS}
    told = replies(config(), lambda family, _: found[family])
    (error,), (warning,) = told
    assert "nobody answers for snatAddress 192.0.2.9" in error
    assert "`ip address add 192.0.2.9/32 dev DEVICE`" in error
    assert "snatAddress 2001:db8::9 is not an address of this node" in warning


def test_addresses_of_routes_are_not_asked_about() -> None:
    asked: list[object] = []

    def deliver(*words: object) -> Delivery:
        asked.append(words)
        return Delivery.NOWHERE

    assert replies(config("snatAddress: auto-route"), deliver) == Replies()
    assert replies(config("{}"), deliver) == Replies()
    assert asked == []


def test_a_kernel_that_does_not_answer_is_a_doubt() -> None:
    def deliver(*_: object) -> Delivery:
        raise KernelReadError("no netlink")

    told = replies(config("snatAddress: 192.0.2.9"), deliver)
    assert told.unanswered == ()
    assert "is unknown: no netlink" in told.doubtful[0]


def test_addresses_are_followed_for_named_ones_only() -> None:
    assert follows(config()) == {ADDRESSES}
    assert follows(config("snatAddress: auto-route")) == frozenset()
    assert follows(config("{}")) == frozenset()
    assert config("snatAddress: auto-route")[SNAT_ADDRESS] == dict.fromkeys(Family, AUTO)


def test_what_nothing_comes_back_to_is_not_ready() -> None:
    status = Status(ConfigStatus("cm", Sighting("1", "d1", 0), accepted=True), in_sync=True)
    assert status.ready
    lost = replace(status, look=Look(unanswered=("nobody answers",)))
    assert not lost.ready
    assert lost.why_not_ready() == "nobody answers"
    assert "Error:        nobody answers" in lost.as_text()
    assert lost.as_data()["unanswered"] == ["nobody answers"]


def test_each_line_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[tuple[int, str]] = []
    monkeypatch.setattr(snat, "event", lambda level, text: words.append((level, text)))
    said = Replies(("nobody answers",), ("perhaps",))
    tell(Replies(), said)
    tell(said, said)
    tell(said, Replies())
    assert words == [
        (logging.ERROR, "nobody answers"),
        (logging.WARNING, "perhaps"),
        (logging.INFO, "replies to snatAddress find this node again"),
    ]
