"""What a reading makes of a source's holds: placed, changed, ended by evidence only, or kept."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bootlockd.sources.reconcile import Overtaken, known, preview, reconcile
from database.soundness import assert_whole, log
from lockdb import database, disks, holds, sources
from lockdb.database import LockDB
from lockdb.values import DEFAULT_NOTICE, Kind, OnRunning
from samples import HELD, NOW, new_hold, place
from sources.said import (
    UNGUARDED,
    held,
    in_force,
    instances,
    part,
    released,
    state,
    take,
    unknown,
    uuid,
    whole,
)

A_HOLD_ID = "0123456789abcdef"


def events(path: Path) -> list[dict[str, Any]]:
    """What was journalled after the database was made."""
    with database.open_db(path) as lock_db:
        return log(lock_db)[1:]


def words(path: Path) -> list[object]:
    return [entry["event"] for entry in events(path)]


def test_what_is_held_is_placed_with_all_that_was_said(path: Path) -> None:
    fields: dict[str, Any] = {
        "kind": Kind.STATE_LOCK,
        "reason": "asked for by its owner",
        "notice": "ask its owner",
        "case": "T-1",
        "on_running": OnRunning.SHUTDOWN,
        "grace": 7,
        "isolate": True,
        "until": NOW + 60,
        "placed_by": "alice",
    }
    take(path, whole(held(1, **fields)))
    (hold,) = in_force(path)
    assert {name: getattr(hold, name) for name in fields} == fields
    assert (hold.instance, hold.source, hold.ref, hold.placed_at) == (uuid(1), "file", "r1", NOW)
    (entry,) = events(path)
    assert entry.items() >= (fields | {"event": "placed", "source": "file", "ref": "r1"}).items()


def test_what_a_source_leaves_out_has_a_default(path: Path) -> None:
    take(path, whole(held(1)))
    (hold,) = in_force(path)
    assert (hold.placed_by, hold.notice) == ("source file", DEFAULT_NOTICE[Kind.BOOT_LOCK])


@pytest.mark.parametrize(
    "said", [held(1), held(1, notice=" a ", reason=" b"), held(1, instance=uuid(1).upper())]
)
def test_the_same_again_changes_nothing_but_when_it_was_read(path: Path, said: Any) -> None:
    take(path, whole(said))
    before, entries = in_force(path), events(path)
    again = take(path, whole(said), now=NOW + 9)
    assert (again.unchanged, again.changes_holds) == (1, False)
    assert (in_force(path), events(path)) == (before, entries)
    assert (state(path).read_at, state(path).whole_at) == (NOW + 9, NOW + 9)


def test_a_hold_ends_by_evidence_and_its_disks_are_forgotten(path: Path) -> None:
    take(path, whole(held(1)))
    with database.open_db(path) as lock_db:
        disks.record(lock_db, uuid(1), ["path:/a"], now=NOW)
    take(path, part(released(1, evidence="invoice\n4711 paid")), now=NOW + 5)
    with database.open_db(path) as lock_db:
        (hold,) = holds.history(lock_db)
        assert disks.of_instance(lock_db, uuid(1)) == []
    assert hold.released_at == NOW + 5
    assert (hold.released_by, hold.release_reason) == ("source file", "invoice 4711 paid")
    assert_whole(path)


def test_what_is_missing_from_a_whole_reading_stays_and_marks_the_source_once(path: Path) -> None:
    take(path, whole(*map(held, range(8))))
    for _ in range(3):
        take(path, whole(held(0)))
    assert len(in_force(path)) == 8
    assert state(path).vanished.count == 7
    assert state(path).vanished.first == ("r1", "r2", "r3", "r4", "r5")
    assert words(path) == ["placed"] * 8 + ["source_vanished"]
    take(path, whole(held(0), held(1)))
    assert state(path).vanished.count == 6
    take(path, whole(*map(held, range(8))))
    assert state(path).vanished.count == 0
    assert words(path)[8:] == ["source_vanished"] * 3


def test_what_is_missing_from_a_part_is_not_even_marked(path: Path) -> None:
    take(path, whole(held(1), held(2)))
    take(path, part(held(3)))
    take(path, part())
    assert instances(path) == [uuid(1), uuid(2), uuid(3)]
    assert state(path).vanished.count == 0


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (unknown(1), "r1: garbled"),
        (released(1, evidence=" \n"), "r1: it is said to be released, and no more"),
        (released(1, hold_id=A_HOLD_ID), f"r1: it is hold {A_HOLD_ID} now, and HOLD did not end"),
        (held(1, reason=""), "r1: reason: must not be empty"),
        (held(1, reason="a\nb"), "r1: reason: unprintable character U+000A at position 1"),
        (held(1, until=10**12), "r1: until: 1000000000000 is no time before the year 10000"),
        (held(1, instance="it"), "r1: instance: 'it' is not a UUID"),
    ],
)
def test_what_can_not_be_told_keeps_the_hold_and_marks_the_source(
    path: Path, said: Any, problem: str
) -> None:
    take(path, whole(held(1)))
    (before,) = in_force(path)
    for _ in range(2):
        take(path, whole(said))
    assert in_force(path) == [before]
    assert state(path).faults.first == (problem.replace("HOLD", before.id),)
    assert words(path) == ["placed", "source_faults"]
    take(path, whole(held(1)))
    assert state(path).faults.count == 0


def test_faults_of_a_part_are_added_and_only_a_whole_reading_clears_them(path: Path) -> None:
    take(path, whole(unknown(1), faults=("no cell 2",)))
    take(path, part(unknown(2)))
    take(path, part(unknown(2)))
    take(path, part(held(3)))
    assert state(path).faults.count == 3
    assert state(path).faults.first == ("no cell 2", "r1: garbled", "r2: garbled")


def test_another_order_changes_the_hold_and_is_journalled_with_both(path: Path) -> None:
    take(path, whole(held(1)))
    (before,) = in_force(path)
    take(path, whole(held(1, on_running=OnRunning.DESTROY, isolate=True)), now=NOW + 1)
    (after,) = in_force(path)
    assert (after.id, after.placed_at) == (before.id, before.placed_at)
    assert (after.on_running, after.isolate) == (OnRunning.DESTROY, True)
    entry = events(path)[-1]
    assert (entry["event"], entry["instance"], entry["source"]) == ("changed", uuid(1), "file")
    assert entry["before"] == {"on_running": "leave", "isolate": 0}
    assert entry["after"] == {"on_running": "destroy", "isolate": True}


def test_a_name_that_means_another_instance_now_holds_both(path: Path) -> None:
    take(path, whole(held(1, "r")))
    (first,) = in_force(path)
    take(path, whole(held(2, "r")))
    assert instances(path) == [uuid(1), uuid(2)]
    orphan = f"r@{first.id}"
    take(path, whole(held(2, "r")))
    assert state(path).vanished.first == (orphan,)
    take(path, whole(held(2, "r"), released(1, orphan)))
    assert instances(path) == [uuid(2)]


def test_a_hold_is_not_moved_by_its_id(path: Path) -> None:
    take(path, whole(held(1, "r", A_HOLD_ID)))
    take(path, whole(held(2, "r", A_HOLD_ID)))
    assert instances(path) == [uuid(1)]
    assert state(path).faults.first == (f"r: hold {A_HOLD_ID} is on {uuid(1)}, not on {uuid(2)}",)


def test_what_was_released_and_is_held_again_is_a_new_hold(path: Path) -> None:
    take(path, whole(held(1)))
    (first,) = in_force(path)
    take(path, whole(released(1)))
    take(path, whole(held(1)))
    (second,) = in_force(path)
    assert second.id != first.id


def test_a_hold_with_an_id_of_its_own_is_never_revived(path: Path) -> None:
    take(path, whole(held(1, "", A_HOLD_ID)))
    assert [hold.id for hold in in_force(path)] == [A_HOLD_ID]
    take(path, whole(released(1, "", A_HOLD_ID)))
    take(path, whole(held(1, "", A_HOLD_ID)))
    assert in_force(path) == []
    assert state(path).faults.count == 1


def test_an_id_that_another_has_or_that_is_none_is_not_used(path: Path) -> None:
    local = place(path)
    take(path, whole(held(1, "", local.id), held(2, "", "../../etc"), held(3, "", "A" * 16)))
    assert in_force(path) == []
    assert instances(path, None) == [HELD]
    assert state(path).faults.count == 3


def test_an_expired_hold_has_not_vanished_and_is_not_placed_again(path: Path) -> None:
    take(path, whole(held(1, until=NOW + 5)))
    later = NOW + 6
    take(path, whole(), now=later)
    assert state(path).vanished.count == 0
    take(path, whole(held(1, until=NOW + 5), held(2, until=NOW)), now=later)
    assert in_force(path, now=later) == []
    assert words(path) == ["placed"]
    take(path, whole(held(1, until=NOW + 50)), now=later)
    assert instances(path, now=later) == [uuid(1)]


def test_one_name_said_in_two_ways_is_held(path: Path) -> None:
    both = (held(1), released(1))
    for said in (both, both[::-1]):
        take(path, whole(*said))
        assert instances(path) == [uuid(1)]
        assert state(path).faults.first == ("r1: it is said in 2 ways",)
    take(path, whole(held(1), held(1)))
    assert state(path).faults.count == 0
    take(path, whole(released(1), unknown(1)))
    assert instances(path) == [uuid(1)]


@pytest.mark.parametrize("ref", ["", "a\nb", "\udcff", "x" * 501])
def test_a_name_that_can_not_be_stored_is_a_fault_and_no_other_suffers(
    path: Path, ref: str
) -> None:
    take(path, whole(replace(held(1), ref=ref), held(2)))
    assert instances(path) == [uuid(2)]
    assert state(path).faults.count == 1


def test_a_source_touches_no_hold_of_another(path: Path) -> None:
    local = place(path, uuid(1))
    take(path, whole(held(1)), source="nova")
    take(path, whole(held(1)), source="file")
    take(path, whole(released(1)), source="file")
    assert instances(path, "file") == []
    assert [hold.id for hold in in_force(path, "local")] == [local.id]
    assert instances(path, "nova") == [uuid(1)]


SOURCES = ("file", "nova", "etcd")


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(("one", "other"), [*itertools.permutations((*SOURCES, "local"), 2)])
def test_neither_the_provider_nor_the_customer_ends_or_changes_the_others_lock(
    path: Path, one: str, other: str, kind: Kind
) -> None:
    """By the same name and the same id; each has the instance locked, in one way or the other."""
    theirs = Kind.STATE_LOCK if kind is Kind.BOOT_LOCK else Kind.BOOT_LOCK
    for source, its_kind in ((one, kind), (other, theirs)):
        if source == "local":
            place(path, uuid(1), kind=its_kind)
        else:
            take(path, whole(held(1, kind=its_kind)), source=source)
    before = in_force(path, other)
    (target,) = before
    if one == "local":
        with database.open_db(path) as lock_db:
            (own,) = in_force(path, one)
            holds.release(lock_db, own.id, reason="done", by="a", now=NOW)
    else:
        for hold_id in ("", target.id):
            take(path, whole(held(1, kind=kind, hold_id=hold_id, reason="y")), source=one)
            take(path, whole(released(1, hold_id=hold_id)), source=one)
            take(path, whole(released(1, ref="r2", hold_id=target.id)), source=one)
            take(path, whole(), source=one)
        take(path, whole(released(1)), source=one)
    assert in_force(path, other) == before
    assert in_force(path, one) == []


def test_a_reading_that_another_process_overtook_is_not_taken_in(path: Path) -> None:
    before = known(path, "file")
    take(path, whole(held(1)))
    with database.open_db(path) as lock_db, pytest.raises(Overtaken):
        reconcile(lock_db, "file", whole(), turn=before.turn, limits=UNGUARDED, now=NOW)
    assert instances(path) == [uuid(1)]


def test_what_is_written_while_it_compares_is_not_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(path, whole(held(1)))
    (hold,) = in_force(path)
    seen: list[list[sources.Row]] = []

    def rows(*arguments: Any) -> Any:
        found = list(genuine(*arguments))
        if not seen:
            # An admin releases it between the look and the write.
            with database.open_db(path) as other:
                holds.release(other, hold.id, reason="mine", by="admin", now=NOW)
        seen.append(found)
        return iter(found)

    genuine = sources.rows
    monkeypatch.setattr(sources, "rows", rows)
    made = take(path, whole(released(1)))
    assert [len(found) for found in seen] == [1, 0]
    assert not made.changes_holds
    assert_whole(path)


def test_a_preview_writes_nothing(path: Path) -> None:
    take(path, whole(held(1)))
    before = path.read_bytes(), events(path), state(path)
    with database.open_db(path, read_only=True) as lock_db:
        made = preview(lock_db, "file", whole(released(1)), limits=UNGUARDED, now=NOW)
    assert len(made.steps.end) == 1
    assert (path.read_bytes(), events(path), state(path)) == before


def test_what_is_known_is_what_the_database_says_when_it_is_asked(path: Path) -> None:
    seen = known(path, "file")
    assert list(seen.held) == []
    take(path, whole(held(1, isolate=True), revision="7"))
    assert list(seen.held) == ["r1"]
    assert seen.held["r1"].instance == uuid(1)
    assert seen.held["r1"].isolate is True
    assert "r2" not in seen.held
    assert (known(path, "file").revision, known(path, "file").turn) == ("7", 1)


def test_a_source_that_can_not_be_read_keeps_all_and_says_so_once(lock_db: LockDB) -> None:
    take(lock_db.path, whole(held(1), revision="r"))
    for number in range(3):
        sources.failed(lock_db, "file", f"no answer ({number})", now=NOW + number)
    found = state(lock_db.path)
    assert (found.error, found.error_since) == ("no answer (2)", NOW)
    assert (found.revision, found.read_at, found.tried_at) == ("r", NOW, NOW + 2)
    assert instances(lock_db.path) == [uuid(1)]
    take(lock_db.path, whole(held(1)), now=NOW + 9)
    assert (state(lock_db.path).error, state(lock_db.path).error_since) == ("", None)
    assert words(lock_db.path) == ["placed", "source_failed", "source_recovered"]


def test_holds_that_were_placed_here_have_no_name_of_a_source(lock_db: LockDB) -> None:
    assert [holds.place(lock_db, new_hold(), now=NOW).ref for _ in range(2)] == [None, None]


def test_one_id_is_given_to_one_hold(path: Path) -> None:
    said = held(1, "b", A_HOLD_ID), held(2, "a", A_HOLD_ID)
    take(path, whole(*said))
    assert instances(path) == [uuid(2)]
    assert state(path).faults.first == (
        f"b: hold {A_HOLD_ID} has ended here, or is another's: it is not placed",
    )
