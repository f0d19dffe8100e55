"""What a sync changes reaches the daemon by the database, as what an admin does."""

from __future__ import annotations

from pathlib import Path

from bootlockd.feeder import DatabaseFeeder
from lockdb import database, sources
from lockdb.values import OnRunning
from samples import NOW
from sources.said import held, part, released, take, uuid, whole
from waiting import wait_until


def test_each_change_of_a_hold_wakes_its_instance_and_marks_wake_nobody(path: Path) -> None:
    woken: list[list[str]] = []
    feeder = DatabaseFeeder(path, lambda instances: woken.append(list(instances)))
    feeder.start()
    try:
        wait_until(lambda: woken == [[]], "the first look")
        for said in (held(1), held(1, on_running=OnRunning.DESTROY), released(1)):
            woken.clear()
            take(path, part(said))
            wait_until(lambda: woken == [[uuid(1)]], f"{said.said} is noticed")
        woken.clear()
        with database.open_db(path) as lock_db:
            sources.failed(lock_db, "file", "gone", now=NOW)
        take(path, whole(faults=("a fault",)))
        # Behind all that: what was noticed meanwhile would be there before it.
        take(path, part(held(2)))
        wait_until(lambda: woken, "the last")
        assert woken == [[uuid(2)]]
    finally:
        feeder.stop()
