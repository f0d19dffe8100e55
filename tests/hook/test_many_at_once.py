"""A host that boots a hundred guests at once gets a hundred right answers."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import pytest

from hookrunner import Answer, Hook, domain_xml
from lockdb import database, holds
from samples import NOW, new_hold, place


@pytest.mark.parametrize("writing", [False, True], ids=["quiet", "while others write"])
@pytest.mark.parametrize("opened", [False, True], ids=["first", "later"])
def test_of_a_hundred_starts_at_once_each_gets_its_own_verdict(
    tmp_path: Path, opened: bool, writing: bool
) -> None:
    """The first ones after a boot also make SQLite's shared memory file, all at the same time."""
    hook = Hook.install(tmp_path)
    held = {uuid: place(hook.database, uuid, notice=f"notice {uuid}") for uuid in _uuids("aaaa")}
    free = _uuids("bbbb")
    assert (hook.database.with_name("lock.db-shm")).exists() is False
    if opened:
        assert hook.run(domain_xml(free[0])).status == 0
    starts = [*held, *free]
    random.Random(4711).shuffle(starts)

    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(101))
        done = Event()
        stack.callback(done.set)
        if writing:
            pool.submit(_place_and_release, hook.database, done)
        answers = dict(zip(starts, pool.map(hook.run, map(domain_xml, starts)), strict=True))

    for uuid, hold in held.items():
        line = f"bootlock: start refused: notice {uuid} [hold {hold.id}]"
        assert (answers[uuid].status, answers[uuid].line) == (1, line)
    for uuid in free:
        assert answers[uuid] == Answer(0, b"", b"")


def _uuids(group: str) -> list[str]:
    return [f"{number:08x}-{group}-4333-8444-555555555555" for number in range(50)]


def _place_and_release(path: Path, done: Event) -> None:
    with database.open_db(path) as lock_db:
        while not done.is_set():
            hold = holds.place(lock_db, new_hold(), now=NOW)
            holds.release(lock_db, hold.id, reason="over", by="tester", now=NOW)
