"""What lockdb raises. One tree; callers map its classes to exit codes.

LockDBError
├── InvalidValue          a value that can't be stored: names the field
├── NotFound              no such hold or permit
│   └── AlreadyEnded      it was there, and has been released or revoked
├── NotNow                what was asked for is not allowed as things are
│   └── Retained              the hold may not end before its date
├── AmbiguousPrefix       more than one hold or permit begins so
└── DatabaseError         the file can't be used: names the path
    ├── DatabaseMissing
    ├── DatabaseForbidden     this user may not
    ├── DatabaseCorrupt       not SQLite, truncated, malformed, no bootlock tables
    ├── DatabaseBusy          another process kept the write lock too long
    ├── DatabaseFull          no space, or the disk failed
    └── SchemaMismatch        made by an older or a newer bootlock
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LockDBError(Exception):
    """A failure with a next step. ``str()`` is one line; ``hint`` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InvalidValue(LockDBError):
    """A value that breaks a rule of its field."""

    def __init__(self, field: str, problem: str, hint: str = "") -> None:
        super().__init__(f"{field}: {problem}", hint)
        self.field = field


class NotFound(LockDBError):
    """No hold or permit has this id."""


class AlreadyEnded(NotFound):
    """The hold was released, or the permit revoked, before."""


class NotNow(LockDBError):
    """It is not allowed as things are: a hold is its source's, what waits is not what was seen."""


class Retained(NotNow):
    """The hold may not end, or not so early, before its retention does."""


class AmbiguousPrefix(LockDBError):
    """An abbreviated id that fits more than one row."""


class DatabaseError(LockDBError):
    """The lock database at ``path`` can't be used."""

    def __init__(self, path: Path, problem: str, hint: str = "") -> None:
        super().__init__(f"{path}: {problem}", hint)
        self.path = path


class DatabaseMissing(DatabaseError):
    """There is no such file."""


class DatabaseForbidden(DatabaseError):
    """The file is there, but this user may not do that to it."""


class DatabaseCorrupt(DatabaseError):
    """The file is not a sound bootlock database."""


class DatabaseBusy(DatabaseError):
    """Another process held the write lock for the whole time-out."""


class DatabaseFull(DatabaseError):
    """The file system refused the write: no space, quota, or an I/O error."""


class SchemaMismatch(DatabaseError):
    """The database was written by another version of bootlock."""


RESTORE = "restore a backup, or see 'bootlock doctor'"

_BY_CODE: dict[int, tuple[type[DatabaseError], str]] = {
    sqlite3.SQLITE_BUSY: (DatabaseBusy, "another process keeps it locked; find it with 'fuser'"),
    sqlite3.SQLITE_LOCKED: (DatabaseBusy, "another process keeps it locked; find it with 'fuser'"),
    sqlite3.SQLITE_FULL: (DatabaseFull, "make space on its file system and try again"),
    sqlite3.SQLITE_IOERR: (DatabaseFull, "check the space and the health of its file system"),
    sqlite3.SQLITE_READONLY: (DatabaseForbidden, "run as root"),
    sqlite3.SQLITE_PERM: (DatabaseForbidden, "run as root"),
    sqlite3.SQLITE_CANTOPEN: (DatabaseForbidden, "run as root, and see 'bootlock doctor'"),
    sqlite3.SQLITE_CORRUPT: (DatabaseCorrupt, RESTORE),
    sqlite3.SQLITE_NOTADB: (DatabaseCorrupt, RESTORE),
}


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what ``sqlite3`` raises about the file at ``path`` into a DatabaseError."""
    try:
        yield
    except sqlite3.Error as error:
        if str(error) == "the hold is retained":
            # What the code lets through by mistake, the trigger does not.
            raise Retained(str(error), "see 'bootlock show'") from error
        # The low byte is the primary result code; the rest only refines it.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_ERROR and "no such" in str(error):
            # A table or column that the schema has is gone.
            code = sqlite3.SQLITE_CORRUPT
        if code not in _BY_CODE:
            raise
        kind, hint = _BY_CODE[code]
        raise kind(path, str(error), hint) from error
