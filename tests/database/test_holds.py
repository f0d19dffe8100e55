"""Placing, finding and releasing holds."""

from __future__ import annotations

import pytest

from database.soundness import log
from lockdb import disks, holds
from lockdb.database import LockDB
from lockdb.errors import AlreadyEnded, AmbiguousPrefix, InvalidValue, NotFound
from lockdb.values import Hold, Kind, OnRunning
from samples import HELD, NOW, OTHER, new_hold


def _release(lock_db: LockDB, hold_id: str, now: int = NOW + 1) -> Hold:
    return holds.release(lock_db, hold_id, reason="paid", by="clerk", now=now)


def test_a_placed_hold_is_stored_and_journalled_with_everything_said_about_it(
    lock_db: LockDB,
) -> None:
    new = new_hold(
        kind=Kind.STATE_LOCK,
        source="nova",
        notice="call us",
        case="4711",
        on_running=OnRunning.SHUTDOWN,
        grace=30,
        isolate=True,
        until=NOW + 60,
    )
    hold = holds.place(lock_db, new, now=NOW)
    assert holds.history(lock_db) == [hold] == holds.active(lock_db, now=NOW)
    assert (hold.placed_at, hold.was_running, hold.released_at) == (NOW, None, None)
    entry = log(lock_db)[-1]
    assert (entry.pop("event"), entry.pop("at")) == ("placed", NOW)
    stored = hold.as_dict()
    for field in ("released_at", "released_by", "release_reason", "ref"):
        assert stored.pop(field) is None
    assert stored.pop("overridden") is False
    assert entry.items() >= stored.items()
    for field, value in vars(new).items():
        assert stored[field] == value


def test_an_instance_may_have_any_number_of_holds(lock_db: LockDB) -> None:
    placed = [holds.place(lock_db, new_hold(), now=NOW + number) for number in range(20)]
    assert len({hold.id for hold in placed}) == 20
    assert holds.active(lock_db, now=NOW + 20, instance=HELD) == placed


def test_a_release_ends_one_hold_and_leaves_every_other_as_it_was(lock_db: LockDB) -> None:
    placed = [
        holds.place(lock_db, new_hold(instance, source=source), now=NOW)
        for instance in (HELD, OTHER)
        for source in ("local", "nova")
    ]
    released = _release(lock_db, placed[0].id)
    assert (released.released_at, released.released_by) == (NOW + 1, "clerk")
    assert released.release_reason == "paid"
    left = {hold.id: hold for hold in placed[1:]}
    assert {hold.id: hold for hold in holds.active(lock_db, now=NOW)} == left
    assert {hold.id: hold for hold in holds.history(lock_db)} == left | {released.id: released}
    entry = log(lock_db)[-1]
    assert (entry["event"], entry["id"], entry["by"]) == ("released", released.id, "clerk")
    assert entry["reason"] == "paid"


def test_a_hold_is_released_once(lock_db: LockDB) -> None:
    hold = holds.place(lock_db, new_hold(), now=NOW)
    first = _release(lock_db, hold.id)
    with pytest.raises(AlreadyEnded, match=r"released at 2023-11-14T22:13:21Z by clerk"):
        _release(lock_db, hold.id, NOW + 9)
    assert holds.history(lock_db) == [first]


@pytest.mark.parametrize(
    ("hold_id", "reason", "error"),
    [
        ("0123456789abcdef", "paid", NotFound),
        ("", "paid", NotFound),
        ("%", "paid", NotFound),
        (None, "", InvalidValue),
        (None, " ", InvalidValue),
        (None, "two\nlines", InvalidValue),
        (None, "x" * 2001, InvalidValue),
    ],
)
def test_a_release_that_cannot_be_changes_nothing(
    lock_db: LockDB, hold_id: str | None, reason: str, error: type[Exception]
) -> None:
    hold = holds.place(lock_db, new_hold(), now=NOW)
    before = log(lock_db)
    with pytest.raises(error):
        holds.release(
            lock_db, hold.id if hold_id is None else hold_id, reason=reason, by="clerk", now=NOW
        )
    assert holds.active(lock_db, now=NOW) == [hold]
    assert log(lock_db) == before


def test_a_hold_is_over_in_the_very_second_of_its_until(lock_db: LockDB) -> None:
    hold = holds.place(lock_db, new_hold(until=NOW + 60), now=NOW)
    for now, active in ((NOW, True), (NOW + 59, True), (NOW + 60, False), (NOW + 61, False)):
        assert holds.active(lock_db, now=now) == ([hold] if active else [])
        assert hold.is_active(now) is active
    assert not _release(lock_db, hold.id).is_active(NOW)


def test_holds_are_found_by_instance_and_by_source(lock_db: LockDB) -> None:
    one = holds.place(lock_db, new_hold(HELD, source="nova"), now=NOW)
    two = holds.place(lock_db, new_hold(OTHER, source="nova"), now=NOW + 1)
    three = holds.place(lock_db, new_hold(OTHER), now=NOW + 2)
    for listed in (holds.history(lock_db), holds.active(lock_db, now=NOW)):
        assert listed == [one, two, three]
    assert holds.history(lock_db, source="nova") == [one, two]
    assert holds.active(lock_db, now=NOW, instance=OTHER) == [two, three]
    assert holds.active(lock_db, now=NOW, instance=OTHER, source="nova") == [two]
    assert holds.history(lock_db, instance="") == []


def test_a_hold_is_found_by_any_beginning_that_only_it_has(lock_db: LockDB) -> None:
    placed = [holds.place(lock_db, new_hold(), now=NOW) for _ in range(40)]
    ids = [hold.id for hold in placed]
    for hold in placed:
        length = next(
            size for size in range(1, 17) if sum(one.startswith(hold.id[:size]) for one in ids) == 1
        )
        assert holds.find(lock_db, hold.id[:length]) == hold
        assert holds.find(lock_db, f" {hold.id.upper()} ") == hold
        if length > 1:
            with pytest.raises(AmbiguousPrefix, match="is ambiguous"):
                holds.find(lock_db, hold.id[: length - 1])
        with pytest.raises(NotFound):
            holds.find(lock_db, hold.id + "0")


@pytest.mark.parametrize("prefix", ["", " ", "g", "%", "_", "0' OR 1 --", "\uff10", "x" * 10_000])
def test_what_is_no_beginning_of_an_id_finds_nothing(lock_db: LockDB, prefix: str) -> None:
    holds.place(lock_db, new_hold(), now=NOW)
    with pytest.raises(NotFound) as failed:
        holds.find(lock_db, prefix)
    assert len(str(failed.value)) < 120


@pytest.mark.parametrize("was_running", [True, False])
def test_whether_it_ran_is_noted_with_the_hold(lock_db: LockDB, was_running: bool) -> None:
    hold = holds.place(lock_db, new_hold(kind=Kind.STATE_LOCK), now=NOW)
    seen = holds.set_was_running(lock_db, hold, was_running, now=NOW + 1)
    assert seen.was_running is was_running
    assert holds.history(lock_db) == [seen]
    assert log(lock_db)[-1]["was_running"] is was_running


def test_disks_are_remembered_until_the_last_hold_of_their_instance_ends(lock_db: LockDB) -> None:
    first, last = (holds.place(lock_db, new_hold(), now=NOW) for _ in range(2))
    holds.place(lock_db, new_hold(OTHER), now=NOW)
    for instance in (HELD, OTHER):
        disks.record(lock_db, instance, ["path:/shared", f"path:/{instance}"], now=NOW)
    _release(lock_db, first.id)
    assert disks.of_instance(lock_db, HELD) == [f"path:/{HELD}", "path:/shared"]
    _release(lock_db, last.id)
    assert disks.of_instance(lock_db, HELD) == []
    assert disks.of_instance(lock_db, OTHER) == [f"path:/{OTHER}", "path:/shared"]
