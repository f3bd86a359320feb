"""One pass: for each family, read the kernel, plan, apply, and look again.

A pass with nothing to change writes nothing. One with something to change is one
transaction for each family, and the failure of one family never stops the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.errors import AgentError, KernelWriteError, NotPermitted, foreseen
from ipmasq_agent.planes.plane import Change, Desired, Plan, Plane, State
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import FamilyPolicy


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass did for one family: a change (false where there was none), or an error."""

    change: Change | None = None
    error: AgentError | None = None

    @property
    def changed(self) -> bool:
        """Whether the kernel was written to."""
        return bool(self.change)


Outcomes = Mapping[Family, Outcome]


def reconcile(
    backend: Plane[State, Desired, Plan],
    intent: Intent,
    *,
    thorough: bool = True,
    rivals: Mapping[Family, str] | None = None,
) -> Outcomes:
    """Bring every family that is managed to what ``intent`` asks for.

    Args:
        backend: where.
        intent: what.
        thorough: read all that the kernel holds, rather than trust what we remember of
            it (see ``Plane.recall``).
        rivals: families in which somebody undoes what we write, and who. Of their rules
            there none is touched for now.
    """

    def bring(family: Family) -> Change | None:
        desired = intent.desired(backend, family)
        rival = (rivals or {}).get(family)
        if rival is not None and _theirs(backend, family, desired, intent, rival):
            return None
        return _bring(backend, family, desired, thorough)

    return _each(intent.config.families, bring)


def _theirs(
    backend: Plane[State, Desired, Plan],
    family: Family,
    desired: Desired,
    intent: Intent,
    rival: str,
) -> bool:
    """Whether somebody else's rules are in force, which decide as ours would.

    Raises:
        KernelWriteError: they decide otherwise.
    """
    actual = backend.read(family)
    if not backend.plan(actual, desired).counts[1]:
        return False  # nobody means what is only missing
    if backend.interpret(actual).policy != intent.policy(backend, family):
        raise KernelWriteError(
            f"{backend.name} ({family.value}): the rules in force are another's, and the "
            f"document is not in force: {rival} undoes what we write",
            remedy="remove it, or give one of the two another --masq-chain",
        )
    return True


def clean(backend: Plane[State, Desired, Plan], families: Iterable[Family]) -> Outcomes:
    """Remove what is ours from the families' tables."""
    return _each(families, lambda family: _remove(backend, family))


def _remove(backend: Plane[State, Desired, Plan], family: Family) -> Change:
    try:
        return reconcile_family(backend, family, None)
    except NotPermitted:
        gone = backend.remove_unread(family)
        if gone is None:
            raise
        return gone


def _each(families: Iterable[Family], work: Callable[[Family], Change | None]) -> Outcomes:
    """Do the work for each family, whatever becomes of the others."""
    outcomes: dict[Family, Outcome] = {}
    for family in families:
        try:
            outcomes[family] = Outcome(change=work(family))
        except Exception as error:
            outcomes[family] = Outcome(error=foreseen(error, "the pass"))
    return outcomes


def reconcile_family(
    backend: Plane[State, Desired, Plan], family: Family, policy: FamilyPolicy | None
) -> Change:
    """Make one family's kernel state what ``policy`` asks for; None means nothing of ours.

    Returns:
        The change that was applied; false where the kernel already held the state.

    Raises:
        KernelReadError: what the kernel holds cannot be read; nothing was written.
        KernelWriteError: the transaction went through, and the kernel holds something else.
        HostError: a program, a lock or a worker failed; nothing was written.
    """
    desired = backend.absent(family) if policy is None else backend.compile(policy)
    return _bring(backend, family, desired, thorough=True)


def _bring(
    backend: Plane[State, Desired, Plan], family: Family, desired: Desired, thorough: bool
) -> Change:
    with backend.session(family):
        actual = backend.read(family) if thorough else backend.recall(family)
        change = backend.plan(actual, desired)
        if change:
            backend.apply(family, change)
            left = backend.plan(backend.recall(family), desired)
            if left:
                raise KernelWriteError(
                    f"{backend.name} ({family.value}): after the rules were written, "
                    f"{len(left.added)} are missing and {len(left.removed)} are too many",
                    remedy="another program changes our chain; find it, the agent tries again",
                )
    return change
