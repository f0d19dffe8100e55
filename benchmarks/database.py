"""A lock database with any number of holds, filled in seconds.

The schema is lockdb's own; the rows go in by SQL, past lockdb's functions, which would journal and
sync each one. ANALYZE is not run: nobody runs it on a host either.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from lockdb.database import create

_IDENTITIES = """
CREATE TEMP TABLE identity AS
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :holds)
SELECT lower(hex(randomblob(24))) AS hex FROM n;
"""
_INSTANCES = """
CREATE TEMP TABLE instance AS
SELECT
  substr(hex, 1, 16) AS hold,
  substr(hex, 17, 8) || '-' || substr(hex, 25, 4) || '-4' || substr(hex, 29, 3) || '-a'
    || substr(hex, 32, 3) || '-' || substr(hex, 35, 12) AS uuid
FROM identity;
"""
_HOLDS = """
INSERT INTO hold (id, instance, kind, source, reason, notice, "case", on_running, grace, isolate,
                  placed_at, placed_by)
SELECT hold, uuid, 'boot_lock', 'nova', 'invoice 2024-0815 unpaid since 60 days',
       'this instance is locked by the provider', '', 'shutdown', 60, 0, 1700000000, 'billing'
FROM instance ORDER BY hold;
"""
_DISKS = """
INSERT INTO held_disk (source, instance)
SELECT 'path:/var/lib/nova/instances/' || uuid || '/disk', uuid FROM instance ORDER BY uuid;
"""
_INDEXES = """
SELECT name, sql FROM sqlite_master
WHERE type = 'index' AND sql IS NOT NULL AND tbl_name IN ('hold', 'held_disk')
"""


@dataclass(frozen=True)
class Filled:
    """A database, and one of its held instances with the path of that one's disk."""

    path: Path
    instance: str
    disk: str


def fill(path: Path, holds: int) -> Filled:
    """Make a database with ``holds`` holds, each of another instance, each with one held disk.

    In a process of its own: the memory it takes would make every later fork of this one slow.
    """
    subprocess.run(
        [sys.executable, "-B", "-m", "benchmarks.database", path, str(holds)],
        cwd=Path(__file__).parents[1],
        check=True,
    )
    with closing(sqlite3.connect(path)) as db:
        (instance,) = db.execute("SELECT instance FROM hold LIMIT 1").fetchone()
    return Filled(path, instance, f"/var/lib/nova/instances/{instance}/disk")


def _fill(path: Path, holds: int) -> None:
    create(path, now=1_700_000_000, host="benchmark")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for pragma in ("synchronous=OFF", "temp_store=MEMORY", "cache_size=-400000"):
            db.execute(f"PRAGMA {pragma}")
        db.execute("BEGIN")
        indexes = db.execute(_INDEXES).fetchall()
        for name, _ in indexes:
            db.execute(f"DROP INDEX {name}")
        db.execute(_IDENTITIES, {"holds": holds})
        for statement in (_INSTANCES, _HOLDS, _DISKS, *(sql for _, sql in indexes)):
            db.execute(statement)
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


if __name__ == "__main__":
    _fill(Path(sys.argv[1]), int(sys.argv[2]))
