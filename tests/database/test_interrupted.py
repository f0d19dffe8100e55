"""A command that is killed, at whatever moment, has done all of its act or nothing of it."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import pytest

from database.soundness import assert_whole, log
from lockdb import database, disks, holds, permits, refusals
from lockdb.database import LockDB
from lockdb.values import Hold, Operation
from samples import HELD, NOW, OTHER, new_hold, place

Act = Callable[[LockDB, Hold], object]

ACTS: dict[str, Act] = {
    "place": lambda lock_db, held: holds.place(lock_db, new_hold(OTHER), now=NOW),
    "release": lambda lock_db, held: holds.release(
        lock_db, held.id, reason="paid", by="clerk", now=NOW
    ),
    "was running": lambda lock_db, held: holds.set_was_running(lock_db, held, True, now=NOW),
    "permit": lambda lock_db, held: permits.grant(
        lock_db, HELD, Operation.START, until=NOW + 1, reason="rescue", by="chief", now=NOW
    ),
    "disks": lambda lock_db, held: disks.record(lock_db, HELD, ["path:/b", "path:/c"], now=NOW),
    "drain": lambda lock_db, held: refusals.drain(lock_db, now=NOW),
}

#: The tables that an act may change, without the journal and its head.
STATE = ("hold", "permit", "held_disk", "refusal")


@pytest.mark.parametrize("act", ACTS)
def test_an_act_and_its_record_are_there_both_or_neither(tmp_path: Path, act: str) -> None:
    """SIGKILL before the first statement, between each two, and behind the last."""
    deaths = 0
    while True:
        path = tmp_path / str(deaths) / "lock.db"
        held = _populated(path)
        before, length = _state(path), len(_log(path))
        child = get_context("fork").Process(target=_die_at, args=(path, act, held, deaths))
        child.start()
        child.join()
        assert_whole(path)
        changed = _state(path) != before
        assert changed == (len(_log(path)) > length)
        if child.exitcode == 0:
            assert changed, "undisturbed, it does something"
            break
        assert child.exitcode == -signal.SIGKILL
        deaths += 1
    assert deaths > 3, "a begin, at least two writes, and a commit"


def _populated(path: Path) -> Hold:
    database.create(path, now=1, host="test")
    held = place(path)
    with database.open_db(path) as lock_db, lock_db.write() as db:
        disks.record(lock_db, HELD, ["path:/a"], now=NOW)
        db.execute("INSERT INTO refusal VALUES (?, 'start', ?, 'web', 1, 2, 3)", [HELD, held.id])
    return held


def _die_at(path: Path, act: str, held: Hold, statement: int) -> None:
    with database.open_db(path) as lock_db:
        statements = 0

        def count(_: str) -> None:
            nonlocal statements
            if statements == statement:
                os.kill(os.getpid(), signal.SIGKILL)
            statements += 1

        lock_db.db.conn.set_trace_callback(count)
        ACTS[act](lock_db, held)
        lock_db.db.conn.set_trace_callback(None)


def _state(path: Path) -> list[list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as connection:
        return [connection.execute(f"SELECT * FROM {table}").fetchall() for table in STATE]


def _log(path: Path) -> list[dict[str, object]]:
    with database.open_db(path) as lock_db:
        return log(lock_db)


def test_a_killed_place_command_has_placed_its_hold_or_none(path: Path) -> None:
    """At random moments between its start and somewhat after its end; most hit Python's start."""
    chance = random.Random(2)
    began = time.monotonic()
    assert _place_command(path).wait() == 0
    usual = time.monotonic() - began
    acknowledged, killed = 1, 0
    for _ in range(25):
        command = _place_command(path)
        # The moment is what is tried here, nothing is waited for.
        time.sleep(chance.uniform(0, 1.2 * usual))
        command.kill()
        status = command.wait()
        acknowledged += status == 0
        killed += status == -signal.SIGKILL
        placed = assert_whole(path)
        assert acknowledged <= len(placed) <= acknowledged + killed
    assert acknowledged + killed == 26


def _place_command(path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bootlock.main", "--database", str(path)]
    return subprocess.Popen(
        [*command, "--connect", "test:///default", "place", HELD, "--reason", "unpaid"],
        stdout=subprocess.DEVNULL,
    )
