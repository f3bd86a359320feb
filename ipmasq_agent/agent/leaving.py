"""The end of the agent: rules stay, as traffic goes on while it restarts, or they go."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ipmasq_agent.agent.choice import PlaneChoice
from ipmasq_agent.agent.reconcile import Outcomes, clean
from ipmasq_agent.errors import foreseen
from ipmasq_agent.host.patience import ending_by
from ipmasq_agent.logs import event, failure
from ipmasq_agent.policy.addresses import Family


def leave(
    choice: PlaneChoice,
    deadline: float,
    report: Callable[[Outcomes, str, str], None],
    *,
    cleanup: bool,
) -> None:
    """Remove the rules if asked to, close the backends, and say what became of the rules.

    The last wait for a program or a lock ends at ``deadline``.
    """
    left: list[str] = []
    try:
        with ending_by(deadline):
            try:
                for plane in choice.every() if cleanup else ():
                    outcomes = clean(plane, Family)
                    report(outcomes, plane.name, "removed")
                    left += (
                        f"{plane.name} ({family.value})"
                        for family, outcome in outcomes.items()
                        if outcome.error
                    )
            finally:
                choice.close()
    except Exception as error:
        failure("not all is cleaned up", foreseen(error, "leaving"))
        left.append("what could not be looked for")
    if cleanup and left:
        remedy = "remove them with `ipmasq-agent cleanup`"
        event(
            logging.ERROR, "stopped", rules="not all removed", left=", ".join(left), remedy=remedy
        )
    else:
        event(logging.INFO, "stopped", rules="removed" if cleanup else "kept")
