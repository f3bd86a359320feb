"""What is fuzzed: every reader of what comes from outside.

A target takes any bytes. What it raises must be an ``AgentError``, or what it names beside that
as part of its promise; what it returns must be fit to be shown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ipmasq_agent.errors import AgentError
from tests.fuzz import documents, kernel_state, peers, records

Call = Callable[[bytes], object]


class Target(NamedTuple):
    """A reader: how it is called, and what it may raise beside ``AgentError``."""

    call: Call
    allowed: tuple[type[Exception], ...] = (AgentError,)


TARGETS: dict[str, Target] = {
    # What an operator writes
    "document": Target(documents.document),
    "manifest": Target(documents.document),
    "kubeconfig": Target(documents.kubeconfig),
    "values": Target(documents.value, (AgentError, ValueError)),
    "endpoint": Target(documents.endpoint),
    "arguments": Target(documents.arguments),
    # What the kernel, and the programs that speak for it, tell
    "iptables-save": Target(kernel_state.iptables_save),
    "iptables-list": Target(kernel_state.iptables_list),
    "legacy-table": Target(kernel_state.legacy_table),
    "legacy-counts": Target(kernel_state.legacy_counts),
    "ipset": Target(kernel_state.ipset),
    "nft-rule": Target(kernel_state.nft_rule),
    "nft-elements": Target(kernel_state.nft_elements),
    "nft-table": Target(kernel_state.nft_table),
    "nft-commit": Target(kernel_state.nft_commit),
    "network": Target(kernel_state.network),
    "conntrack": Target(kernel_state.conntrack),
    "bpf-maps": Target(kernel_state.bpf_maps),
    # What was recorded, or kept
    "capture": Target(records.connections),
    "connections": Target(records.connections),
    "record": Target(records.record),
    "kept": Target(records.kept),
    "state-file": Target(records.state_file),
    "cilium-list": Target(records.cilium),
    "nodes": Target(records.nodes),
    "pods": Target(records.pods),
    # What others send
    "agent": Target(peers.agent),
    "agent-answer": Target(peers.agent_answer),
    "fleet": Target(peers.fleet),
    "http": Target(peers.http),
    "watch": Target(peers.watch),
    "list": Target(peers.listing),
}


def attempt(name: str, data: bytes) -> None:
    """Feed an input to a target.

    Raises:
        Exception: the target lets through what it must not.
    """
    call, allowed = TARGETS[name]
    try:
        call(data)
    except allowed as error:
        str(error)
