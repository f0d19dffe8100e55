"""Opening, creating and writing the lock database.

``/var/lib/bootlock/lock.db`` is read by the hook in the path of every guest's start and written by
the CLI and the daemon. The rules kept here:

- A write is one ``BEGIN IMMEDIATE`` transaction in WAL mode with ``synchronous=FULL``: when it
  returns, it survives a power cut; the hook reads at any time without waiting for it.
- The file is created whole, under another name, and renamed: nobody ever opens half a database.
- A missing or empty file is never filled on the way: that would release every hold in silence.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType

from sqlite_utils import Database

from lockdb import journal
from lockdb.durable import sync_directory
from lockdb.errors import (
    RESTORE,
    DatabaseCorrupt,
    DatabaseForbidden,
    DatabaseFull,
    DatabaseMissing,
    SchemaMismatch,
    translated,
)
from lockdb.migrations import known_steps, migrations

DEFAULT_PATH = Path("/var/lib/bootlock/lock.db")

#: Seconds to wait for another writer. Long: writers queue, and a user must see no lock error.
BUSY_TIMEOUT = 60.0

#: Seconds that a file must have been left alone to be copied.
AT_REST = 1.0


class LockDB:
    """An open lock database; use ``open_db``. Closes itself as a context manager.

    ``problem``: why this is a copy of what the file holds; empty for the file itself.
    """

    def __init__(
        self, db: Database, path: Path, *, is_frozen: bool = False, problem: str = ""
    ) -> None:
        self.db = db
        self.path = path
        #: Read without locks: true only while nobody writes. See lockdb.onlooker.
        self.is_frozen = is_frozen
        self.problem = problem

    def __enter__(self) -> LockDB:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; an open transaction is rolled back.

        Whoever closes last empties the log into the file, under a lock that makes every hook wait
        for the disk to sync. Emptied before, without that lock, nothing is left to do then.
        """
        with translated(self.path):
            try:
                # What can't be done now, by a reader or on a full disk, is done by somebody later.
                with suppress(sqlite3.Error):
                    self.db.rollback()
                    self.db.execute("PRAGMA wal_checkpoint")
            finally:
                self.db.close()

    @contextmanager
    def write(self) -> Iterator[Database]:
        """One transaction, durable when the block ends; rolled back if it raises.

        A ``write`` inside a ``write`` joins it. Raises DatabaseError.
        """
        with translated(self.path):
            if self.db.conn.in_transaction:
                yield self.db
                return
            # Not sqlite-utils' atomic(): its plain BEGIN takes the write lock at the first write,
            # when it is too late to wait for it (SQLITE_BUSY_SNAPSHOT).
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.db.execute("COMMIT")
            except BaseException:
                self.db.rollback()
                raise

    @contextmanager
    def read(self) -> Iterator[Database]:
        """One snapshot: every query in the block sees the same state. Raises DatabaseError."""
        with translated(self.path):
            if self.db.conn.in_transaction:
                yield self.db
                return
            self.db.execute("BEGIN")
            try:
                yield self.db
            finally:
                self.db.rollback()


def open_db(path: Path = DEFAULT_PATH, *, read_only: bool = False) -> LockDB:
    """Open a database that ``create`` made. Raises DatabaseError, never creates or migrates.

    A reader who may not write its directory still reads it: while no write-ahead log exists, the
    file alone is the whole database. So does one on a full disk, where SQLite can't make the
    ``-shm`` that it needs: from a copy, see ``LockDB.problem``.
    """
    _must_exist(path)
    mode = "mode=ro" if read_only else "mode=rw"
    is_frozen = read_only and not os.access(path.parent, os.W_OK) and not _wal(path).exists()
    if is_frozen:
        mode = "mode=ro&immutable=1"
    try:
        with translated(path):
            lock_db = LockDB(_connect(path, mode, read_only), path, is_frozen=is_frozen)
        return _checked(lock_db)
    except (DatabaseFull, DatabaseForbidden) as error:
        copy = _copied(path) if read_only else None
        if copy is None:
            raise
        return _checked(LockDB(copy, path, problem=str(error)))


def create(path: Path, *, now: int, host: str, gid: int | None = None) -> bool:
    """Make the database at ``path``, or bring an older one up to date. True if it was made.

    ``gid`` owns directory (02750) and file (0640). Raises DatabaseError: an existing file that is
    not a bootlock database is left as it is.
    """
    try:
        if path.exists():
            _migrate(path, now)
            return False
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        if gid is not None:
            os.chown(path.parent, -1, gid)
            # What the daemon makes there belongs to the group as well.
            path.parent.chmod(0o2750)
        for orphan in (_wal(path), path.with_name(path.name + "-shm")):
            # SQLite would replay a lost database's log into the new one.
            if orphan.exists():
                orphan.rename(orphan.with_name(f"{orphan.name}.orphan-{now}"))
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640))
        try:
            if gid is not None:
                os.chown(draft, -1, gid)
            _fill(draft, now, host)
            os.link(draft, path)
        except FileExistsError:
            # Another process made it at the same time; one of the two is enough.
            return False
        finally:
            draft.unlink(missing_ok=True)
        sync_directory(path.parent)
        sync_directory(path.parent.parent)
    except PermissionError as error:
        raise DatabaseForbidden(path, "may not be created", "run as root") from error
    return True


def check_integrity(lock_db: LockDB) -> None:
    """SQLite's own check of every page; time grows with the file. Raises DatabaseCorrupt."""
    with lock_db.read() as db:
        (result,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if result != "ok":
        raise DatabaseCorrupt(lock_db.path, str(result).replace("\n", " "), RESTORE)


def _connect(path: Path, mode: str, read_only: bool) -> Database:
    uri = f"{path.absolute().as_uri()}?{mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)
    try:
        db = Database(connection, execute_plugins=False)
        db.execute("PRAGMA temp_store=MEMORY")
        if not read_only:
            db.execute("PRAGMA synchronous=FULL")
    except BaseException:
        connection.close()
        raise
    return db


def _fill(draft: Path, now: int, host: str) -> None:
    with translated(draft), LockDB(_connect(draft, "mode=rw", False), draft) as lock_db:
        with lock_db.write() as db:
            migrations.apply(db)
            journal.append(db, "created", now, host=host)
        # Kept in the file's header: every later connection finds the database in WAL mode.
        lock_db.db.enable_wal()
    with draft.open("rb") as file:
        os.fsync(file.fileno())


def _migrate(path: Path, now: int) -> None:
    _must_exist(path)
    with (
        translated(path),
        LockDB(_connect(path, "mode=rw", False), path) as lock_db,
        lock_db.write() as db,
    ):
        pending = _pending(lock_db)
        if pending:
            migrations.apply(db)
            journal.append(db, "migrated", now, steps=pending)


def _copied(path: Path) -> Database | None:
    """What the file holds, in memory; None unless the file is the whole, and lay still meanwhile.

    SQLite reads it as if nobody could change it, which is true only if nobody did.
    """
    before = _at_rest(path)
    if before is None:
        return None
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        source = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        # Not read by ourselves: closing the file would end the locks of our other connections.
        with translated(path), closing(sqlite3.connect(source, uri=True)) as file:
            file.backup(connection)
        if _at_rest(path) == before:
            db = Database(connection, execute_plugins=False)
            db.execute("PRAGMA query_only=1")
            return db
    except BaseException:
        connection.close()
        raise
    connection.close()
    return None


def _at_rest(path: Path) -> tuple[int, ...] | None:
    """What changes whenever the file does; None if its log has something that the file lacks."""
    try:
        logged = _wal(path).stat().st_size if _wal(path).exists() else 0
        status = path.stat()
    except OSError:
        return None
    # Two writes within one tick of the kernel's clock leave the same time.
    is_new = abs(time.time_ns() - status.st_mtime_ns) < AT_REST * 1e9
    if logged or is_new:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _checked(lock_db: LockDB) -> LockDB:
    """The same, if its schema is ours. Raises DatabaseError."""
    try:
        if _pending(lock_db):
            raise SchemaMismatch(
                lock_db.path, "was made by an older bootlock", "run 'bootlock init' to upgrade it"
            )
    except BaseException:
        lock_db.close()
        raise
    return lock_db


def _pending(lock_db: LockDB) -> list[str]:
    with lock_db.read() as db:
        if "meta" not in db.table_names():
            raise DatabaseCorrupt(lock_db.path, "is not a bootlock database", RESTORE)
        newer = {step.name for step in migrations.applied(db)} - known_steps()
        if newer:
            raise SchemaMismatch(
                lock_db.path,
                f"was written by a newer bootlock ({', '.join(sorted(newer))})",
                "upgrade bootlock on this host",
            )
        return [step.name for step in migrations.pending(db)]


def _must_exist(path: Path) -> None:
    try:
        size = path.stat().st_size
    except PermissionError as error:
        raise DatabaseForbidden(path, "may not be read", "run as root") from error
    except OSError as error:
        raise DatabaseMissing(
            path, "there is no lock database", "restore a backup, or make one with 'bootlock init'"
        ) from error
    if size == 0:
        raise DatabaseCorrupt(
            path, "is empty", "restore a backup, or move it away and run 'bootlock init'"
        )
    if not os.access(path, os.R_OK):
        raise DatabaseForbidden(path, "may not be read", "run as root")


def _wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")
