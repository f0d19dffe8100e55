"""The plan, for every combination of what is wanted and what stands."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from bootlockd import registry
from bootlockd.config import Config
from bootlockd.plan import Action, Step, plan
from bootlockd.values import Case
from daemon.fakes import FakeFence, uuid
from lockdb.enforcements import Enforcement, State
from lockdb.values import Hold, Kind, OnRunning, Operation, Permit

INSTANCE = uuid(1)
ROWS = [None, *State]


def hold(hold_id: str, kind: Kind = Kind.BOOT_LOCK) -> Hold:
    return Hold(
        instance=INSTANCE,
        reason="r",
        placed_by="t",
        kind=kind,
        source="local",
        notice="n",
        case="",
        grace=60,
        isolate=False,
        until=None,
        on_running=OnRunning.LEAVE,
        id=hold_id,
        was_running=None,
        placed_at=1,
        released_at=None,
        released_by=None,
        release_reason=None,
    )


def row(hold_id: str, fence: str, state: State) -> tuple[tuple[str, str], Enforcement]:
    return (hold_id, fence), Enforcement(hold_id, fence, INSTANCE, state, "", 1, 1)


def permit() -> Permit:
    return Permit("p", INSTANCE, Operation.START, "r", 1, "t", 9, None, None)


@pytest.mark.parametrize("permitted", [False, True])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("state", ROWS)
def test_one_fence_by_wanted_row_and_permit(
    held: bool, state: State | None, permitted: bool
) -> None:
    rows = dict([row("h", "fake", state)]) if state else {}
    case = Case(
        INSTANCE,
        5,
        holds=[hold("h")] if held else [],
        permits=[permit()] if permitted else [],
        rows=rows,
    )
    steps = plan(case, [FakeFence()])
    if held and not permitted:
        wanted = Action.VERIFY if state is State.ENFORCED else Action.APPLY
        assert steps == [Step("fake", wanted)]
    elif state in {None, State.LIFTED, State.NOT_HERE}:
        assert steps == []
    else:
        assert steps == [Step("fake", Action.LIFT)]


@pytest.mark.parametrize(("first", "second"), list(itertools.product(ROWS, ROWS)))
def test_two_holds_are_proven_only_if_both_are(first: State | None, second: State | None) -> None:
    rows = dict(row(name, "fake", state) for name, state in (("a", first), ("b", second)) if state)
    case = Case(INSTANCE, 5, holds=[hold("a"), hold("b")], rows=rows)
    proven = first is second is State.ENFORCED
    expected = Action.VERIFY if proven else Action.APPLY
    assert plan(case, [FakeFence()]) == [Step("fake", expected)]


def test_a_hold_that_does_not_ask_neither_puts_up_nor_keeps() -> None:
    case = Case(INSTANCE, 5, holds=[hold("s", Kind.STATE_LOCK)])
    assert plan(case, [FakeFence()]) == []


def test_a_boot_lock_that_lets_it_start_neither_stops_it_nor_locks_its_disks() -> None:
    fences = {fence.name: fence for fence in registry.fences(Config())}
    for blocks, barred in ((None, True), ("start,delete", True), ("stop,delete", False)):
        held = replace(hold("h"), blocks=blocks)
        case = Case(INSTANCE, 5, holds=[held])
        for name in ("power", "image-lock", "process_watch"):
            assert fences[name].asks(held) is fences[name].wanted(case) is barred, name


def test_fences_go_up_in_order_and_come_down_in_reverse() -> None:
    fences = [FakeFence("one"), FakeFence("two"), FakeFence("three")]
    names = [fence.name for fence in fences]
    up = plan(Case(INSTANCE, 5, holds=[hold("h")]), fences)
    assert [step.fence for step in up] == names
    rows = dict(row("h", name, State.ENFORCED) for name in names)
    down = plan(Case(INSTANCE, 5, rows=rows), fences)
    assert [step.fence for step in down] == names[::-1]
