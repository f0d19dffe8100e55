"""What the hook records of a refusal: counted, bounded, and never at the verdict's cost."""

from __future__ import annotations

import json
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from pathlib import Path

import pytest

from hook.faults import execute
from hook.wrappers import full_disk, read_only
from hookrunner import Answer, Hook, domain_xml
from lockdb import database, journal, refusals
from lockdb.refusals import SPOOL_ROWS, Refusal
from samples import FREE, HELD, OTHER, place


def test_a_start_that_is_tried_again_and_again_is_one_row(hook: Hook) -> None:
    before = int(time.time())
    assert hook.run(domain_xml(HELD, "old")).status == 1
    (first,) = _pending(hook)
    assert before <= first.first_at == first.last_at <= time.time()
    execute(hook.database, "UPDATE refusal SET first_at = 1, last_at = 1")
    for name in ("old", "new"):
        assert hook.run(domain_xml(HELD, name)).status == 1
    (refusal,) = _pending(hook)
    assert (refusal.instance, refusal.operation, refusal.name) == (HELD, "start", "new")
    assert (refusal.count, refusal.first_at) == (3, 1)
    assert before <= refusal.last_at <= time.time()


def test_each_instance_operation_and_hold_is_counted_by_itself(hook: Hook) -> None:
    older = place(hook.database, HELD, now=1)
    place(hook.database, OTHER)
    for instance, operation in ((HELD, "start"), (HELD, "migrate"), (OTHER, "prepare")):
        assert hook.run(domain_xml(instance), operation).status == 1
    keys = {(refusal.instance, refusal.operation, refusal.count) for refusal in _pending(hook)}
    assert keys == {(HELD, "start", 1), (HELD, "migrate", 1), (OTHER, "start", 1)}
    assert older.id in {refusal.hold for refusal in _pending(hook)}


def test_what_is_allowed_or_undecided_is_not_recorded(hook: Hook) -> None:
    assert hook.run(domain_xml(FREE)).status == 0
    assert hook.run("<domain></domain>").status == 1
    assert _pending(hook) == []


def test_beyond_its_limit_the_spool_counts_in_one_row(hook: Hook) -> None:
    with closing(sqlite3.connect(hook.database)) as connection, connection:
        connection.executemany(
            "INSERT INTO refusal VALUES (?, 'start', 'h', 'n', 1, 1, 1)",
            [(str(number),) for number in range(SPOOL_ROWS)],
        )
    place(hook.database, OTHER)
    for instance in (HELD, OTHER, HELD):
        assert hook.run(domain_xml(instance, "latest")).status == 1
    spool = _pending(hook)
    assert len(spool) == SPOOL_ROWS + 1
    assert [(row.instance, row.operation, row.hold, row.name, row.count) for row in spool[-1:]] == [
        ("", "", "", "latest", 3)
    ]
    with database.open_db(hook.database) as lock_db:
        assert refusals.drain(lock_db, now=1) == SPOOL_ROWS + 1
    assert hook.run(domain_xml(HELD)).status == 1
    assert [refusal.instance for refusal in _pending(hook)] == [HELD]


def test_drained_refusals_are_in_the_journal(hook: Hook) -> None:
    for _ in range(2):
        assert hook.run(domain_xml(HELD, "a&b")).status == 1
    (spooled,) = _pending(hook)
    with database.open_db(hook.database) as lock_db:
        assert refusals.drain(lock_db, now=77) == 1
        assert refusals.drain(lock_db, now=78) == 0
        assert refusals.pending(lock_db) == []
        assert refusals.of_instance(lock_db, HELD) == [spooled]
        with lock_db.read() as db:
            (entry,) = map(json.loads, journal.entries(db, event="refused"))
    assert (entry["at"], entry["name"], entry["count"]) == (77, "a&b", 2)
    assert (entry["instance"], entry["hold"]) == (HELD, spooled.hold)


def test_a_writer_that_sleeps_costs_a_refusal_its_record_and_a_quarter_of_a_second(
    hook: Hook,
) -> None:
    with closing(sqlite3.connect(hook.database, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        start = time.monotonic()
        assert "[hold " in hook.run(domain_xml(HELD)).line
        # Far from the 60 seconds for which other writers queue.
        assert time.monotonic() - start < 2
    assert _pending(hook) == []
    assert hook.run(domain_xml(HELD)).status == 1
    assert [refusal.count for refusal in _pending(hook)] == [1]


@pytest.mark.parametrize("disk", [full_disk, read_only])
def test_a_disk_that_takes_nothing_costs_a_refusal_only_its_record(
    hook: Hook, disk: Callable[[Path], tuple[str, ...]]
) -> None:
    """SQLite's shared memory file is there: somebody has opened the database before."""
    assert hook.run(domain_xml(FREE)).status == 0
    wrapper = disk(hook.database.parent)
    assert hook.run(domain_xml(FREE), wrapper=wrapper) == Answer(0, b"", b"")
    start = time.monotonic()
    assert "[hold " in hook.run(domain_xml(HELD), wrapper=wrapper).line
    assert time.monotonic() - start < 2


def test_no_refusal_is_lost_or_counted_twice_while_the_spool_is_drained(hook: Hook) -> None:
    # A busy machine may keep the lock for longer than the hook waits. That is another test's.
    text = hook.script.read_text()
    assert text.count(".timeout 250") == 1
    hook.script.write_text(text.replace(".timeout 250", ".timeout 60000"))
    place(hook.database, OTHER)
    starts = [HELD, HELD, OTHER] * 100
    with ThreadPoolExecutor(8) as pool, database.open_db(hook.database) as lock_db:
        asked = {pool.submit(hook.run, domain_xml(instance)) for instance in starts}
        drains = 0
        while asked:
            done, asked = wait(asked, return_when=FIRST_COMPLETED)
            assert all(future.result().status == 1 for future in done)
            drains += refusals.drain(lock_db, now=1)
        with lock_db.read() as db:
            assert isinstance(journal.outcome(journal.verify(db)), journal.Head)
            entries = [json.loads(entry) for entry in journal.entries(db, event="refused")]
    assert drains > 2, "all came in one go: nothing was shown"
    counted: Counter[str] = Counter()
    for entry in entries:
        counted[entry["instance"]] += entry["count"]
    assert counted == Counter(starts)


def test_a_loop_that_retries_neither_fills_the_disk_nor_slows_the_hook(hook: Hook) -> None:
    document = domain_xml(HELD)

    def refuse(_: int) -> int:
        assert hook.run(document).status == 1
        return _size(hook.database.parent)

    with ThreadPoolExecutor(4) as pool:
        sizes = list(pool.map(refuse, range(1500)))
    (refusal,) = _pending(hook)
    assert 0 < refusal.count <= 1500, "a busy machine may cost some their record"
    # The database, its log, which starts over again and again, and the log's index: 0.6 MB most
    # often. A log that never starts over is at 12 by now.
    assert max(sizes) < 4_000_000

    # In turns, so that whatever else the machine does slows both.
    fresh = Hook.install(hook.directory / "fresh")
    place(fresh.database)
    seconds: dict[Hook, list[float]] = {hook: [], fresh: []}
    for _ in range(100):
        for either in (hook, fresh):
            start = time.perf_counter()
            assert either.run(document).status == 1
            seconds[either].append(time.perf_counter() - start)
    assert statistics.median(seconds[hook]) < 2 * statistics.median(seconds[fresh])


def _pending(hook: Hook) -> list[Refusal]:
    with database.open_db(hook.database) as lock_db:
        return refusals.pending(lock_db)


def _size(directory: Path) -> int:
    size = 0
    for file in directory.iterdir():
        # Whoever closes the database last takes the log away.
        with suppress(FileNotFoundError):
            size += file.stat().st_size
    return size
