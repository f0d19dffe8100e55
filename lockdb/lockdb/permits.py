"""Permits: time-boxed, recorded exceptions to whatever holds an instance."""

from __future__ import annotations

import secrets
from typing import Any

from sqlite_utils import Database

from lockdb import journal
from lockdb.database import LockDB
from lockdb.errors import AlreadyEnded, NotNow
from lockdb.holds import unique_id
from lockdb.values import (
    ACTOR_MAX,
    REASON_MAX,
    Operation,
    Permit,
    parse_instance,
    required_line,
)
from lockdb.when import iso

#: What writes to an instance's disks.
_WRITING = {
    Operation.START,
    Operation.RESTORE,
    Operation.MIGRATE,
    Operation.REVERT,
    Operation.BLOCK_WRITE,
    Operation.VOLUME_DELETE,
    Operation.VOLUME_WRITE,
    Operation.VOLUME_FORMAT,
    Operation.VOLUME_RESIZE,
}


def grant(
    lock_db: LockDB,
    instance: str,
    operation: Operation,
    *,
    until: int,
    reason: str,
    by: str,
    now: int,
) -> Permit:
    """Let ``operation`` of ``instance`` through until ``until`` (Unix seconds).

    Raises InvalidValue, NotNow or DatabaseError.
    """
    permit = new(instance, operation, until=until, reason=reason, by=by, now=now)
    with lock_db.write() as db, journal.Chain(db, now) as chain:
        if operation in _WRITING:
            _must_not_be_preserved(db, permit.instance, now)
        write(db, chain, permit)
    return permit


def _must_not_be_preserved(db: Database, instance: str, now: int) -> None:
    """Raises NotNow: what was permitted would be refused by the disks."""
    found = db.execute(
        "SELECT id FROM hold WHERE instance = ? AND released_at IS NULL AND preserve"
        " AND (until IS NULL OR until > ?) LIMIT 1",
        [instance, now],
    ).fetchone()
    if found:
        raise NotNow(
            f"the disks of {instance} are preserved by hold {found[0]}: nothing may write to them",
            "copy them instead; or place a hold without --preserve, and release that one",
        )


def new(
    instance: str, operation: Operation, *, until: int, reason: str, by: str, now: int
) -> Permit:
    """A permit that is written nowhere yet. Raises InvalidValue."""
    return Permit(
        id=secrets.token_hex(8),
        instance=parse_instance(instance),
        operation=operation,
        reason=required_line("reason", reason, REASON_MAX),
        granted_at=now,
        granted_by=required_line("granted_by", by, ACTOR_MAX),
        until=until,
        revoked_at=None,
        revoked_by=None,
    )


def write(db: Database, chain: journal.Chain, permit: Permit, **more: str) -> None:
    """Store a new permit, in the caller's transaction. ``more``: for its entry alone."""
    row = permit.as_dict()
    db.table("permit").insert(row)
    granted = {name: value for name, value in row.items() if not name.startswith("revoked")}
    chain.append("permitted", **granted, **more)


def revoke(lock_db: LockDB, prefix: str, *, reason: str, by: str, now: int) -> Permit:
    """End a permit before its time. Raises NotFound, AlreadyEnded, AmbiguousPrefix."""
    reason = required_line("reason", reason, REASON_MAX)
    with lock_db.write() as db:
        permit = _by_id(db, unique_id(db, "permit", prefix))
        if permit.revoked_at is not None or permit.until <= now:
            ended = permit.until if permit.revoked_at is None else permit.revoked_at
            raise AlreadyEnded(f"permit {permit.id} ended at {iso(ended)}")
        db.table("permit").update(permit.id, {"revoked_at": now, "revoked_by": by})
        journal.append(
            db, "permit_revoked", now, id=permit.id, instance=permit.instance, by=by, reason=reason
        )
        return _by_id(db, permit.id)


def active(lock_db: LockDB, *, now: int, instance: str | None = None) -> list[Permit]:
    """The permits in force at ``now``, oldest first."""
    where = "revoked_at IS NULL AND granted_at <= :now AND until > :now"
    if instance is not None:
        where += " AND instance = :instance"
    with lock_db.read() as db:
        rows = db.query(
            f"SELECT * FROM permit WHERE {where} ORDER BY granted_at, id",
            {"now": now, "instance": instance},
        )
        return [_permit(row) for row in rows]


def history(lock_db: LockDB, *, instance: str) -> list[Permit]:
    """All permits there ever were for an instance, oldest first."""
    with lock_db.read() as db:
        query = "SELECT * FROM permit WHERE instance = ? ORDER BY granted_at, id"
        return [_permit(row) for row in db.query(query, [instance])]


def stored(lock_db: LockDB, permit_id: str) -> Permit | None:
    """The permit with exactly this id, also one that has ended."""
    with lock_db.read() as db:
        found = list(db.query("SELECT * FROM permit WHERE id = ?", [permit_id]))
    return _permit(found[0]) if found else None


def _by_id(db: Database, permit_id: object) -> Permit:
    (row,) = db.query("SELECT * FROM permit WHERE id = ?", [permit_id])
    return _permit(row)


def _permit(row: dict[str, Any]) -> Permit:
    return Permit(**row | {"operation": Operation(row["operation"])})
