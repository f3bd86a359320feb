"""Reasons of verdicts, taken for the kind that a test expects."""

from __future__ import annotations

from ipmasq_agent.planes.interpretation import Decider
from ipmasq_agent.policy.decisions import Origin, Reason


def origin(reason: Reason) -> Origin:
    """Return a reason that is an entry of a document."""
    assert isinstance(reason, Origin), reason
    return reason


def decider(reason: Reason) -> Decider:
    """Return a reason that is a rule, or what a set or a trie holds."""
    assert isinstance(reason, Decider), reason
    return reason
