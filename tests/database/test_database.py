"""Creating and opening: a database is whole, or it is an error with a name and a next step."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import pytest

from database.soundness import assert_whole, log
from hook.wrappers import NOBODY, full_disk, read_only
from lockdb import database, holds
from lockdb.database import LockDB
from lockdb.decision import decide, minimal_document
from lockdb.errors import (
    DatabaseBusy,
    DatabaseCorrupt,
    DatabaseError,
    DatabaseForbidden,
    DatabaseMissing,
    LockDBError,
)
from samples import HELD, NOW, new_hold, place

GROUP = 54321


def _files(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_a_new_database_is_for_root_and_one_group(tmp_path: Path) -> None:
    path = tmp_path / "a" / "state" / "lock.db"
    assert database.create(path, now=NOW, host="node1", gid=GROUP) is True
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    # With the group for all that is made there later, by whoever may do no chown.
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o2750
    assert path.stat().st_gid == path.parent.stat().st_gid == GROUP
    assert list(_files(path.parent)) == ["lock.db"]


def test_a_writer_leaves_nothing_that_others_may_read(path: Path) -> None:
    with database.open_db(path) as lock_db:
        holds.place(lock_db, new_hold(), now=NOW)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {"lock.db": 0o640, "lock.db-wal": 0o640, "lock.db-shm": 0o640}


def test_its_first_entry_says_when_and_where_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "lock.db"
    database.create(path, now=NOW, host="node1")
    with database.open_db(path) as lock_db:
        (entry,) = log(lock_db)
    assert entry.items() >= {"event": "created", "at": NOW, "host": "node1", "seq": 1}.items()


def test_every_connection_writes_ahead_and_syncs_each_commit(path: Path, lock_db: LockDB) -> None:
    assert lock_db.db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert lock_db.db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    with closing(sqlite3.connect(path)) as another:
        assert another.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_creating_it_again_changes_nothing(path: Path) -> None:
    place(path)
    before = _files(path.parent)
    assert database.create(path, now=NOW, host="other", gid=GROUP) is False
    assert _files(path.parent) == before


def test_of_two_who_create_it_at_once_one_does(tmp_path: Path) -> None:
    path = tmp_path / "lock.db"
    with ProcessPoolExecutor(4, get_context("fork")) as pool:
        made = list(pool.map(_create, [path] * 20))
    assert sum(made) == 1
    assert_whole(path)
    assert list(_files(tmp_path)) == ["lock.db"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"x", "is not a"),
        (b"not a database at all\n" * 400, "not a database"),
        (b"SQLite format 3\0" + b"\xff" * 5000, "not a database"),
    ],
)
def test_what_is_no_database_is_refused_and_left_as_it_is(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    path = tmp_path / "lock.db"
    path.write_bytes(content)
    for attempt in (_create, database.open_db):
        with pytest.raises(DatabaseCorrupt, match=problem) as failed:
            attempt(path)
        assert str(failed.value).startswith(f"{path}: ")
        assert failed.value.hint
    assert _files(tmp_path) == {"lock.db": content}


def _create(path: Path) -> bool:
    return database.create(path, now=NOW, host="test")


def test_somebody_elses_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "lock.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE hold (id)")
    before = _files(tmp_path)
    for attempt in (_create, database.open_db):
        with pytest.raises(DatabaseCorrupt, match="is not a bootlock database"):
            attempt(path)
    assert _files(tmp_path) == before


def test_a_lost_databases_log_is_not_played_into_the_new_one(path: Path) -> None:
    with database.open_db(path) as lock_db:
        holds.place(lock_db, new_hold(), now=NOW)
        log_file = path.with_name("lock.db-wal").read_bytes()
    path.unlink()
    for name in ("lock.db-wal", "lock.db-shm"):
        path.with_name(name).write_bytes(log_file)
    assert database.create(path, now=NOW, host="test") is True
    assert assert_whole(path) == {}
    assert path.with_name(f"lock.db-wal.orphan-{NOW}").read_bytes() == log_file
    assert path.with_name(f"lock.db-shm.orphan-{NOW}").exists()


def test_a_missing_database_is_never_made_on_the_way(tmp_path: Path) -> None:
    for path in (tmp_path / "lock.db", tmp_path / "no" / "lock.db"):
        for read_only_ in (False, True):
            with pytest.raises(DatabaseMissing, match="there is no lock database") as failed:
                database.open_db(path, read_only=read_only_)
            assert "bootlock init" in failed.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [99, 4096, 0.5, -4096, -4097])
def test_a_truncated_database_is_an_error_before_it_is_an_answer(path: Path, keep: float) -> None:
    place(path)
    size = path.stat().st_size
    os.truncate(path, int(size * keep if isinstance(keep, float) else keep % size))
    with pytest.raises(DatabaseCorrupt), database.open_db(path) as lock_db:
        decide(lock_db, minimal_document(HELD), "start", now=NOW)


@pytest.mark.parametrize("table", ["hold", "held_disk", "permit", "meta"])
def test_a_missing_table_is_an_error_before_it_is_an_answer(path: Path, table: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"DROP TABLE {table}")
    with pytest.raises(DatabaseCorrupt), database.open_db(path) as lock_db:
        decide(lock_db, minimal_document(HELD), "start", now=NOW)


def test_damage_inside_is_found_by_the_integrity_check(path: Path) -> None:
    with database.open_db(path) as lock_db:
        for _ in range(200):
            holds.place(lock_db, new_hold(), now=NOW)
        database.check_integrity(lock_db)
    content = bytearray(path.read_bytes())
    content[-4096:] = bytes(4096)
    path.write_bytes(content)
    with database.open_db(path) as lock_db, pytest.raises(DatabaseCorrupt) as failed:
        database.check_integrity(lock_db)
    assert "\n" not in str(failed.value)


def test_a_reader_sees_one_state_and_waits_for_no_writer(path: Path) -> None:
    with database.open_db(path) as writer, database.open_db(path, read_only=True) as reader:
        with reader.read():
            before = holds.history(reader)
            holds.place(writer, new_hold(), now=NOW)
            assert holds.history(reader) == before == []
        with writer.write():
            holds.place(writer, new_hold(), now=NOW)
            assert len(holds.history(reader)) == 1
        assert len(holds.history(reader)) == 2


def test_a_reader_cannot_write(path: Path) -> None:
    with database.open_db(path, read_only=True) as lock_db, pytest.raises(DatabaseForbidden):
        holds.place(lock_db, new_hold(), now=NOW)
    assert assert_whole(path) == {}


def test_a_lock_that_is_never_given_up_is_an_error_in_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT", 0.1)
    with closing(sqlite3.connect(path, isolation_level=None)) as hog:
        hog.execute("BEGIN IMMEDIATE")
        with database.open_db(path) as lock_db, pytest.raises(DatabaseBusy, match="locked"):
            holds.place(lock_db, new_hold(), now=NOW)


def test_a_write_inside_a_write_shares_its_fate(lock_db: LockDB) -> None:
    with pytest.raises(ZeroDivisionError):
        _place_and_fail(lock_db)
    assert holds.history(lock_db) == []
    with lock_db.write():
        kept = [holds.place(lock_db, new_hold(), now=NOW) for _ in range(2)]
    assert {hold.id for hold in holds.history(lock_db)} == {hold.id for hold in kept}


def _place_and_fail(lock_db: LockDB) -> None:
    with lock_db.write():
        holds.place(lock_db, new_hold(), now=NOW)
        raise ZeroDivisionError


# Prints how many holds there are, or the name of the error.
_TRY = """
import sys
from pathlib import Path
from lockdb import database, holds
from lockdb.errors import LockDBError
from lockdb.values import NewHold

action, path = sys.argv[1], Path(sys.argv[2])
try:
    with database.open_db(path, read_only=action == "read") as lock_db:
        if action == "place":
            hold = NewHold("11111111-2222-4333-8444-555555555555", "unpaid", "tester")
            holds.place(lock_db, hold, now=1)
        print(len(holds.history(lock_db)))
except LockDBError as error:
    print(type(error).__name__)
"""


def _attempt(action: str, path: Path, wrapper: tuple[str, ...]) -> str:
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", _TRY, action, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("disk", [full_disk, read_only])
def test_a_disk_that_takes_nothing_is_an_error_and_loses_nothing(
    path: Path, disk: Callable[[Path], tuple[str, ...]]
) -> None:
    place(path)
    says = "DatabaseFull" if disk is full_disk else "DatabaseForbidden"
    assert _attempt("place", path, disk(path.parent)) == says
    assert len(assert_whole(path)) == 1


def test_on_a_full_disk_the_file_is_read_without_what_sqlite_would_make(path: Path) -> None:
    """As after a boot: nobody has it open, and there is no room for the -shm."""
    place(path)
    _age(path)
    assert _attempt("read", path, full_disk(path.parent)) == "1"
    assert _attempt("place", path, full_disk(path.parent)) == "DatabaseFull"


def test_on_a_full_disk_a_log_is_not_left_unread(path: Path) -> None:
    """The file alone is an older state then, in which the hold is missing."""
    with database.open_db(path):
        place(path)
        assert _log(path).stat().st_size
        _log(path).with_name("lock.db-shm").unlink()
        _age(path)
        assert _attempt("read", path, full_disk(path.parent)) == "DatabaseFull"


def _log(path: Path) -> Path:
    return path.with_name("lock.db-wal")


def _age(path: Path) -> None:
    """It was written to a minute ago."""
    then = path.stat().st_mtime - 60
    os.utime(path, (then, then))


def test_on_a_read_only_file_system_the_file_alone_is_read(path: Path) -> None:
    place(path)
    assert _attempt("read", path, read_only(path.parent)) == "1"


@pytest.mark.parametrize("attempt", [_create, database.open_db])
def test_a_user_without_rights_is_told_so(path: Path, attempt: Callable[[Path], object]) -> None:
    with ProcessPoolExecutor(1, get_context("fork"), os.seteuid, (NOBODY,)) as pool:
        assert pool.submit(_error_of, attempt, path).result() is DatabaseForbidden


def _error_of(attempt: Callable[[Path], object], path: Path) -> type[DatabaseError] | None:
    try:
        attempt(path)
    except DatabaseError as error:
        return type(error)
    return None


def test_every_error_is_one_line_and_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError) as failed:
        database.open_db(tmp_path / "lock.db")
    assert isinstance(failed.value, LockDBError)
    assert "\n" not in f"{failed.value}{failed.value.hint}"
