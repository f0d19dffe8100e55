"""The schema grows by steps that run once, whole or not at all."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from database.soundness import assert_whole, log
from lockdb import database, holds, migrations
from lockdb.errors import SchemaMismatch
from samples import HELD, NOW, place

SCHEMA = Path(migrations.__file__).with_name("schema.sql")

# A later bootlock: it knows one more step, and upgrades the database at argv[1].
_LATER = """
import sys
from pathlib import Path
from lockdb import database
from lockdb.migrations import migrations

@migrations()
def m9999_colour(db):
    db.execute("ALTER TABLE hold ADD COLUMN colour TEXT")
    {then}

try:
    database.open_db(Path(sys.argv[1])).close()
except database.SchemaMismatch as error:
    print(error)
print(database.create(Path(sys.argv[1]), now=77, host="test"))
database.open_db(Path(sys.argv[1])).close()
"""


def _upgrade(path: Path, then: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _LATER.format(then=then), str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _master(connection: sqlite3.Connection) -> set[tuple[str, str, str]]:
    query = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
    return {(kind, name, sql) for kind, name, sql in connection.execute(query)}


def test_schema_sql_is_what_the_steps_make(path: Path) -> None:
    """'make schema' writes it."""
    assert SCHEMA.read_text("utf-8") == migrations.schema()
    with closing(sqlite3.connect(path)) as made, closing(sqlite3.connect(":memory:")) as read:
        read.executescript(SCHEMA.read_text("utf-8"))
        assert _master(made) == _master(read)


def test_the_module_prints_the_schema() -> None:
    command = [sys.executable, "-m", "lockdb.migrations"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert printed.stdout == SCHEMA.read_text("utf-8")


def test_steps_are_numbered_without_gaps() -> None:
    numbers = [int(re.match(r"m(\d{4})_[a-z_]+$", name)[1]) for name in migrations.known_steps()]  # type: ignore[index]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))


def test_a_later_bootlock_upgrades_the_database_once_and_says_so(path: Path) -> None:
    hold = place(path)
    upgraded = _upgrade(path)
    assert upgraded.stdout == f"{path}: was made by an older bootlock\nFalse\n", upgraded.stderr
    assert _upgrade(path).stdout == "False\n"
    with closing(sqlite3.connect(path)) as connection:
        (entry,) = connection.execute("SELECT entry FROM journal WHERE event = 'migrated'")
        assert connection.execute("SELECT id, colour FROM hold").fetchall() == [(hold.id, None)]
    assert '"at":77' in entry[0]
    assert '"steps":["m9999_colour"]' in entry[0]


def test_a_step_that_fails_leaves_everything_as_it_was(path: Path) -> None:
    hold = place(path)
    with closing(sqlite3.connect(path)) as connection:
        before = _master(connection)
    failed = _upgrade(path, "raise ZeroDivisionError")
    assert failed.returncode == 1
    assert "ZeroDivisionError" in failed.stderr
    with closing(sqlite3.connect(path)) as connection:
        assert _master(connection) == before
    assert assert_whole(path) == {hold.id: hold}


@pytest.mark.parametrize("read_only", [False, True])
def test_a_newer_database_is_refused_by_its_name_and_left_as_it_is(
    path: Path, read_only: bool
) -> None:
    assert _upgrade(path).returncode == 0
    before = path.read_bytes()
    with pytest.raises(SchemaMismatch, match=r"written by a newer bootlock \(m9999_colour\)"):
        database.open_db(path, read_only=read_only)
    with pytest.raises(SchemaMismatch, match="newer"):
        database.create(path, now=NOW, host="test")
    assert path.read_bytes() == before


def test_the_first_step_makes_all_that_is_needed(path: Path) -> None:
    with database.open_db(path) as lock_db:
        assert holds.active(lock_db, now=NOW, instance=HELD) == []
        assert [entry["event"] for entry in log(lock_db)] == ["created"]
