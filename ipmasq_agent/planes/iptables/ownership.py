"""Whose chain it is: told by what it says, before anything of it is changed or removed.

A name alone proves nothing: ``--masq-chain`` can name any chain of the node. Ours and those
of upstream's agent are told by a comment on the jump or in the chain. Where both are gone
(somebody emptied POSTROUTING), a chain still counts as ours that holds nothing but what we
write, under jumps as we write them.
"""

from __future__ import annotations

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.planes.rules.rule import Rule, find_all
from ipmasq_agent.planes.rules.table import POSTROUTING, Table

SIGNATURE = "ipmasq-agent: "
"""How each comment of ours begins."""
UPSTREAM = "ip-masq-agent: "
"""How each of upstream's agent does."""
_SIGNATURES = (SIGNATURE, UPSTREAM)
_KEEPING = ({"jump"}, {"destination", "jump"}, {"match-set", "jump"})
_TRANSLATING = frozenset(
    {"destination", "jump", "protocol", "mode", "probability", "to-ports", "to-source"}
    | {"random", "random-fully"}
)
ON_JUMPS = frozenset({"source", "out-interface", "dst-type", "jump"})
"""What a jump of ours says."""


def refuse_others(actual: Table, chain: str) -> None:
    """Make sure that a chain is ours to write, or not there.

    Raises:
        KernelReadError: it looks like somebody else's.
    """
    jumps = find_all(actual.rules(POSTROUTING), chain)
    rules = actual.rules(chain)
    if any((rule.comment or "").startswith(_SIGNATURES) for rule in (*jumps, *rules)):
        return
    odd = [f"-A POSTROUTING {rule.text}" for rule in jumps if not _is_jump(rule)]
    odd += (f"-A {chain} {rule.text}" for rule in rules if not _is_plain(rule))
    if odd:
        raise KernelReadError(
            f"the chain {chain} ({actual.family.value}) is not ours as far as can be told: "
            f"it has no comment of ours, and we never write `{odd[0]}`",
            remedy="choose another name with --masq-chain, or give --adopt to take it over "
            "with all that is in it; nothing was written",
        )


def _is_jump(rule: Rule) -> bool:
    local = rule.option("dst-type")
    plain = {option.name for option in rule.meaning} <= ON_JUMPS
    return plain and local is not None and local.negated and local.values == ("LOCAL",)


def _is_plain(rule: Rule) -> bool:
    names = {option.name for option in rule.meaning}
    if any(option.negated for option in rule.meaning):
        return False
    if rule.target == "RETURN":
        return names in _KEEPING
    return rule.target in ("MASQUERADE", "SNAT") and names <= _TRANSLATING
