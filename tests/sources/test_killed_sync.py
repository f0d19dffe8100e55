"""A sync that is killed, at whatever moment, has taken in all of what it read, or nothing."""

from __future__ import annotations

import os
import random
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bootlockd.sources.file import FileSource
from bootlockd.sources.reconcile import known, reconcile
from database.soundness import assert_whole
from lockdb import database
from samples import NOW
from sources.said import UNGUARDED, in_force, state, uuid

#: What the directory holds: an instance's number, and the grace of its hold.
Held = dict[int, int]


def test_two_hundred_killed_syncs_leave_all_or_nothing(path: Path, tmp_path: Path) -> None:
    chance = random.Random(4)
    directory = tmp_path / "holds.d"
    directory.mkdir()
    wanted: Held = {}
    _write(directory, wanted)
    cut, span = 0, 0.02
    for number in range(200):
        before, turn = _holds(path), state(path).turn
        wanted = {one: chance.randrange(2) for one in range(20) if chance.random() < 0.7}
        _write(directory, wanted)
        _killed_after(path, directory, chance.uniform(0, span))
        assert _holds(path) in (before, wanted)
        # Even the source's row shares the fate of its holds.
        assert (_holds(path) == wanted) == (state(path).turn == turn + 1) or before == wanted
        was_cut = state(path).turn == turn
        cut += was_cut
        # The machine may be busy, and then less so: half of the moments come too late.
        span *= 1.1 if was_cut else 0.9
        if number % 25 == 0:
            assert_whole(path)
        _sync(path, directory)
        assert _holds(path) == wanted
    assert_whole(path)
    assert 20 < cut < 180, "some were cut short, some were not"


def _write(directory: Path, wanted: Held) -> None:
    text = "".join(
        f'[[hold]]\ninstance = "{uuid(number)}"\nreason = "unpaid"\ngrace = {grace}\n'
        for number, grace in wanted.items()
    )
    draft = directory / ".a.toml.new"
    draft.write_text(text or "hold = []\n", "utf-8")
    draft.rename(directory / "a.toml")


def _holds(path: Path) -> Held:
    return {int(hold.instance[-12:], 16): hold.grace for hold in in_force(path)}


def _sync(path: Path, directory: Path) -> None:
    before = known(path, "file")
    reading = FileSource(directory, settle=0).read(before)
    with database.open_db(path) as lock_db:
        reconcile(lock_db, "file", reading, turn=before.turn, limits=UNGUARDED, now=NOW)


def _killed_after(path: Path, directory: Path, seconds: float) -> None:
    reading, writing = os.pipe()
    child: Any = get_context("fork").Process(
        target=_sync_once_told, args=(path, directory, writing)
    )
    child.start()
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        assert said.read(1) == b"r"
        time.sleep(seconds)  # the moment is what is tried here, nothing is waited for
        child.kill()
        child.join()


def _sync_once_told(path: Path, directory: Path, pipe: int) -> None:
    os.write(pipe, b"r")
    _sync(path, directory)
