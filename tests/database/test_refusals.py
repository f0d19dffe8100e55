"""The spool as Python reads it. What the hook writes there is tests/hook/test_spool.py's."""

from __future__ import annotations

import pytest

from database.soundness import log
from lockdb import refusals
from lockdb.database import LockDB
from lockdb.refusals import Refusal
from samples import HELD, NOW, OTHER


def _spool(lock_db: LockDB, *rows: Refusal) -> None:
    with lock_db.write() as db:
        for row in rows:
            db.execute("INSERT INTO refusal VALUES (?, ?, ?, ?, ?, ?, ?)", list(vars(row).values()))


def test_the_oldest_refusal_comes_first(lock_db: LockDB) -> None:
    late = Refusal(HELD, "start", "b", "web", 20, 30, 1)
    early = Refusal(OTHER, "start", "a", "db", 10, 40, 2)
    _spool(lock_db, late, early)
    assert refusals.pending(lock_db) == [early, late]


@pytest.mark.parametrize(
    ("escaped", "name"),
    [("a&amp;b", "a&b"), ("&lt;&gt;&quot;&apos;", "<>\"'"), ("&amp;lt;", "&lt;"), ("a&am", "a&am")],
)
def test_a_name_is_read_as_xml_and_no_further(lock_db: LockDB, escaped: str, name: str) -> None:
    _spool(lock_db, Refusal(HELD, "start", "h", escaped, 1, 1, 1))
    assert [refusal.name for refusal in refusals.pending(lock_db)] == [name]


def test_an_instances_refusals_are_those_in_the_journal_and_those_in_the_spool(
    lock_db: LockDB,
) -> None:
    old = Refusal(HELD, "start", "h", "web", 1, 2, 3)
    new = Refusal(HELD, "start", "h", "web", 4, 5, 6)
    _spool(lock_db, old, Refusal(OTHER, "start", "h", "db", 1, 1, 1))
    assert refusals.drain(lock_db, now=NOW) == 2
    _spool(lock_db, new)
    assert refusals.of_instance(lock_db, HELD) == [old, new]


def test_an_empty_spool_leaves_the_journal_as_it_is(lock_db: LockDB) -> None:
    before = log(lock_db)
    assert refusals.drain(lock_db, now=NOW) == 0
    assert log(lock_db) == before
