"""The decision in Python: what the hook's rules say at exact moments, and its errors."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from lockdb import database, holds, permits
from lockdb.database import LockDB
from lockdb.decision import Decision, Verdict, decide, decide_sql, minimal_document
from lockdb.errors import DatabaseCorrupt
from lockdb.values import Operation
from samples import FREE, HELD, NOW, new_hold

DOCUMENT = minimal_document(HELD)


def _verdict(lock_db: LockDB, now: int, operation: str = "start") -> Verdict:
    return decide(lock_db, DOCUMENT, operation, now=now).verdict


def test_a_hold_is_over_in_the_very_second_of_its_until(lock_db: LockDB) -> None:
    holds.place(lock_db, new_hold(until=NOW + 60), now=NOW)
    assert _verdict(lock_db, NOW + 59) is Verdict.REFUSE
    assert _verdict(lock_db, NOW + 60) is Verdict.ALLOW


def test_a_hold_stands_though_the_clock_was_set_back(lock_db: LockDB) -> None:
    holds.place(lock_db, new_hold(until=NOW + 60), now=NOW)
    assert _verdict(lock_db, NOW - 3600) is Verdict.REFUSE


def test_a_permit_is_in_force_from_its_first_second_to_before_its_last(lock_db: LockDB) -> None:
    holds.place(lock_db, new_hold(), now=NOW)
    permits.grant(
        lock_db, HELD, Operation.START, until=NOW + 60, reason="rescue", by="chief", now=NOW
    )
    moments = {NOW - 1: Verdict.REFUSE, NOW: Verdict.ALLOW, NOW + 59: Verdict.ALLOW}
    for now, verdict in (moments | {NOW + 60: Verdict.REFUSE}).items():
        assert _verdict(lock_db, now) is verdict
        assert _verdict(lock_db, now, "migrate") is Verdict.REFUSE


def test_of_a_domain_only_the_uuid_need_be_known(lock_db: LockDB) -> None:
    hold = holds.place(lock_db, new_hold(), now=NOW)
    assert decide(lock_db, DOCUMENT, "start", now=NOW) == Decision(
        Verdict.REFUSE, hold.id, hold.notice
    )
    assert decide(lock_db, minimal_document(FREE), "start", now=NOW) == Decision(Verdict.ALLOW)


@pytest.mark.parametrize("document", ["", "<domain/>", "x", minimal_document("no-uuid"), b"\xff"])
def test_a_document_that_decides_nothing_is_undecided_and_says_why(
    lock_db: LockDB, document: str | bytes
) -> None:
    decision = decide(lock_db, document, "start", now=NOW)
    assert decision.verdict is Verdict.UNDECIDED
    assert "domain XML" in decision.text


@pytest.mark.parametrize("value", ["0", "1", "3", "20", "", None])
def test_another_decision_format_is_undecided(lock_db: LockDB, value: str | None) -> None:
    with lock_db.write() as db:
        db.execute("DELETE FROM meta WHERE key = 'decision'")
        if value is not None:
            db.execute("INSERT INTO meta VALUES ('decision', ?)", [value])
    decision = decide(lock_db, minimal_document(FREE), "start", now=NOW)
    assert decision.verdict is Verdict.UNDECIDED
    assert decision.text.startswith("the database is of decision format ")


def test_deciding_leaves_nothing_behind_inside_a_transaction_too(lock_db: LockDB) -> None:
    with lock_db.write() as db:
        hold = holds.place(lock_db, new_hold(), now=NOW)
        for _ in range(2):
            assert decide(lock_db, DOCUMENT, "start", now=NOW).hold == hold.id
        assert db.execute("SELECT count(*) FROM temp.sqlite_master").fetchone() == (0,)
    assert decide(lock_db, DOCUMENT, "start", now=NOW).hold == hold.id


def test_a_reader_decides(path: Path, lock_db: LockDB) -> None:
    hold = holds.place(lock_db, new_hold(), now=NOW)
    with database.open_db(path, read_only=True) as reader:
        assert decide(reader, DOCUMENT, "start", now=NOW).hold == hold.id


def test_a_database_that_broke_meanwhile_is_an_error(lock_db: LockDB) -> None:
    with lock_db.write() as db:
        db.execute("DROP TABLE permit")
    with pytest.raises(DatabaseCorrupt, match="no such table"):
        decide(lock_db, DOCUMENT, "start", now=NOW)


@pytest.mark.parametrize("document", [minimal_document(HELD), minimal_document(FREE)])
def test_a_part_of_the_decisions_text_decides_nothing(lock_db: LockDB, document: str) -> None:
    """However decide.sql is cut, there is no verdict."""
    holds.place(lock_db, new_hold(), now=NOW)
    text = decide_sql().rstrip().removesuffix(";")
    with lock_db.write() as db:
        db.execute("CREATE TEMP TABLE request (operation TEXT, now INTEGER)")
        db.execute("CREATE TEMP TABLE document (xml TEXT)")
        db.execute("INSERT INTO temp.request VALUES ('start', ?)", [NOW])
        db.execute("INSERT INTO temp.document VALUES (?)", [document])
        assert _answers(db, text) != []
        assert [length for length in range(len(text)) if _answers(db, text[:length])] == []


def _answers(db: Any, statement: str) -> list[Any]:
    try:
        return list(db.execute(statement))
    except sqlite3.OperationalError:
        return []
