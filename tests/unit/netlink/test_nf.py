"""Answers of kernels that this machine's kernel does not give."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.netlink import core as netlink
from ipmasq_agent.netlink import nf as nfnetlink
from ipmasq_agent.netlink.nft_objects import chain_info, list_rules
from ipmasq_agent.policy.addresses import Family


@pytest.mark.parametrize("code", [errno.EPROTONOSUPPORT, errno.EINVAL])
def test_a_kernel_without_nf_tables_has_no_chains_of_it(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def absent(protocol: int) -> socket.socket:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(netlink, "connect", absent)
    assert chain_info(Family.IPV4, "mangle", "X") is None
    with pytest.raises(KernelReadError):
        list_rules(Family.IPV4, "nat", "X")


def test_a_refusal_for_lack_of_privilege_is_not_an_empty_ruleset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(protocol: int) -> socket.socket:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(netlink, "connect", refused)
    with pytest.raises(KernelReadError, match="NET_ADMIN"):
        chain_info(Family.IPV4, "mangle", "X")
    with pytest.raises(KernelReadError, match="NET_ADMIN"):
        nfnetlink.generation()
