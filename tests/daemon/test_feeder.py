"""What is written to the database by others is noticed; what the daemon writes itself is not."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from bootlockd.feeder import PAUSE, DatabaseFeeder
from daemon.fakes import place, release, uuid
from lockdb import breakglass, database, enforcements, permits, proofs, refusals
from lockdb.enforcements import Enforcement, State
from lockdb.values import Operation
from waiting import wait_until


class Noticed:
    def __init__(self) -> None:
        self.calls: list[tuple[float, Sequence[str]]] = []

    def __call__(self, instances: Sequence[str]) -> None:
        self.calls.append((time.monotonic(), list(instances)))

    @property
    def instances(self) -> set[str]:
        return {instance for _, instances in self.calls for instance in instances}


@pytest.fixture
def noticed(lock_db: Path) -> Iterator[Noticed]:
    noticed = Noticed()
    feeder = DatabaseFeeder(lock_db, noticed)
    feeder.start()
    wait_until(lambda: noticed.calls, "the first look")
    noticed.calls.clear()
    yield noticed
    feeder.stop()


def test_each_order_is_noticed_with_its_instance(lock_db: Path, noticed: Noticed) -> None:
    hold = place(lock_db, uuid(1))
    wait_until(lambda: uuid(1) in noticed.instances, "a hold")
    noticed.calls.clear()
    release(lock_db, hold)
    wait_until(lambda: uuid(1) in noticed.instances, "its release")
    with database.open_db(lock_db) as opened:
        permits.grant(opened, uuid(2), Operation.START, until=9**10, reason="r", by="t", now=1)
    wait_until(lambda: uuid(2) in noticed.instances, "a permit")


def test_what_the_daemon_and_the_hook_write_is_not(lock_db: Path, noticed: Noticed) -> None:
    row = Enforcement("h", "f", uuid(1), State.ENFORCED, "", 1, 1)
    with database.open_db(lock_db) as opened:
        enforcements.record(opened, [row])
        proofs.record(opened, "test:///", armed=True, answer="", now=1)
        breakglass.record(opened, present=True, seen=1, now=1)
    # As the hook does: another program, the same file.
    spool = f"INSERT INTO refusal VALUES ('{uuid(1)}', 'start', 'h', 'n', 1, 1, 1)"
    subprocess.run(["sqlite3", lock_db, spool], check=True)
    with database.open_db(lock_db) as opened:
        refusals.drain(opened, now=1)
    # A later order is noticed, and before it nothing was.
    place(lock_db, uuid(2))
    wait_until(lambda: noticed.calls, "an order")
    assert noticed.instances == {uuid(2)}


def test_a_burst_is_read_at_most_once_a_second(lock_db: Path, noticed: Noticed) -> None:
    for number in range(100):
        place(lock_db, uuid(number))
    wait_until(lambda: len(noticed.instances) == 100, "all of them")
    moments = [moment for moment, _ in noticed.calls]
    gaps = [after - before for before, after in pairwise(moments)]
    assert all(gap > PAUSE * 0.9 for gap in gaps)


def test_a_file_that_goes_and_another_that_comes_are_noticed(
    lock_db: Path, noticed: Noticed
) -> None:
    lock_db.rename(lock_db.with_name("kept"))
    wait_until(lambda: noticed.calls, "it is gone")
    noticed.calls.clear()
    database.create(lock_db, now=1, host="other")
    wait_until(lambda: noticed.calls, "another one is there")
    noticed.calls.clear()
    lock_db.with_name("kept").rename(lock_db)
    wait_until(lambda: noticed.calls, "the old one is back")


def test_a_directory_that_goes_and_comes_is_watched_again(
    lock_db: Path, noticed: Noticed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bootlockd.feeder.RETRY", 0.1)
    lock_db.parent.rename(lock_db.parent.with_name("away"))
    lock_db.parent.mkdir()
    database.create(lock_db, now=1, host="other")
    lock_db.unlink()
    lock_db.parent.rmdir()
    lock_db.parent.with_name("away").rename(lock_db.parent)
    noticed.calls.clear()
    place(lock_db, uuid(7))
    wait_until(lambda: uuid(7) in noticed.instances, "a hold in the old directory")
