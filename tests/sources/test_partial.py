"""A reading that is not whole costs what it names, however many holds its source has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bootlockd.sources.base import Reading
from bootlockd.sources.reconcile import Limits, reconcile
from lockdb import database, sources
from lockdb.database import LockDB
from samples import NOW
from sources.said import held, in_force, part, released, state, take, unknown, uuid, whole

FEW, MANY = 200, 4000


@contextmanager
def counted(lock_db: LockDB) -> Iterator[list[int]]:
    """The steps that SQLite's machine takes: each row that it looks at is some of them."""
    steps = [0]

    def step() -> int:
        steps[0] += 1
        return 0

    lock_db.db.conn.set_progress_handler(step, 1)
    try:
        yield steps
    finally:
        lock_db.db.conn.set_progress_handler(None, 0)


def cost(path: Path, reading: Reading) -> int:
    with database.open_db(path) as lock_db:
        turn = sources.stored(lock_db, "file").turn
        with counted(lock_db) as steps:
            reconcile(lock_db, "file", reading, turn=turn, limits=Limits(), now=NOW)
    return steps[0]


@pytest.mark.parametrize(
    "reading",
    [
        part(),
        part(held(5)),
        part(held(5, reason="abuse")),
        part(held(99_999)),
        part(released(5)),
        part(unknown(5)),
    ],
    ids=["nothing", "the same", "a change", "a new one", "a release", "unknown"],
)
def test_a_change_costs_the_same_among_many_as_among_few(tmp_path: Path, reading: Reading) -> None:
    costs = []
    for count in (FEW, MANY):
        path = tmp_path / str(count) / "lock.db"
        database.create(path, now=1, host="test")
        take(path, whole(*map(held, range(count))))
        costs.append(cost(path, reading))
    assert costs[1] < costs[0] + FEW, costs
    # That it is counted at all: a whole reading looks at each.
    assert cost(path, whole(*map(held, range(MANY)))) > MANY


def test_a_hold_of_which_nothing_can_be_stored_is_a_fault_and_no_more(path: Path) -> None:
    take(path, whole(held(1)))
    take(path, part(held(2, ref="\ud800"), released(1, ref="\udfff"), held(1, reason="abuse")))
    (hold,) = in_force(path)
    assert (hold.instance, hold.reason) == (uuid(1), "abuse")
    assert state(path).faults.count == 1
