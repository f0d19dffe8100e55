"""Placing, releasing and finding holds.

A hold is never deleted: a release marks it, so the table is also the history. Releasing one hold
never touches another, whatever they share (rule R5).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from sqlite_utils import Database

from lockdb import journal, retention, witness
from lockdb.database import LockDB
from lockdb.errors import AlreadyEnded, AmbiguousPrefix, NotFound
from lockdb.values import (
    ACTOR_MAX,
    REASON_MAX,
    Hold,
    Kind,
    NewHold,
    OnRunning,
    Retention,
    one_line,
    required_line,
)
from lockdb.when import iso
from lockdb.witness import Sight


def place(
    lock_db: LockDB, new: NewHold, *, now: int, see: Callable[[], Sight] | None = None
) -> Hold:
    """Store a hold and its journal entry; durable when this returns. Raises DatabaseError."""
    row = asdict(new) | {"id": secrets.token_hex(8), "was_running": None, "placed_at": now}
    with lock_db.write() as db:
        if new.retain_until is not None:
            retention.check_date(new.retain_until, now)
            witness.begin(db, now, see)
        _table(db).insert(row)
        journal.append(db, "placed", now, **row)
        return _by_id(db, row["id"])


def release(
    lock_db: LockDB,
    hold_id: str,
    *,
    reason: str,
    by: str,
    now: int,
    override: bool = False,
    see: Callable[[], Sight] | None = None,
) -> Hold:
    """End the hold with exactly this id. ``override``: though it is retained, if that may be.

    Raises InvalidValue (reason), NotFound, AlreadyEnded, Retained or DatabaseError.
    """
    reason = required_line("reason", reason, REASON_MAX)
    by = required_line("released_by", by, ACTOR_MAX)
    with lock_db.write() as db:
        hold = _open(db, hold_id)
        proven = witness.advance(db, now, see) if hold.retention else now
        retained = retention.is_retained(hold, proven)
        if retained and not (override and hold.retention is Retention.GOVERNANCE):
            raise retention.refusal(hold.id, hold, proven, now)
        end: dict[str, Any] = {"released_at": now, "released_by": by, "release_reason": reason}
        _table(db).update(hold.id, end | {"overridden": retained})
        # What its source would have done to it, too late.
        db.execute("DELETE FROM waiting WHERE hold = ?", [hold.id])
        facts = retention.facts(hold.retain_until, hold.retention, retained)
        journal.append(
            db, "released", now, id=hold.id, instance=hold.instance, by=by, reason=reason, **facts
        )
        forget_disks_if_free(db, hold.instance)
        return _by_id(db, hold.id)


def retain(
    lock_db: LockDB,
    hold_id: str,
    *,
    until: int | None,
    mode: Retention | None,
    by: str,
    now: int,
    reason: str = "",
    see: Callable[[], Sight] | None = None,
) -> Hold:
    """Have the hold with exactly this id last until a date; or longer; or in the stronger mode.

    Raises InvalidValue, NotFound, AlreadyEnded, Retained (it would be less than it is) or
    DatabaseError.
    """
    reason = one_line("reason", reason, REASON_MAX)
    by = required_line("by", by, ACTOR_MAX)
    with lock_db.write() as db:
        hold = _open(db, hold_id)
        witness.begin(db, now, see)
        after = retention.extended(hold.id, hold, until, mode, now=now)
        before = {"retain_until": hold.retain_until, "retention": hold.retention}
        if after != before:
            _table(db).update(hold.id, after)
            journal.append(
                db,
                "retained",
                now,
                id=hold.id,
                instance=hold.instance,
                by=by,
                reason=reason,
                before=before,
                **after,
            )
        return _by_id(db, hold.id)


def set_was_running(lock_db: LockDB, hold: Hold, was_running: bool, *, now: int) -> Hold:
    """Note whether the instance ran when it was locked: it decides what a state lock allows."""
    with lock_db.write() as db:
        _table(db).update(hold.id, {"was_running": was_running})
        journal.append(db, "seen", now, id=hold.id, instance=hold.instance, was_running=was_running)
        return _by_id(db, hold.id)


def active(
    lock_db: LockDB, *, now: int, instance: str | None = None, source: str | None = None
) -> list[Hold]:
    """The holds in force at ``now``, oldest first."""
    where = "released_at IS NULL AND (until IS NULL OR until > :now)"
    return _select(lock_db, where, now=now, instance=instance, source=source)


def history(
    lock_db: LockDB, *, instance: str | None = None, source: str | None = None
) -> list[Hold]:
    """All holds there ever were, oldest first."""
    return _select(lock_db, "1", instance=instance, source=source)


def exists(lock_db: LockDB, hold_id: str) -> bool:
    """Whether there is or ever was a hold with exactly this id."""
    with lock_db.read() as db:
        return db.execute("SELECT 1 FROM hold WHERE id = ?", [hold_id]).fetchone() is not None


def find(lock_db: LockDB, prefix: str) -> Hold:
    """The one hold whose id begins with ``prefix``. Raises NotFound or AmbiguousPrefix."""
    with lock_db.read() as db:
        return _by_id(db, unique_id(db, "hold", prefix))


def unique_id(db: Database, table: str, prefix: str) -> str:
    """The one id in ``table`` that begins with ``prefix``. Raises NotFound or AmbiguousPrefix."""
    prefix = prefix.strip().lower()
    ids: list[str] = []
    if prefix and set(prefix) <= set("0123456789abcdef"):
        # A range, not LIKE: it uses the primary key.
        query = f"SELECT id FROM {table} WHERE id >= ? AND id < ? || 'g' ORDER BY id LIMIT 3"
        ids = [row[0] for row in db.execute(query, [prefix, prefix])]
    if not ids:
        raise NotFound(f"no {table} {prefix[:80]!r}", "see 'bootlock list --all'")
    if len(ids) > 1:
        some = ", ".join(ids[:2]) + (", ..." if len(ids) > 2 else "")
        raise AmbiguousPrefix(f"{table} {prefix!r} is ambiguous: {some}", "write more of the id")
    return ids[0]


def _select(lock_db: LockDB, where: str, **values: Any) -> list[Hold]:
    for column in ("instance", "source"):
        if values[column] is not None:
            where += f" AND {column} = :{column}"
    with lock_db.read() as db:
        rows = db.query(f"SELECT * FROM hold WHERE {where} ORDER BY placed_at, id", values)
        return [_hold(row) for row in rows]


def _by_id(db: Database, hold_id: str) -> Hold:
    rows: Sequence[dict[str, Any]] = list(db.query("SELECT * FROM hold WHERE id = ?", [hold_id]))
    if not rows:
        raise NotFound(f"no hold {hold_id[:80]!r}", "see 'bootlock list --all'")
    return _hold(rows[0])


def _open(db: Database, hold_id: str) -> Hold:
    """As ``_by_id``, if it was not released."""
    hold = _by_id(db, hold_id)
    if hold.released_at is not None:
        raise AlreadyEnded(
            f"hold {hold.id} was released at {iso(hold.released_at)} by {hold.released_by}",
            f"see 'bootlock show {hold.id}'",
        )
    return hold


def _hold(row: dict[str, Any]) -> Hold:
    was_running = row["was_running"]
    return Hold(
        **row
        | {
            "kind": Kind(row["kind"]),
            "on_running": OnRunning(row["on_running"]),
            "isolate": bool(row["isolate"]),
            "preserve": bool(row["preserve"]),
            "was_running": None if was_running is None else bool(was_running),
            "retention": Retention(row["retention"]) if row["retention"] else None,
            "overridden": bool(row["overridden"]),
        }
    )


def forget_disks_if_free(db: Database, instance: str) -> None:
    """Forget the disks of an instance that nothing holds any more."""
    db.execute(
        "DELETE FROM held_disk WHERE instance = :instance AND NOT EXISTS ("
        " SELECT 1 FROM hold WHERE instance = :instance AND released_at IS NULL)",
        {"instance": instance},
    )


def _table(db: Database) -> Any:
    return db.table("hold")
