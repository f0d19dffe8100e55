"""Whether a database is whole: its pages, its journal, and what the two tell each other."""

from __future__ import annotations

import json
from pathlib import Path

from lockdb import database, holds, journal
from lockdb.database import LockDB
from lockdb.values import Hold


def log(lock_db: LockDB) -> list[dict[str, object]]:
    """The journal's entries, parsed."""
    with lock_db.read() as db:
        return [json.loads(entry) for entry in journal.entries(db)]


def verified(lock_db: LockDB) -> journal.Head | journal.Fault:
    """Where the journal's verification ends."""
    with lock_db.read() as db:
        return journal.outcome(journal.verify(db))


def assert_whole(path: Path) -> dict[str, Hold]:
    """Every act and its record are both there or both not. Returns all holds by id."""
    with database.open_db(path) as lock_db:
        database.check_integrity(lock_db)
        assert isinstance(verified(lock_db), journal.Head)
        placed = {hold.id: hold for hold in holds.history(lock_db)}
        entries = log(lock_db)
    assert {entry["id"] for entry in entries if entry["event"] == "placed"} == set(placed)
    ended = {hold.id for hold in placed.values() if hold.released_at is not None}
    assert {entry["id"] for entry in entries if entry["event"] == "released"} == ended
    return placed
