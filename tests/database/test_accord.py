"""Root with an editor of SQLite ends a retained hold: the journal tells."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from lockdb import accord, database, holds, witness
from lockdb.values import Retention
from samples import HELD, NOW, place

DAY = 86400


def said(path: Path) -> list[str]:
    with database.open_db(path, read_only=True) as lock_db, lock_db.read() as db:
        return list(accord.contradictions(db))


def edit(path: Path, *statements: str) -> None:
    """As root does: the triggers first."""
    with closing(sqlite3.connect(path)) as connection, connection:
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
        for _, sql in triggers:
            connection.execute(sql)


@pytest.fixture
def hold(path: Path) -> str:
    return place(path, retain_until=NOW + DAY, retention=Retention.COMPLIANCE).id


def test_what_was_done_in_order_contradicts_nothing(
    path: Path, hold: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(path)
    weak = place(path, retain_until=NOW + DAY)
    with database.open_db(path) as lock_db:
        holds.retain(lock_db, hold, until=NOW + 2 * DAY, mode=None, by="a", now=NOW)
        holds.release(lock_db, weak.id, reason="x", by="a", now=NOW, override=True)
        monkeypatch.setattr(witness, "look", lambda: witness.Sight("b", 3 * DAY, False))
        holds.release(lock_db, hold, reason="x", by="a", now=NOW + 2 * DAY)
    assert said(path) == []


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE hold SET released_at = 1", "is released in the table, and the journal has no"),
        ("UPDATE hold SET retain_until = 5", "is another in the table"),
        ("UPDATE hold SET retention = 'governance'", "is another in the table"),
        ("UPDATE hold SET instance = 'x'", "is another in the table"),
        ("UPDATE hold SET retain_until = NULL, retention = NULL", "is another in the table"),
        ("DELETE FROM hold", "is gone from the table"),
    ],
)
def test_an_edited_row_contradicts_the_journal(
    path: Path, hold: str, statement: str, problem: str
) -> None:
    edit(path, statement)
    (line,) = said(path)
    assert line.startswith(f"hold {hold} on {HELD}, retained until 2023-11-15T22:13:20Z")
    assert problem in line


def test_a_release_after_the_witness_was_written_shows_its_time(path: Path, hold: str) -> None:
    edit(path, "UPDATE meta SET value = '9999999999 0 x settled' WHERE key = 'witness'")
    edit(path, "UPDATE hold SET retain_until = 1")
    with database.open_db(path) as lock_db:
        holds.release(lock_db, hold, reason="x", by="root", now=NOW + 9)
    assert said(path) != []


def test_a_trigger_that_is_gone_is_named(path: Path) -> None:
    for trigger in accord.TRIGGERS:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"DROP TRIGGER {trigger}")
    assert said(path) == [
        f"the trigger {name} is gone from the database" for name in accord.TRIGGERS
    ]


def test_the_triggers_are_all_that_there_are(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT name FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
        assert [name for (name,) in connection.execute(query)] == list(accord.TRIGGERS)
