"""What is kept of a preserved instance's disks on this host, and what it takes to undo it exactly.

One row for each file, directory or device, written **before** anything is done to it: after a power
cut whoever reads the row knows what may have been done, and does it again or undoes it.
``had_flag`` is what was there before us, which stays when all of ours is undone.

The rows stay when they have ended: they hold the digests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from sqlite_utils import Database

from lockdb import journal
from lockdb.database import LockDB


class Role(StrEnum):
    """What it is to its instance."""

    DISK = "disk"
    #: What a disk is an overlay of, and other guests' disks may be as well.
    BACKING = "backing"
    #: The directory of this instance alone.
    DIRECTORY = "directory"
    DEVICE = "device"


class Stage(StrEnum):
    """How far it has come."""

    INTENDED = "intended"
    KEPT = "kept"
    #: Undone but for the link, since the instance was deleted meanwhile.
    LEFT = "left"
    ENDED = "ended"


@dataclass(frozen=True)
class Preserved:
    """One row of ``preserved``."""

    instance: str
    path: str
    role: Role
    #: Of the file that was found at ``path``; 0 for devices, which have new ones after a reboot.
    inode: int
    #: Its second name; empty for what has none.
    link: str
    #: Whether it was immutable, or read-only, before.
    had_flag: bool
    stage: Stage = Stage.INTENDED
    #: Nothing of it is to be left, whatever became of the instance.
    discard: bool = False
    since: int = 0
    size: int | None = None
    #: When it was last written to, as its file system has it; in nanoseconds.
    written_ns: int | None = None
    #: Bytes that went into the digest so far, and the state of it after them.
    hashed: int = 0
    hash_state: bytes | None = None
    sha256: str | None = None
    digested_at: int | None = None

    @property
    def has_content(self) -> bool:
        """There is something to take a digest of."""
        return self.role is not Role.DIRECTORY

    @property
    def stands(self) -> bool:
        """It is kept, or may be."""
        return self.stage in {Stage.INTENDED, Stage.KEPT}

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; what only the daemon needs is left out."""
        fields = asdict(self)
        for private in ("instance", "inode", "hash_state", "discard", "written_ns"):
            del fields[private]
        return fields


@dataclass(frozen=True)
class Digest:
    """What was in a disk while it was preserved."""

    path: str
    role: Role
    size: int
    sha256: str
    digested_at: int


def of_instance(lock_db: LockDB, instance: str) -> list[Preserved]:
    """All rows of an instance, those that have ended included."""
    return _select(lock_db, "instance = ?", [instance])


def standing(lock_db: LockDB) -> list[Preserved]:
    """The rows of all instances that are kept, or may be."""
    return _select(lock_db, "stage IN ('intended', 'kept')", [])


def are_linked_in(lock_db: LockDB, directory: str, *, but: str = "") -> bool:
    """Whether the second name of something that is kept is in it; other than this instance's."""
    return any(
        row.instance != but and row.link.rpartition("/")[0] == directory
        for row in standing(lock_db)
    )


def left(lock_db: LockDB) -> list[Preserved]:
    """The rows of which a link was left."""
    return _select(lock_db, "stage = 'left'", [])


def digests(lock_db: LockDB, instance: str) -> list[Digest]:
    """The digests that were taken of an instance's disks, by path; also after its release."""
    return [
        Digest(row.path, row.role, row.size or 0, row.sha256, row.digested_at or 0)
        for row in of_instance(lock_db, instance)
        if row.sha256 is not None
    ]


def intend(lock_db: LockDB, rows: Iterable[Preserved], *, now: int) -> None:
    """Note what is about to be done. Durable when this returns."""
    with lock_db.write() as db:
        for row in rows:
            new = replace(row, stage=Stage.INTENDED, since=now)
            db.table("preserved").upsert(asdict(new), pk=("instance", "path"))
            journal.append(
                db,
                "preserving",
                now,
                instance=row.instance,
                path=row.path,
                role=row.role,
                second_name=row.link,
                had_flag=row.had_flag,
            )


def confirm(lock_db: LockDB, rows: Sequence[Preserved], *, now: int) -> None:
    """It was done, and looked at."""
    with lock_db.write() as db:
        for row in rows:
            _update(db, row, {"stage": Stage.KEPT, "since": now})
        if rows:
            _journal(db, "preserved", rows, now)


def restored(lock_db: LockDB, row: Preserved, *, now: int, found: list[str]) -> None:
    """It was not as it had been made, and is again. ``found``: what was wrong, in words."""
    with lock_db.write() as db:
        _journal(db, "preserved_again", [row], now, found=found)


def end(lock_db: LockDB, rows: Sequence[Preserved], *, now: int) -> None:
    """Everything was undone, but for the links of those whose stage is LEFT."""
    with lock_db.write() as db:
        for row in rows:
            stage = Stage.LEFT if row.stage is Stage.LEFT else Stage.ENDED
            _update(db, row, {"stage": stage, "since": now, "hash_state": None})
        ended = [row for row in rows if row.stage is not Stage.LEFT]
        if ended:
            _journal(db, "preserve_undone", ended, now)
        leaving = [row for row in rows if row.stage is Stage.LEFT]
        if leaving:
            links = [row.link for row in leaving]
            _journal(db, "preserve_left", leaving, now, second_names=links)


def discard(db: Database, instance: str) -> None:
    """In the caller's transaction: nothing of this instance's is to be left after its release."""
    db.execute("UPDATE preserved SET discard = 1 WHERE instance = ?", [instance])


def progress(lock_db: LockDB, row: Preserved, hashed: int, state: bytes | None) -> None:
    """Note how far its digest is."""
    with lock_db.write() as db:
        _update(db, row, {"hashed": hashed, "hash_state": state})


def digested(lock_db: LockDB, row: Preserved, digest: Digest, written_ns: int | None) -> None:
    """Its digest was taken, and nobody has written to it meanwhile."""
    with lock_db.write() as db:
        fields = {
            "size": digest.size,
            "written_ns": written_ns,
            "hashed": digest.size,
            "hash_state": None,
            "sha256": digest.sha256,
            "digested_at": digest.digested_at,
        }
        _update(db, row, fields)
        journal.append(
            db,
            "digest",
            digest.digested_at,
            instance=row.instance,
            path=row.path,
            role=row.role,
            size=digest.size,
            sha256=digest.sha256,
        )


def _journal(
    db: Database, event: str, rows: Sequence[Preserved], now: int, **more: list[str]
) -> None:
    paths = [row.path for row in rows]
    journal.append(db, event, now, instance=rows[0].instance, paths=paths, **more)


def _update(db: Database, row: Preserved, fields: dict[str, Any]) -> None:
    db.table("preserved").update((row.instance, row.path), fields)


def _select(lock_db: LockDB, where: str, values: list[str]) -> list[Preserved]:
    with lock_db.read() as db:
        rows = db.query(f"SELECT * FROM preserved WHERE {where} ORDER BY instance, path", values)
        return [_row(row) for row in rows]


def _row(row: dict[str, Any]) -> Preserved:
    return Preserved(
        **row
        | {
            "role": Role(row["role"]),
            "stage": Stage(row["stage"]),
            "had_flag": bool(row["had_flag"]),
            "discard": bool(row["discard"]),
        }
    )
