"""A source that releases a hold which is retained: it stays, the release waits for its date."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bootlockd.sources.holdfile import parse
from bootlockd.sources.reconcile import Limits
from database.clocks import Clocks
from database.soundness import assert_whole, log
from lockdb import counts, database, holds, sources, witness
from lockdb.errors import NotFound
from lockdb.values import Hold, Kind, Retention
from samples import NOW
from sources.said import held, in_force, part, released, state, take, whole

DAY = 86400
UNTIL = NOW + 30 * DAY
COMPLIANCE, GOVERNANCE = Retention.COMPLIANCE, Retention.GOVERNANCE
RETAINED: dict[str, Any] = {"retain_until": UNTIL, "retention": COMPLIANCE}


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    monkeypatch.setattr(witness, "look", clocks.see)
    return clocks


def only(path: Path) -> Hold:
    with database.open_db(path, read_only=True) as lock_db:
        (hold,) = holds.history(lock_db)
    return hold


def events(path: Path) -> list[object]:
    with database.open_db(path) as lock_db:
        return [entry["event"] for entry in log(lock_db)[1:]]


def test_what_is_said_again_is_unchanged(path: Path, clocks: Clocks) -> None:
    take(path, whole(held(1, **RETAINED)))
    hold = only(path)
    assert (hold.retain_until, hold.retention) == (UNTIL, COMPLIANCE)
    assert take(path, whole(held(1, **RETAINED))).unchanged == 1
    assert events(path) == ["placed"]


def test_its_release_waits_for_the_date_without_anybody_saying_it_again(
    path: Path, clocks: Clocks
) -> None:
    take(path, whole(held(1, **RETAINED), held(2)))
    made = take(path, part(released(1), released(2)), now=NOW)
    assert [ending.hold_id for ending in made.retained] == [
        hold.id for hold in in_force(path) if hold.ref == "r1"
    ]
    assert (made.stopped, list(made.waiting)) == ("", []), "it stops nothing else"
    assert [hold.ref for hold in in_force(path)] == ["r1"]
    clocks.pass_by(30 * DAY - 1)
    take(path, part(), now=clocks.now)
    assert [hold.ref for hold in in_force(path)] == ["r1"]
    clocks.pass_by(1)
    take(path, part(), now=clocks.now)
    assert in_force(path) == []
    assert events(path) == ["placed", "placed", "released", "release_retained", "released"]
    assert_whole(path)


def test_the_clock_set_forward_does_not_end_it(path: Path, clocks: Clocks) -> None:
    take(path, whole(held(1, **RETAINED)))
    clocks.ahead = 365 * DAY
    for reading in (part(released(1)), whole(released(1)), part(), whole()):
        take(path, reading, now=clocks.now)
        assert len(in_force(path)) == 1
    clocks.ahead = 0
    clocks.pass_by(30 * DAY)
    take(path, part(), now=clocks.now)
    assert in_force(path) == []


def test_what_waits_for_its_date_is_nobodys_to_accept_and_no_fault(
    path: Path, clocks: Clocks
) -> None:
    take(path, whole(held(1, **RETAINED)))
    made = take(path, part(released(1)))
    with database.open_db(path) as lock_db:
        token = sources.token_of(made.retained)
        with pytest.raises(NotFound, match="nothing of the source file waits"):
            sources.accept(lock_db, "file", token, by="chief", now=NOW)
        assert sources.stopped(lock_db, "file", now=NOW) == []
        assert [one.hold_id for one in sources.retained(lock_db, "file")] == [only(path).id]
        assert counts.waiting(lock_db) == {}
    assert state(path).faults.count == 0
    assert len(in_force(path)) == 1


def test_what_the_guard_stopped_and_is_retained_afterwards_is_not_accepted(
    path: Path, clocks: Clocks
) -> None:
    guard = Limits(most=1, percent=100)
    take(path, whole(*map(held, range(3))))
    made = take(path, part(*map(released, range(3))), limits=guard)
    assert len(made.waiting) == 3
    kept = made.waiting[0]
    with database.open_db(path) as lock_db:
        holds.retain(lock_db, kept.hold_id, until=UNTIL, mode=COMPLIANCE, by="a", now=NOW)
        left = sources.stopped(lock_db, "file", now=NOW)
        ended = sources.accept(lock_db, "file", sources.token_of(left), by="chief", now=NOW)
    assert len(ended) == 2
    assert [hold.id for hold in in_force(path)] == [kept.hold_id]
    made = take(path, part(), limits=guard)
    assert [one.hold_id for one in made.retained] == [kept.hold_id]


def test_the_guard_counts_those_whose_date_has_come(path: Path, clocks: Clocks) -> None:
    guard = Limits(most=1, percent=100)
    take(path, whole(*(held(number, **RETAINED) for number in range(3))))
    take(path, part(*map(released, range(3))), limits=guard)
    clocks.pass_by(30 * DAY)
    made = take(path, part(), limits=guard, now=clocks.now)
    assert len(made.waiting) == 3
    assert len(in_force(path)) == 3
    again = take(path, part(), limits=guard, now=clocks.now)
    assert again.waiting == made.waiting
    assert not again.steps.wait


def test_what_is_held_again_waits_no_more(path: Path, clocks: Clocks) -> None:
    take(path, whole(held(1, **RETAINED)))
    take(path, part(released(1)))
    assert not take(path, part(held(1, **RETAINED))).retained
    clocks.pass_by(31 * DAY)
    take(path, part(), now=clocks.now)
    assert len(in_force(path)) == 1


@pytest.mark.parametrize(
    "less",
    [
        {},
        {"retain_until": NOW + DAY, "retention": COMPLIANCE},
        {"retain_until": UNTIL, "retention": GOVERNANCE},
        {"retain_until": UNTIL},
    ],
)
def test_a_source_cannot_make_it_less(path: Path, clocks: Clocks, less: dict[str, Any]) -> None:
    take(path, whole(held(1, **RETAINED)))
    made = take(path, whole(held(1, **less)))
    assert (made.unchanged, made.changes_holds) == (1, False)
    assert (only(path).retain_until, only(path).retention) == (UNTIL, COMPLIANCE)


def test_a_source_can_make_it_more(path: Path, clocks: Clocks) -> None:
    take(path, whole(held(1)))
    take(path, whole(held(1, retain_until=UNTIL, retention=GOVERNANCE)))
    take(path, whole(held(1, retain_until=UNTIL + DAY, retention=COMPLIANCE, reason="more")))
    hold = only(path)
    assert (hold.retain_until, hold.retention, hold.reason) == (UNTIL + DAY, COMPLIANCE, "more")


def test_a_source_cannot_let_it_expire_or_weaken_it(path: Path, clocks: Clocks) -> None:
    take(path, whole(held(1, **RETAINED)))
    take(path, whole(held(1, until=NOW + 5)))
    assert "does not end by itself" in state(path).faults.first[0]
    made = take(path, whole(held(1, kind=Kind.STATE_LOCK, **RETAINED)))
    assert len(made.retained) == 1
    assert (only(path).kind, only(path).until) == (Kind.BOOT_LOCK, None)
    # As soon as it may, it does.
    clocks.pass_by(30 * DAY)
    take(path, part(), now=clocks.now)
    assert only(path).kind is Kind.STATE_LOCK


@pytest.mark.parametrize("more", [{"kind": Kind.BOOT_LOCK}, {"blocks": "start,delete"}])
def test_what_it_is_does_not_change_before_the_date_either(
    path: Path, clocks: Clocks, more: dict[str, Any]
) -> None:
    before = {"kind": Kind.STATE_LOCK, "blocks": "delete"}
    take(path, whole(held(1, **RETAINED, **before)))
    assert len(take(path, whole(held(1, **RETAINED, **before | more))).retained) == 1
    assert (only(path).kind, only(path).blocks) == (Kind.STATE_LOCK, "delete")
    clocks.pass_by(30 * DAY)
    take(path, part(), now=clocks.now)
    hold = only(path)
    assert {name: getattr(hold, name) for name in before} == before | more


def test_what_was_retained_by_an_admin_here_stays_so_against_its_source(
    path: Path, clocks: Clocks
) -> None:
    take(path, whole(held(1)))
    with database.open_db(path) as lock_db:
        holds.retain(lock_db, only(path).id, until=UNTIL, mode=GOVERNANCE, by="a", now=NOW)
    assert take(path, whole(held(1))).unchanged == 1
    assert len(take(path, whole(released(1))).retained) == 1
    with database.open_db(path) as lock_db:
        hold = holds.release(lock_db, only(path).id, reason="mine", by="a", now=NOW, override=True)
    assert hold.overridden


def test_an_override_in_the_registry_ends_governance_and_not_compliance(
    path: Path, clocks: Clocks
) -> None:
    weak = held(1, retain_until=UNTIL, retention=GOVERNANCE)
    take(path, whole(weak, held(2, **RETAINED)))
    take(path, part(*(replace(released(number), override=True) for number in (1, 2))))
    (left,) = in_force(path)
    assert left.retention is COMPLIANCE
    with database.open_db(path) as lock_db:
        entry = next(entry for entry in log(lock_db) if entry["event"] == "released")
    assert (entry["overridden"], entry["retention"]) == (True, GOVERNANCE)


def test_an_override_that_the_guard_stops_is_accepted_by_an_admin(
    path: Path, clocks: Clocks
) -> None:
    guard = Limits(most=1, percent=100)
    fields: dict[str, Any] = {"retain_until": UNTIL, "retention": GOVERNANCE}
    take(path, whole(*(held(number, **fields) for number in range(2))))
    said = [replace(released(number), override=True) for number in range(2)]
    made = take(path, part(*said), limits=guard)
    with database.open_db(path) as lock_db:
        sources.accept(lock_db, "file", sources.token_of(made.waiting), by="chief", now=NOW)
    assert in_force(path) == []


def test_a_file_says_it(path: Path, clocks: Clocks) -> None:
    text = """
        [[hold]]
        instance = "8f3e3a0e-44bb-4f43-9d35-8bd1a1e4b7c5"
        reason = "court order"
        retain_until = {until}
        retention = "compliance"
    """
    for until in ("2027-01-31T12:00:00Z", '"2027-01-31T12:00:00"'):
        contents = parse("a.toml", text.format(until=until).encode())
        order = contents.observations[0].order
        assert order
        assert not contents.faults
        assert (order.retain_until, order.retention) == (1801396800, COMPLIANCE)
    for wrong, problem in (
        ('retention = "compliance"', "retention: it needs a date: retain_until"),
        (
            "retain_until = 2027-01-31T00:00:00Z\nretention = 'soft'",
            "is none of governance, compliance",
        ),
        ("retain_until = 2027-01-31T00:00:00Z\nuntil = 2027-01-31T00:00:00Z", "by itself"),
        ("retain_until = 5", "must be text"),
    ):
        line = f'[[hold]]\ninstance = "{"1" * 32}"\nreason = "x"\n{wrong}\n'
        contents = parse("a.toml", line.encode())
        assert problem in contents.faults[0], contents.faults
