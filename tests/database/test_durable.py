"""What was acknowledged is there, whenever the writer was killed and however many write at once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockdb import database, holds, journal
from lockdb.database import LockDB, create, open_db

INSTANCE = "11111111-1111-4111-8111-111111111111"

# One line a hold, written only when place() has returned.
_PLACE_FOR_EVER = f"""
import pathlib, sys
from lockdb import database, holds
from lockdb.values import NewHold

with database.open_db(pathlib.Path(sys.argv[1])) as lock_db:
    print("ready", flush=True)
    while True:
        new = NewHold({INSTANCE!r}, reason="r", placed_by="a test")
        print(holds.place(lock_db, new, now=1).id, flush=True)
"""

# What one of several writers does for a while: places, releases every other, counts.
_PLACE_AND_RELEASE = f"""
import pathlib, sys, time
from lockdb import database, holds
from lockdb.values import NewHold

path, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
end = time.monotonic() + seconds
while time.monotonic() < end:
    with database.open_db(path) as lock_db:
        new = NewHold({INSTANCE!r}, reason="r", placed_by="a test")
        hold = holds.place(lock_db, new, now=1)
        other = holds.place(lock_db, new, now=1)
        holds.release(lock_db, other.id, reason="r", by="a test", now=2)
    print(hold.id, other.id, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "lock" / "lock.db"
    create(path, now=1, host="test")
    return path


def entries(lock_db: LockDB) -> Iterator[dict[str, object]]:
    with lock_db.read() as db:
        yield from (json.loads(entry) for entry in journal.entries(db))


def is_sound(lock_db: LockDB) -> bool:
    database.check_integrity(lock_db)
    with lock_db.read() as db:
        return isinstance(journal.outcome(journal.verify(db)), journal.Head)


def test_a_hold_that_was_acknowledged_outlives_its_writers_death(path: Path) -> None:
    chance = random.Random(20)
    acknowledged: set[str] = set()
    for _ in range(200):
        acknowledged |= _killed_after(path, chance.uniform(0, 0.02))
        with open_db(path) as lock_db:
            stored = {hold.id for hold in holds.history(lock_db)}
            placed = {entry["id"] for entry in entries(lock_db) if entry["event"] == "placed"}
            assert acknowledged <= stored
            assert stored == placed, "a hold and its entry are there both or neither"
    with open_db(path) as lock_db:
        assert is_sound(lock_db)
    assert len(acknowledged) > 200


def _killed_after(path: Path, seconds: float) -> set[str]:
    """The ids that a writer acknowledged before it was killed, that long after its first."""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _PLACE_FOR_EVER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"
        time.sleep(seconds)  # the moment is what is tried here, not waited for
        os.kill(writer.pid, signal.SIGKILL)
        said = writer.stdout.read()
    # Killed within its last line, it may not have said it whole.
    return set(said.rpartition("\n")[0].split())


def test_eight_at_once_lose_nothing_and_see_no_lock(path: Path) -> None:
    command = [sys.executable, "-I", "-c", _PLACE_AND_RELEASE, str(path), "10"]
    writers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    said = [writer.communicate() for writer in writers]
    assert [(writer.returncode, err) for writer, (_, err) in zip(writers, said, strict=True)] == (
        [(0, "")] * 8
    )
    pairs = [line.split() for out, _ in said for line in out.splitlines()]
    assert all(out for out, _ in said), "each had its turn"
    with open_db(path) as lock_db:
        found = {hold.id: hold for hold in holds.history(lock_db)}
        assert set(found) == {hold for pair in pairs for hold in pair}
        assert {hold.id for hold in found.values() if hold.released_at is None} == {
            kept for kept, _ in pairs
        }
        assert is_sound(lock_db)


class InterruptedWrite(Exception):
    """Something else went wrong within a write."""


def _append_and_fail(lock_db: LockDB) -> None:
    with lock_db.write() as db:
        journal.append(db, "seen", 1)
        raise InterruptedWrite


def test_a_write_that_fails_leaves_nothing_of_itself(path: Path) -> None:
    with open_db(path) as lock_db:
        before = list(entries(lock_db))
        with pytest.raises(InterruptedWrite):
            _append_and_fail(lock_db)
        assert list(entries(lock_db)) == before
