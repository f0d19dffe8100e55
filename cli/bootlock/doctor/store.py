"""Checks of the lock database."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from bootlock.doctor.finding import Finding, Patient, fault, ok
from lockdb import journal as chain
from lockdb.database import check_integrity, open_db
from lockdb.errors import DatabaseError


def database(patient: Patient) -> Iterator[Finding]:
    """It opens, is of this version, and only root may write it."""
    path = patient.database
    try:
        open_db(path, read_only=True).close()
    except DatabaseError as error:
        yield fault("database", str(error), error.hint)
        return
    wrong = [
        finding
        for place, most in ((path.parent, 0o2750), (path, 0o640))
        for finding in _permissions(place, most)
    ]
    yield from wrong or [ok("database", f"{path}: opens, only root may write it")]


def integrity(patient: Patient) -> Iterator[Finding]:
    """SQLite finds every page sound."""
    try:
        with open_db(patient.database, read_only=True) as lock_db:
            check_integrity(lock_db)
    except DatabaseError as error:
        yield fault("integrity", str(error), error.hint)
    else:
        yield ok("integrity", "every page is sound")


def journal(patient: Patient) -> Iterator[Finding]:
    """The chain is unbroken."""
    try:
        with open_db(patient.database, read_only=True) as lock_db, lock_db.read() as db:
            end = chain.outcome(chain.verify(db))
    except DatabaseError as error:
        yield fault("journal", str(error), error.hint)
        return
    if isinstance(end, chain.Fault):
        yield fault(
            "journal",
            f"broken at entry {end.seq}: {end.problem}",
            "keep this file as evidence and find out who changed it",
        )
    else:
        yield ok("journal", f"{end.seq} entries, unbroken")


def _permissions(path: Path, most: int) -> Iterator[Finding]:
    status = path.stat()
    if status.st_uid != 0:
        yield fault("database", f"{path} belongs to user {status.st_uid}", f"chown root {path}")
    mode = stat.S_IMODE(status.st_mode)
    if mode & ~most:
        yield fault(
            "database",
            f"{path} has mode {mode:04o}: others may read or change holds",
            f"chmod {most:04o} {path}",
            lambda: os.chmod(path, mode & most),
        )
