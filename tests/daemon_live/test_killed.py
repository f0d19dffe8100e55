"""bootlockd killed at every step boundary and started again: the end is the same.

For each order: an instance runs, its hold is placed, a bootlockd dies at its first boundary, a new
one finishes. The same again with death at the second, and so on, until one gets through alive.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from select import select

import pytest

from daemon_live.runner import (
    database,
    is_enforced,
    place,
    power,
    release,
    row_of,
    start_guest,
)
from daemonhost import SETTINGS
from live.guests import Identity
from lockdb import journal
from lockdb.database import open_db
from lockdb.enforcements import State
from lockdb.values import Hold, OnRunning
from privatehost import PrivateHost
from waiting import wait_until

pytestmark = pytest.mark.live

#: Nothing here has as many; a loop that never ends is a failure.
MANY = 60

END = {
    OnRunning.DESTROY: ("off", "off"),
    OnRunning.SHUTDOWN: ("off", "off"),
    OnRunning.MANAGED_SAVE: ("off", "off, its RAM saved"),
    OnRunning.PAUSE: ("paused", "paused"),
    OnRunning.LEAVE: ("running", "left running"),
}


class Mortal:
    """The mortal bootlockd, see mortal.py."""

    def __init__(self, host: PrivateHost) -> None:
        settings = host.root / "mortal.toml"
        settings.write_text(SETTINGS)
        log = (host.root / "mortal.log").open("a")
        program = Path(__file__).parent / "mortal.py"
        with log:
            self._process = host.popen(
                [sys.executable, program, settings], stdin=subprocess.PIPE, stderr=log.fileno()
            )
        assert self._process.stdout
        self._answers = self._process.stdout
        self._died = False

    def begin(self, fatal: int) -> None:
        """Start a daemon that dies at its boundary number ``fatal``; 0: at none."""
        self._died = False
        self._say(str(fatal))

    @property
    def has_died(self) -> bool:
        if select([self._answers], [], [], 0)[0]:
            assert self._answers.readline() == "died\n"
            self._died = True
        return self._died

    def end(self) -> list[str]:
        """Kill it if it lives; the boundaries that it crossed."""
        self._say("end")
        while not (answer := self._answers.readline()).startswith("["):
            assert answer == "died\n"
        crossed: list[str] = json.loads(answer)
        return crossed

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _say(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()


@pytest.fixture(scope="module")
def mortal(host: PrivateHost) -> Iterator[Mortal]:
    mortal = Mortal(host)
    yield mortal
    mortal.close()


def deaths(
    mortal: Mortal, prepare: Callable[[], Hold], is_done: Callable[[Hold], bool]
) -> Iterator[tuple[Hold, list[str]]]:
    """Let it die at each boundary in turn; each time, what the next daemon has brought about."""
    for fatal in range(1, MANY):
        hold = prepare()
        mortal.begin(fatal)
        wait_until(lambda hold=hold: mortal.has_died or is_done(hold), "death or success")  # type: ignore[misc]
        survived = not mortal.has_died
        crossed = mortal.end()
        if not survived:
            assert len(crossed) == fatal
        mortal.begin(0)
        wait_until(lambda hold=hold: is_done(hold), f"{hold.on_running} done after {crossed}")  # type: ignore[misc]
        mortal.end()
        yield hold, crossed
        if survived:
            return
    raise AssertionError(f"it has died {MANY} times")


@pytest.mark.parametrize("order", list(OnRunning))
def test_killed_while_an_order_is_carried_out(
    host: PrivateHost, mortal: Mortal, guest: Identity, order: OnRunning
) -> None:
    state, detail = END[order]

    def run_and_hold() -> Hold:
        host.virsh("managedsave-remove", guest.name, check=False)
        if power(host, guest.uuid) not in {"running", "paused"}:
            start_guest(host, guest.name, guest.uuid)
        elif power(host, guest.uuid) == "paused":
            host.virsh("resume", guest.name)
        return place(host, guest.uuid, order, grace=1)

    def is_done(hold: Hold) -> bool:
        return is_enforced(host, hold, detail)

    times = 0
    for hold, crossed in deaths(mortal, run_and_hold, is_done):
        times += 1
        row = row_of(host, hold)
        assert row
        assert (power(host, guest.uuid), row.detail[: len(detail)]) == (state, detail), crossed
        release_quietly(host, hold)
        assert_journal_is_sound(host)
    print(f"{order}: {times - 1} deaths, then alive through: {', '.join(crossed)}")
    assert times > 3


def test_killed_while_a_release_is_carried_out(
    host: PrivateHost, mortal: Mortal, guest: Identity
) -> None:
    start_guest(host, guest.name, guest.uuid)

    def pause_and_release() -> Hold:
        hold = place(host, guest.uuid, OnRunning.PAUSE)
        mortal.begin(0)
        wait_until(lambda: is_enforced(host, hold, "paused"), "it is paused")
        mortal.end()
        assert power(host, guest.uuid) == "paused"
        release(host, hold)
        return hold

    def is_lifted(hold: Hold) -> bool:
        row = row_of(host, hold)
        return bool(row and row.state is State.LIFTED)

    times = 0
    for _, crossed in deaths(mortal, pause_and_release, is_lifted):
        times += 1
        assert power(host, guest.uuid) == "running", crossed
        assert_journal_is_sound(host)
    print(f"release: {times - 1} deaths, then alive through: {', '.join(crossed)}")
    assert times > 3


def release_quietly(host: PrivateHost, hold: Hold) -> None:
    """Release it without a daemon: nothing is lifted that the next round would find."""
    release(host, hold)
    with open_db(database(host)) as lock_db, lock_db.write() as db:
        db.execute("UPDATE enforcement SET state = 'lifted', detail = '' WHERE hold = ?", [hold.id])


def assert_journal_is_sound(host: PrivateHost) -> None:
    with closing(open_db(database(host), read_only=True)) as lock_db, lock_db.read() as db:
        *_, last = journal.verify(db)
    assert isinstance(last, journal.Head), last
