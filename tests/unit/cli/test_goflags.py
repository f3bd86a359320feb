"""Arguments in the forms that upstream's containers use."""

from __future__ import annotations

import pytest

from ipmasq_agent.cli.goflags import normalise


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ([], ["run"]),
        (["--masq-chain=IP-MASQ"], ["run", "--masq-chain=IP-MASQ"]),
        (["-masq-chain=IP-MASQ"], ["run", "--masq-chain=IP-MASQ"]),
        (["--enable-ipv6"], ["run", "--enable-ipv6=true"]),
        (["-enable-ipv6=false"], ["run", "--enable-ipv6=false"]),
        (["--v=2", "--logtostderr"], ["run", "--v=2", "--logtostderr=true"]),
        (["-v=2", "-logtostderr=true"], ["run", "--v=2", "--logtostderr=true"]),
        (["--random-fully=0"], ["run", "--random-fully=0"]),
        (["diff", "-o", "json", "--enable-ipv6"], ["diff", "-o", "json", "--enable-ipv6=true"]),
        (["diff", "-ojson"], ["diff", "-ojson"]),
        (["--help"], ["--help"]),
        (["-h"], ["-h"]),
        (["--version"], ["--version"]),
        (["-version"], ["--version"]),
        (["-v"], ["--version"]),
        (["-v", "4"], ["run", "-v", "4"]),
        (["-v=4"], ["run", "--v=4"]),
        (["list", "-v=4"], ["list", "-v=4"]),
        (["lab", "exec", "router", "tcpdump", "-v"], ["lab", "exec", "router", "tcpdump", "-v"]),
    ],
)
def test_every_form_becomes_one(given: list[str], taken: list[str]) -> None:
    assert normalise(given) == taken
