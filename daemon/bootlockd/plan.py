"""Which steps an instance needs. Pure: a case in, steps out, so every situation can be enumerated.

For each fence, in the order of the registry:

    wanted   row enforced before   step
    yes      yes                   VERIFY (the worker applies if that shows it is no longer true)
    yes      no                    APPLY
    no       any row not lifted    LIFT
    no       none                  none

Lifting comes last and in reverse: image locks are let go before what holds the guest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from bootlockd.fences.base import Fence
from bootlockd.values import Case
from lockdb.enforcements import State


class Action(StrEnum):
    """What to do with a fence."""

    APPLY = "apply"
    VERIFY = "verify"
    LIFT = "lift"


@dataclass(frozen=True)
class Step:
    """One thing to do, with one fence."""

    fence: str
    action: Action


def plan(case: Case, fences: Sequence[Fence]) -> list[Step]:
    """The steps that bring this case to what its holds order."""
    up = [Step(fence.name, _up(case, fence)) for fence in fences if fence.wanted(case)]
    down = [
        Step(fence.name, Action.LIFT)
        for fence in reversed(fences)
        if not fence.wanted(case) and _standing(case, fence)
    ]
    return up + down


def _up(case: Case, fence: Fence) -> Action:
    rows = [case.row(hold, fence.name) for hold in case.holds if fence.asks(hold)]
    proven = all(row is not None and row.state is State.ENFORCED for row in rows)
    return Action.VERIFY if proven else Action.APPLY


def _standing(case: Case, fence: Fence) -> bool:
    return any(
        name == fence.name and row.state not in {State.LIFTED, State.NOT_HERE}
        for (_, name), row in case.rows.items()
    )
