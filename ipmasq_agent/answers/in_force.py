"""What is in force on a node: what our rules decide, but for where others do."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

from ipmasq_agent.planes.interpretation import Decider, Interpretation
from ipmasq_agent.planes.rules.matching import Question
from ipmasq_agent.planes.rules.neighbours import PostroutingHook, joined, neighbours
from ipmasq_agent.policy.addresses import prefixes_of_range
from ipmasq_agent.policy.decisions import Verdict
from ipmasq_agent.policy.model import Guards


def usual(guards: Guards, hook: PostroutingHook) -> Question:
    """Return the question about all packets that a policy with these guards speaks of.

    Where they name no devices, those are meant through which traffic leaves the node.
    """
    sources = guards.sources
    return Question(
        None if sources is None else tuple((prefix.first, prefix.last) for prefix in sources),
        guards.devices or hook.egress or None,
        others=guards.devices is None,
    )


def in_force(own: Interpretation, hook: PostroutingHook) -> Interpretation:
    """Return what becomes of the packets that our policy speaks of."""
    return joined(own, neighbours(hook, usual(own.policy.guards, hook)))


def cidrs_in_force(kernels: Sequence[Interpretation], *, whole: bool = True) -> list[str]:
    """Return the non-masquerade CIDRs that a kernel holds, in the order of its rules.

    A rule is listed with its own prefix if it decides for at least one address; where a
    rule has no prefix of its own (a negated one), the ranges that it decides are.

    Args:
        kernels: what is in force.
        whole: False where others decide about parts of such prefixes: then what is left of
            them is listed.
    """
    cidrs: dict[str, None] = {}
    for kernel in kernels:
        decisions = kernel.policy.decisions
        deciding = [
            (rule.position or 0, first, last, rule.prefix if whole and rule.position else None)
            for first, last, verdict, rule in decisions.ranges
            # Where no rule translates, nothing is anyone's entry.
            if verdict is Verdict.NON_MASQUERADE and isinstance(rule, Decider)
        ]
        for _, first, last, named in sorted(deciding, key=itemgetter(0, 1)):
            if named is not None:
                cidrs[str(named)] = None
            else:
                prefixes = prefixes_of_range(decisions.family, first, last)
                cidrs |= dict.fromkeys(map(str, prefixes))
    return list(cidrs)
