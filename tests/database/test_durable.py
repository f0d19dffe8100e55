"""What was acknowledged is there, whenever the writer was killed and however many write at once."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from database.soundness import assert_whole, log
from lockdb import database, holds, journal
from lockdb.database import LockDB
from samples import HELD, NOW, new_hold

#: Called with what a writer has done, once it is done: "placed" or "released", and the hold's id.
Tell = Callable[[str, str], object]


def test_what_was_acknowledged_outlives_its_writers_death(path: Path) -> None:
    """Two hundred writers, each killed at another moment of its work."""
    chance = random.Random(20)
    told: set[tuple[str, str]] = set()
    # On a slow disk a writer that had 20 ms would have come to nothing.
    longest = 5 * _seconds_of_a_round(path)
    for _ in range(200):
        told |= _killed_after(path, chance.uniform(0, longest))
        stored = assert_whole(path)
        assert {hold for act, hold in told if act == "placed"} <= set(stored)
        released = {hold for act, hold in told if act == "released"}
        assert all(stored[hold].released_at == NOW for hold in released)
    acts = Counter(act for act, _ in told)
    assert min(acts["placed"], acts["released"]) > 10, "they came to do something"


def _seconds_of_a_round(path: Path) -> float:
    """How long a writer takes that is not killed."""
    rounds = []
    with database.open_db(path) as lock_db:
        for _ in range(9):
            start = time.perf_counter()
            _place_and_release(lock_db, lambda *_: None)
            rounds.append(time.perf_counter() - start)
    return statistics.median(rounds)


def _killed_after(path: Path, seconds: float) -> set[tuple[str, str]]:
    """What a writer said before it was killed, that long after it had opened the database."""
    reading, writing = os.pipe()
    writer = get_context("fork").Process(target=_write_for_ever, args=(path, writing))
    writer.start()
    os.close(writing)
    with os.fdopen(reading) as said:
        assert said.readline() == "ready now\n"
        time.sleep(seconds)  # the moment is what is tried here, nothing is waited for
        writer.kill()
        writer.join()
        return {(act, hold) for act, hold in map(str.split, said)}


def _write_for_ever(path: Path, pipe: int) -> None:
    def tell(act: str, hold: str) -> None:
        # One write, which a pipe takes whole.
        os.write(pipe, f"{act} {hold}\n".encode())

    with database.open_db(path) as lock_db:
        tell("ready", "now")
        while True:
            _place_and_release(lock_db, tell)


def _place_and_release(lock_db: LockDB, tell: Tell) -> None:
    """Two holds are placed, the first is released."""
    placed = []
    for _ in range(2):
        placed.append(holds.place(lock_db, new_hold(HELD), now=NOW).id)
        tell("placed", placed[-1])
    holds.release(lock_db, placed[0], reason="over", by="tester", now=NOW)
    tell("released", placed[0])


def test_eight_at_once_lose_nothing_and_see_no_lock(path: Path) -> None:
    """Each opens the database anew for every round, as commands do."""
    with ProcessPoolExecutor(8, get_context("fork")) as pool:
        said = list(pool.map(_write_for_ten_seconds, [path] * 8))
    assert all(said), "each had its turn"
    told = {told for one in said for told in one}
    stored = assert_whole(path)
    assert {("placed", hold) for hold in stored} == {one for one in told if one[0] == "placed"}
    ended = {("released", hold.id) for hold in stored.values() if hold.released_at == NOW}
    assert ended == {one for one in told if one[0] == "released"}


def _write_for_ten_seconds(path: Path) -> list[tuple[str, str]]:
    told: list[tuple[str, str]] = []
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with database.open_db(path) as lock_db:
            _place_and_release(lock_db, lambda *said: told.append(said))
    return told


class InterruptedWrite(Exception):
    """Something else went wrong within a write."""


def test_a_write_that_fails_leaves_nothing_of_itself(lock_db: LockDB) -> None:
    before = log(lock_db)
    with pytest.raises(InterruptedWrite):
        _append_and_fail(lock_db)
    assert log(lock_db) == before


def _append_and_fail(lock_db: LockDB) -> None:
    with lock_db.write() as db:
        journal.append(db, "seen", 1)
        raise InterruptedWrite
