"""One pass: for each family, read the kernel, plan, apply, and look again.

A pass with nothing to change writes nothing. One with something to change is one
transaction for each family, and the failure of one family never stops the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ipmasq_agent.agent.intent import Intent
from ipmasq_agent.agent.status import Healed
from ipmasq_agent.errors import AgentError, KernelWriteError, NotPermitted, foreseen
from ipmasq_agent.planes.plane import Change, Desired, Plan, Plane, State, Translator
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import FamilyPolicy


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass did for one family: a change (false where there was none), or an error.

    Attributes:
        healed: what others had done, where the change undid that and nothing else was asked for.
    """

    change: Change[Any] | None = None
    error: AgentError | None = None
    healed: Healed | None = None


Outcomes = Mapping[Family, Outcome]


def reconcile(
    plane: Plane[State, Desired, Plan],
    intent: Intent,
    *,
    thorough: bool = True,
    rivals: Mapping[Family, str] | None = None,
) -> Outcomes:
    """Bring every family that is managed to what ``intent`` asks for.

    Where it is to be thorough, all that the kernel holds is read rather than trusting what we
    remember of it (see ``Plane.recall``). In the families of ``rivals``, who undo what we write,
    none of their rules is touched for now.
    """

    def bring(family: Family) -> Change[Any] | None:
        desired = intent.desired(plane, family)
        rival = (rivals or {}).get(family)
        if rival is None:
            return _bring(plane, family, desired, thorough)

        def decides_alike(actual: State) -> bool:
            if plane.dialect.interpret(actual).policy == intent.policy(plane, family):
                return True
            raise KernelWriteError(
                f"{plane.name} ({family.value}): the rules in force are another's, and the "
                f"document is not in force: {rival} undoes what we write",
                remedy="remove it, or give one of the two another --masq-chain",
            )

        return _bring(plane, family, desired, thorough=True, spared=decides_alike)

    return _each(intent.config.families, bring)


def clean(plane: Plane[State, Desired, Plan], families: Iterable[Family]) -> Outcomes:
    """Remove what is ours from the families' tables."""
    return _each(families, lambda family: _remove(plane, family))


def _remove(plane: Plane[State, Desired, Plan], family: Family) -> Change[Any]:
    try:
        # Where nothing of ours is, nobody has to be kept from writing: a lock may not be had.
        gone = plane.dialect.plan(plane.read(family), plane.dialect.absent(family))
        return reconcile_family(plane, family, None) if gone else gone
    except NotPermitted:
        unread = plane.remove_unread(family) if isinstance(plane, Translator) else None
        if unread is None:
            raise
        return unread


def _each(families: Iterable[Family], work: Callable[[Family], Change[Any] | None]) -> Outcomes:
    """Do the work for each family, whatever becomes of the others."""
    outcomes: dict[Family, Outcome] = {}
    for family in families:
        try:
            outcomes[family] = Outcome(change=work(family))
        except Exception as error:
            outcomes[family] = Outcome(error=foreseen(error, "the pass"))
    return outcomes


def reconcile_family(
    plane: Plane[State, Desired, Plan], family: Family, policy: FamilyPolicy | None
) -> Change[Any]:
    """Make one family's kernel state what ``policy`` asks for; None means nothing of ours.

    Returns:
        The change that was applied; false where the kernel already held the state.

    Raises:
        KernelReadError: what the kernel holds cannot be read; nothing was written.
        KernelWriteError: the transaction went through, and the kernel holds something else.
        HostError: a program or a lock failed; nothing was written.
    """
    desired = plane.dialect.absent(family) if policy is None else plane.dialect.compile(policy)
    change = _bring(plane, family, desired, thorough=True)
    assert change is not None  # nothing is spared
    return change


def _bring(
    plane: Plane[State, Desired, Plan],
    family: Family,
    desired: Desired,
    thorough: bool,
    spared: Callable[[State], bool] = lambda actual: False,
) -> Change[Any] | None:
    """Write what is missing and take away what is too much; return what that was.

    Where somebody else has put something in the place of ours, ``spared`` says of the one state
    that is read whether to leave it, so that nothing is done.
    """
    with plane.session(family):
        actual = plane.read(family) if thorough else plane.recall(family)
        change = plane.dialect.plan(actual, desired)
        # Nobody means what is only missing.
        if change and change.counts[1] and spared(actual):
            return None
        if change:
            plane.apply(family, change)
            written = plane.recall(family)
            left = plane.dialect.plan(written, desired)
            if left and not plane.host_changed(actual, written):
                raise KernelWriteError(
                    f"{plane.name} ({family.value}): after the rules were written, "
                    f"{len(left.added)} are missing and {len(left.removed)} are too many",
                    remedy="another program changes our chain; find it, the agent tries again",
                )
    return change
