"""The ends of connections, as they are written."""

from __future__ import annotations

import pytest

from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.flows import parse_end


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("192.0.2.1:80", ("192.0.2.1", 80)),
        ("192.0.2.1", ("192.0.2.1", 0)),
        ("[2001:db8::1]:80", ("2001:db8::1", 80)),
        ("2001:db8::1", ("2001:db8::1", 0)),
    ],
)
def test_ends_are_read_as_they_are_shown(text: str, end: tuple[str, int]) -> None:
    family, found = parse_end(text)
    assert (family.show(found.address), found.port) == end
    assert parse_end(found.shown(family)) == (family, found)


@pytest.mark.parametrize("text", ["", "a:1", "192.0.2.1:x", "192.0.2.1:65536", "[::1]:-1", "[::1"])
def test_what_names_no_end_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|port"):
        parse_end(text)


def test_families_are_told_apart() -> None:
    assert parse_end("[::1]:1")[0] is Family.IPV6
