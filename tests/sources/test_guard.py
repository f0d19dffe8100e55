"""Too many releases at once: nothing ends, what would end waits, and only that is accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootlockd.config import Config, Fleet, Sync
from bootlockd.sources.reconcile import Limits
from bootlockd.sources.runner import limits_of
from database.soundness import assert_whole, log
from lockdb import database, holds, sources
from lockdb.errors import NotFound, NotNow
from lockdb.sources import Ending
from lockdb.values import Kind
from samples import NOW
from sources.said import held, in_force, instances, part, released, state, take, uuid, whole

GUARD = Limits()
HOUR = 3600


def filled(path: Path, count: int) -> None:
    take(path, whole(*map(held, range(count))))


def waiting(path: Path) -> list[Ending]:
    with database.open_db(path) as lock_db:
        return sources.waiting(lock_db, "file")


def accept(path: Path, token: str) -> None:
    with database.open_db(path) as lock_db:
        sources.accept(lock_db, "file", token, by="chief", now=NOW)


@pytest.mark.parametrize(
    ("active", "allowed"), [(1, 1), (3, 1), (9, 1), (10, 2), (49, 9), (50, 10), (1000, 10)]
)
def test_the_smaller_of_number_and_share_may_end_but_one_always(active: int, allowed: int) -> None:
    assert GUARD.allowed(active) == allowed


def test_of_the_registry_the_number_counts_and_not_the_share() -> None:
    usual = Config()
    assert [limits_of(usual, "file").allowed(active) for active in (3, 20, 5000)] == [1, 4, 10]
    assert [limits_of(usual, "etcd").allowed(active) for active in (3, 20, 5000)] == [3, 10, 10]
    strict = Config(fleet=Fleet(max_release_percent=20), sync=Sync(max_release=5))
    assert [limits_of(strict, "etcd").allowed(active) for active in (3, 20, 5000)] == [1, 4, 5]


@pytest.mark.parametrize(("active", "allowed"), [(3, 1), (10, 2), (100, 10)])
def test_as_many_as_allowed_end_and_one_more_ends_none(
    path: Path, active: int, allowed: int
) -> None:
    filled(path, active)
    made = take(path, part(*map(released, range(allowed + 1))), limits=GUARD)
    assert made.stopped == (
        f"{allowed + 1} of {active} holds would end, where {allowed} may within 3600 s"
    )
    assert len(in_force(path)) == active
    assert len(waiting(path)) == allowed + 1
    take(path, part(*map(held, range(active))), limits=GUARD)
    take(path, part(*map(released, range(allowed))), limits=GUARD)
    assert len(in_force(path)) == active - allowed


def test_it_is_no_way_around_to_say_them_one_by_one(path: Path) -> None:
    filled(path, 100)
    for number in range(30):
        take(path, part(released(number)), limits=GUARD, now=NOW + number)
    assert len(in_force(path)) == 90
    assert len(waiting(path)) == 20


def test_what_waits_goes_on_to_wait_and_what_ended_long_ago_does_not_count(path: Path) -> None:
    filled(path, 100)
    take(path, part(*map(released, range(10))), limits=GUARD)
    take(path, part(*map(released, range(10, 20))), limits=GUARD, now=NOW + HOUR)
    assert len(in_force(path)) == 80
    take(path, part(*map(released, range(20, 40))), limits=GUARD, now=NOW + HOUR)
    made = take(path, part(released(41)), limits=GUARD, now=NOW + 9 * HOUR)
    assert made.stopped
    assert len(waiting(path)) == 21


def test_a_clock_that_was_set_back_does_not_keep_the_window_open_for_years(path: Path) -> None:
    filled(path, 100)
    take(path, part(*map(released, range(10))), limits=GUARD, now=NOW + 10**8)
    assert take(path, part(released(11)), limits=GUARD, now=NOW).stopped
    take(path, part(held(11)), limits=GUARD, now=NOW)
    assert not take(path, part(released(11)), limits=GUARD, now=NOW + HOUR).stopped


def test_exactly_what_was_shown_is_accepted(path: Path) -> None:
    filled(path, 20)
    take(path, part(*map(released, range(5))), limits=GUARD)
    shown = sources.token_of(waiting(path))
    take(path, part(*map(released, range(10))), limits=GUARD)
    with pytest.raises(NotNow, match="any more"):
        accept(path, shown)
    assert len(in_force(path)) == 20
    accept(path, sources.token_of(waiting(path)))
    assert instances(path) == [uuid(number) for number in range(10, 20)]
    assert waiting(path) == []
    with pytest.raises(NotFound, match="nothing"):
        accept(path, shown)
    assert_whole(path)
    # What was accepted does not count: two more of ten may go.
    assert not take(path, part(released(10), released(11)), limits=GUARD).stopped


def test_what_is_held_again_waits_no_more_and_what_is_not_mentioned_does(path: Path) -> None:
    filled(path, 20)
    take(path, whole(*map(released, range(20))), limits=GUARD)
    made = take(path, whole(*map(held, range(15))), limits=GUARD)
    assert made.stopped
    assert {one.instance for one in waiting(path)} == {uuid(number) for number in range(15, 20)}
    assert state(path).vanished.count == 0
    made = take(path, whole(*map(held, range(20))), limits=GUARD)
    assert not made.stopped
    assert waiting(path) == []


def test_it_is_journalled_when_it_grows_and_not_each_time(path: Path) -> None:
    filled(path, 20)
    for count in (5, 5, 5, 6):
        take(path, part(*map(released, range(count))), limits=GUARD)
    with database.open_db(path) as lock_db:
        entries = [entry for entry in log(lock_db) if entry["event"] == "release_stopped"]
    assert [entry["count"] for entry in entries] == [5, 6]
    assert entries[0]["first"] == [uuid(number) for number in range(5)]


def test_boot_locks_that_become_state_locks_or_expire_end_as_well(path: Path) -> None:
    filled(path, 6)
    weak = [held(number, kind=Kind.STATE_LOCK) for number in range(3)]
    over = [held(number, until=NOW - 1) for number in range(3, 6)]
    take(path, whole(*weak, *over), limits=GUARD)
    assert {hold.kind for hold in in_force(path)} == {Kind.BOOT_LOCK}
    assert len(in_force(path)) == 6
    take(path, whole(*weak, *over), limits=GUARD)
    accept(path, sources.token_of(waiting(path)))
    assert [hold.kind for hold in in_force(path)] == [Kind.STATE_LOCK] * 3
    made = take(path, whole(*weak, *over), limits=GUARD)
    assert (made.unchanged, made.changes_holds, made.stopped) == (6, False, "")


def test_one_boot_lock_that_becomes_a_state_lock_is_changed_and_counted(path: Path) -> None:
    filled(path, 3)
    before = {hold.id for hold in in_force(path)}
    weak = [held(number, kind=Kind.STATE_LOCK) for number in range(3)]
    made = take(path, part(weak[0]), limits=GUARD)
    assert (len(made.steps.change), made.steps.end) == (1, [])
    assert {hold.id for hold in in_force(path)} == before
    assert sorted(hold.kind for hold in in_force(path)) == ["boot_lock", "boot_lock", "state_lock"]
    assert take(path, part(weak[1]), limits=GUARD).stopped


def test_a_hold_that_is_to_block_less_is_loosened_and_one_that_blocks_more_is_not(
    path: Path,
) -> None:
    filled(path, 6)
    less = [held(number, blocks="start,stop") for number in range(3)]
    assert take(path, part(*less), limits=GUARD).stopped
    assert {hold.blocks for hold in in_force(path)} == {None}
    accept(path, sources.token_of(waiting(path)))
    assert [hold.blocks for hold in in_force(path)].count("start,stop") == 3
    more = [held(number, blocks="delete,start,stop") for number in range(3)]
    assert not take(path, part(*more), limits=GUARD).stopped
    assert [hold.blocks for hold in in_force(path)].count("start,stop,delete") == 3


def test_expired_holds_that_are_released_are_not_counted(path: Path) -> None:
    take(path, whole(*(held(number, until=NOW + 5) for number in range(20))))
    take(path, whole(*map(released, range(20))), limits=GUARD, now=NOW + 6)
    with database.open_db(path) as lock_db:
        assert {hold.released_at for hold in holds.history(lock_db)} == {NOW + 6}


def test_a_hold_that_an_admin_released_waits_no_more(path: Path) -> None:
    filled(path, 4)
    take(path, part(released(0), released(1)), limits=GUARD)
    with database.open_db(path) as lock_db:
        for ending in sources.waiting(lock_db, "file"):
            holds.release(lock_db, ending.hold_id, reason="over", by="admin", now=NOW)
    assert waiting(path) == []
    assert not take(path, part(), limits=GUARD).stopped


def test_holds_of_other_sources_do_not_make_the_share_smaller(path: Path) -> None:
    take(path, whole(*map(held, range(100))), source="nova")
    filled(path, 5)
    assert take(path, part(released(0), released(1)), limits=GUARD).stopped
