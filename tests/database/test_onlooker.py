"""Reading as a member of the group that may read, while others open, write and close."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest

from lockdb import database, holds, onlooker
from lockdb.database import LockDB
from lockdb.errors import DatabaseError, DatabaseForbidden, DatabaseMissing
from lockdb.values import NewHold
from waiting import PATIENCE

#: Looks of each kind, with the others' files there and without.
ENOUGH = 5

NOBODY = 65534
#: Any number will do: nobody is in it until it is asked for.
GROUP = 64321

FORK = multiprocessing.get_context("fork")

T = TypeVar("T")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A database with an installed one's modes, in a directory that everybody may enter."""
    with TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        path = Path(directory, "lib", "lock.db")
        database.create(path, now=1, host="test", gid=GROUP)
        yield path


def _report(gid: int, work: Callable[[], Any], answers: Connection) -> None:
    os.setgroups([gid])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    try:
        answers.send(work())
    except DatabaseError as error:
        answers.send(type(error))


def as_member(work: Callable[[], T], gid: int = GROUP) -> T:
    """What ``work`` returns in a process of a user without power who is in the group."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=_report, args=[gid, work, theirs])
    process.start()
    theirs.close()
    with closing(ours):
        assert ours.poll(2 * PATIENCE)
        answer: T = ours.recv()
    process.join(PATIENCE)
    return answer


def place(lock_db: LockDB, number: int) -> None:
    instance = f"00000000-0000-4000-8000-{number:012x}"
    holds.place(lock_db, NewHold(instance=instance, reason="r" * 1000, placed_by="t"), now=1)


def count(lock_db: LockDB) -> tuple[int, bool]:
    """The holds, and whether they were read without locks."""
    return len(holds.active(lock_db, now=2)), lock_db.is_frozen


def test_a_member_reads_what_nobody_has_open_and_what_somebody_writes(shared: Path) -> None:
    def work() -> tuple[int, bool]:
        return onlooker.look(shared, count)

    assert as_member(work) == (0, True)
    with database.open_db(shared) as lock_db:
        place(lock_db, 1)
        # It is in the log, and not in the file.
        assert as_member(work) == (1, False)
    assert as_member(work) == (1, True)


def test_a_member_leaves_nothing_and_changes_nothing(shared: Path) -> None:
    def work() -> bool:
        with database.open_db(shared, read_only=True) as lock_db:
            try:
                place(lock_db, 1)
            except DatabaseForbidden:
                return os.access(shared, os.W_OK)
        return True

    before = {file.name for file in shared.parent.iterdir()}
    assert as_member(work) is False
    assert {file.name for file in shared.parent.iterdir()} == before


def test_who_is_no_member_reads_nothing(shared: Path) -> None:
    answer: Any = as_member(lambda: onlooker.look(shared, count), gid=NOBODY)
    assert answer is DatabaseForbidden


def test_a_missing_database_is_said_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(DatabaseMissing):
        onlooker.look(tmp_path / "lock.db", count)
    assert time.monotonic() - began < onlooker.TICK * onlooker.TRIES


def _write_all_the_time(path: Path) -> None:
    number = 0
    while True:
        with database.open_db(path) as lock_db:
            for _ in range(3):
                number += 1
                place(lock_db, number)
        # Long enough for some looks to find nobody, short enough for others to be surprised.
        time.sleep(0.01 * (number % 16))


def placed_and_last(
    lock_db: LockDB, between: Callable[[], object] = lambda: None
) -> tuple[int, int, bool]:
    """How many holds were placed, and the last entry: one more, as the first is another's."""
    with lock_db.read() as db:
        (placed,) = db.execute("SELECT count(*) FROM hold").fetchone()
        between()
        (last,) = db.execute("SELECT max(seq) FROM journal").fetchone()
    return placed, last, lock_db.is_frozen


def test_what_was_written_during_a_look_without_locks_is_no_half_answer(shared: Path) -> None:
    wanted, written = FORK.Event(), FORK.Event()

    def write() -> None:
        assert wanted.wait(PATIENCE)
        with database.open_db(shared) as lock_db:
            place(lock_db, 1)
        written.set()

    def work() -> list[tuple[int, int, bool]]:
        found = []

        def surprised() -> None:
            wanted.set()
            assert written.wait(PATIENCE)

        def question(lock_db: LockDB) -> tuple[int, int, bool]:
            found.append(placed_and_last(lock_db, surprised))
            return found[-1]

        found.append(onlooker.look(shared, question))
        return found

    # Its time must be older than the clock's tick, or the first look would be in vain anyway.
    time.sleep(2 * onlooker.TICK)
    writer = FORK.Process(target=write)
    writer.start()
    found = as_member(work)
    writer.join(PATIENCE)
    # The first look saw half of it, which is why there is a second.
    assert (found[0], found[-1]) == ((0, 2, True), (1, 2, True))


def test_what_is_seen_was_so_at_one_moment_whatever_others_do(shared: Path) -> None:
    def work() -> dict[bool, int]:
        seen = {False: 0, True: 0}
        deadline = time.monotonic() + PATIENCE
        while min(seen.values()) < ENOUGH and time.monotonic() < deadline:
            placed, last, is_frozen = onlooker.look(shared, placed_and_last)
            assert last == placed + 1
            seen[is_frozen] += 1
            # While it looks at the log, the others leave the log where it is.
            time.sleep(0.02)
        return seen

    writer = FORK.Process(target=_write_all_the_time, args=[shared])
    writer.start()
    try:
        seen = as_member(work)
        assert writer.is_alive()
    finally:
        writer.kill()
        writer.join(PATIENCE)
    assert min(seen.values()) >= ENOUGH
