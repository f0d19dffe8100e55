"""The time that this host has seen pass, which setting its clock does not change.

A hold that is retained until a date must not end because somebody sets the clock forward. So the
date must have come by two clocks: the wall clock, and this witness. It is an estimate of the
present that errs only towards the past, kept in ``meta.witness`` once a hold is retained:

- While the host is up it runs with CLOCK_BOOTTIME, which nobody can set and which counts a suspend.
- What passed while the host was off is not known. After a boot the witness goes on from where it
  was, and is *unsettled*: it may be behind.
- Once unsettled, it takes the wall clock's time as soon as the kernel says that this one is
  synchronised (NTP): once, and then it runs by itself again. Setting a clock by hand ends that
  state, so that a time which was merely set is never taken.
- It never runs ahead of who sets a date: a clock that is behind it when a hold is retained sets it
  back, unsettled.

The wall clock set back makes a release wait until it is right again; the witness goes on meanwhile.
Who can't ask the kernel (the confined services) counts as not synchronised: late is safe.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlite_utils import Database

from lockdb import journal
from lockdb.database import LockDB

_KEY = "witness"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: What adjtimex() returns of a clock that is not synchronised.
_TIME_ERROR = 5
#: Seconds that two clocks read in whole seconds may differ.
_ROUNDING = 2
#: Seconds between two notes of who keeps it: so much may be lost at a crash.
KEEP_EVERY = 600
#: Seconds from which on it is worth an entry that the time was taken from the wall clock.
_REMARKABLE = 60


@dataclass(frozen=True)
class Sight:
    """What can be seen of time at one moment, but for the wall clock."""

    boot: str
    #: Whole seconds of CLOCK_BOOTTIME.
    up: int
    #: The kernel says that the wall clock follows a reference.
    synchronised: bool


@dataclass(frozen=True)
class Witness:
    """The time at ``up`` seconds of ``boot``. ``settled``: it was right then, by all we know."""

    time: int
    boot: str
    up: int
    settled: bool

    def at(self, now: int, sight: Sight) -> Witness:
        """The same, later. ``now``: the wall clock."""
        moment = self.expected(sight)
        settled = self.settled and sight.boot == self.boot
        if not settled and sight.synchronised:
            moment, settled = now, True
        return Witness(moment, sight.boot, sight.up, settled)

    def expected(self, sight: Sight) -> int:
        """The time by what has surely passed."""
        # Of another boot, what it lasted so far; a clock that went back counts for nothing.
        passed = sight.up - self.up if sight.boot == self.boot else sight.up
        return self.time + max(0, passed)

    @property
    def text(self) -> str:
        """As in ``meta``; the triggers read the number that it begins with."""
        return f"{self.time} {self.up} {self.boot} {'settled' if self.settled else 'unsettled'}"


def look() -> Sight:
    """What this host sees now."""
    boot = _BOOT_ID.read_text("ascii").strip()
    return Sight(boot, int(time.clock_gettime(time.CLOCK_BOOTTIME)), _is_synchronised())


def proven(db: Database, now: int, see: Callable[[], Sight] | None = None) -> int:
    """The present by which retention is judged: what both clocks say has come."""
    stored = _stored(db)
    return min(now, stored.at(now, (see or look)()).time) if stored else now


def advance(db: Database, now: int, see: Callable[[], Sight] | None = None) -> int:
    """As ``proven``, and kept, inside the caller's write transaction; the triggers go by it."""
    stored = _stored(db)
    if stored is None:
        return now
    sight = (see or look)()
    later = stored.at(now, sight)
    _keep(db, stored.expected(sight), later, now)
    return min(now, later.time)


def begin(db: Database, now: int, see: Callable[[], Sight] | None = None) -> None:
    """Before a date is set: from here on time is watched, and not ahead of who sets it."""
    sight = (see or look)()
    stored = _stored(db)
    if stored is None:
        _write(db, Witness(now, sight.boot, sight.up, sight.synchronised))
        return
    later = stored.at(now, sight)
    if later.time > now + _ROUNDING:
        later = Witness(now, sight.boot, sight.up, settled=False)
    _keep(db, stored.expected(sight), later, now)


def keep(lock_db: LockDB, now: int, see: Callable[[], Sight] | None = None) -> None:
    """Now and then, by who runs all the time: what was seen to pass is not lost by a crash."""
    with lock_db.read() as db:
        stored = _stored(db)
    if stored is None:
        return
    later = stored.at(now, (see or look)())
    if later.boot != stored.boot or later.up - stored.up >= KEEP_EVERY:
        with lock_db.write() as db:
            advance(db, now, see)


def _keep(db: Database, expected: int, after: Witness, now: int) -> None:
    if abs(after.time - expected) > _REMARKABLE:
        journal.append(
            db, "clock", now, expected=expected, taken=after.time, synchronised=after.settled
        )
    _write(db, after)


def _stored(db: Database) -> Witness | None:
    row = db.execute("SELECT value FROM meta WHERE key = ?", [_KEY]).fetchone()
    if row is None:
        return None
    try:
        moment, up, boot, settled = row[0].split(" ")
        return Witness(int(moment), boot, int(up), settled == "settled")
    except ValueError:
        # Not ours: nothing is known to have passed.
        return Witness(0, "", 0, settled=False)


def _write(db: Database, witness: Witness) -> None:
    db.execute("REPLACE INTO meta VALUES (?, ?)", [_KEY, witness.text])


def _is_synchronised() -> bool:
    """As the kernel says. Who may not ask it, does not know."""
    # struct timex has 208 bytes at most. It begins with what is to be set: nothing.
    timex = ctypes.create_string_buffer(512)
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    except (OSError, AttributeError):
        return False
    return state not in {-1, _TIME_ERROR}
