"""``bootlockd --sync``: keeps the holds of every source, each in a thread of its own.

What one source does, or fails to do, reaches no other. A thread follows its source and reconciles
each reading; when the source fails it says so in the database, waits a while and follows anew. The
main thread only watches: a thread that ended, or that has been silent for too long, is loud, and
takes the process with it, since systemd can start it again and nobody can mend a thread.

Nothing stands still meanwhile: the holds are in the database, and the hook and bootlockd read them
there.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

from bootlockd.config import Config
from bootlockd.errors import BootlockdError
from bootlockd.fleet.facts import SOURCE as REGISTRY
from bootlockd.notify import Announcer
from bootlockd.sources.base import Reading, Source, SourceError
from bootlockd.sources.reconcile import Limits, Overtaken, Plan, known, reconcile
from lockdb import sources
from lockdb.database import open_db
from lockdb.errors import DatabaseError, LockDBError

log = logging.getLogger(__name__)

#: Seconds before a source that failed is tried again: at first, and at most.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
#: Seconds that READY waits for the first word of each source.
FIRST_WORD = 30.0
#: Seconds that threads may take to end.
END_LIMIT = 3.0
#: Seconds between two looks at the threads, where no watchdog asks for more.
LOOK = 5.0
#: Seconds that any source may be silent, whatever the settings say.
LEAST_PATIENCE = 120.0
#: Of more changes than that in one reading, only their number is logged; the journal has each.
LOGGED = 20


class SyncFailed(BootlockdError):
    """A thread is lost: the process must be started again."""

    exit_code = 1


def limits_of(config: Config, name: str) -> Limits:
    """The guard's limits for one source.

    A file or a cloud's list may lose its entries by a mistake, and a share of them is the sign of
    it. In the fleet's registry each release was written by somebody, for that hold: only their
    number is one.
    """
    sync = config.sync
    percent = config.fleet.max_release_percent if name == REGISTRY else sync.max_release_percent
    return Limits(sync.max_release, percent, sync.release_window)


class Follower:
    """Follows one source from ``start`` until ``stop`` is set."""

    def __init__(self, source: Source, config: Config, stop: threading.Event) -> None:
        self.name = source.name
        self._source = source
        self._database = config.database.path
        self._limits = limits_of(config, source.name)
        self._stop = stop
        self._thread = threading.Thread(target=self._run, name=source.name, daemon=True)
        self._pause = FIRST_PAUSE
        self._heard = time.monotonic()
        #: Whether it could be read, or not, at least once.
        self.spoke = threading.Event()
        self.problem = ""

    def start(self) -> None:
        """Begin. Returns at once."""
        self._thread.start()

    def end(self, limit: float) -> None:
        """Wait so long for it to end."""
        self._thread.join(limit)

    @property
    def lives(self) -> bool:
        """Its thread runs."""
        return self._thread.is_alive()

    @property
    def silence(self) -> float:
        """Seconds since it said anything, an error included."""
        return time.monotonic() - self._heard

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
                continue
            except Overtaken as error:
                log.info("source=%s %s", self.name, error)
                continue
            except (SourceError, DatabaseError) as error:
                self._failed(f"{error}; {error.hint}" if error.hint else str(error))
            except Exception as error:
                # A defect of one source must not be the end of another.
                log.exception("source=%s failed", self.name)
                self._failed(f"{type(error).__name__}: {error}")
            # Not all hosts of a site at the same moment.
            self._stop.wait(self._pause * random.uniform(0.7, 1.3))  # noqa: S311
            self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def _follow(self) -> None:
        before = known(self._database, self.name)
        turn = before.turn
        for reading in self._source.follow(before, self._stop):
            if self._stop.is_set():
                return
            self._take(reading, turn)
            turn += 1
        if not self._stop.is_set():
            raise SourceError(f"the source {self.name} ended without a word")

    def _take(self, reading: Reading, turn: int) -> None:
        with open_db(self._database) as lock_db:
            plan = reconcile(
                lock_db,
                self.name,
                reading,
                turn=turn,
                limits=self._limits,
                now=int(time.time()),
            )
        if self.problem:
            log.info("source=%s can be read again", self.name)
        self._heard_of("")
        self._pause = FIRST_PAUSE
        _log(self.name, plan)

    def _failed(self, problem: str) -> None:
        line = " ".join(problem.split())
        if line != self.problem:
            log.error("source=%s its holds stay: %s", self.name, line)
        self._heard_of(line)
        try:
            with open_db(self._database) as lock_db:
                sources.failed(lock_db, self.name, line, now=int(time.time()))
        except LockDBError as error:
            log.error("source=%s can't be noted: %s", self.name, error)

    def _heard_of(self, problem: str) -> None:
        self.problem = problem
        self._heard = time.monotonic()
        self.spoke.set()


class SyncService:
    """``run`` blocks until ``stop``, which may be called from a signal handler."""

    def __init__(self, config: Config, found: Sequence[Source]) -> None:
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._followers = [Follower(source, config, self._stop) for source in found]
        self._patience = max(
            LEAST_PATIENCE, config.sync.stale_after, 2 * config.sync.interval + LONGEST_PAUSE
        )
        self._announcer = Announcer()
        self._actions: list[Callable[[], None]] = []

    def run(self) -> None:
        """Serve. Raises SyncFailed when a thread is lost."""
        if not self._followers:
            log.info("no source is configured: there is nothing to keep in step")
        for follower in self._followers:
            follower.start()
        try:
            self._watch()
        finally:
            self.stop()
            end = time.monotonic() + END_LIMIT
            for follower in self._followers:
                follower.end(max(0.0, end - time.monotonic()))

    def _watch(self) -> None:
        first_word = time.monotonic() + FIRST_WORD
        is_ready = False
        while not self._stop.is_set():
            while self._actions:
                self._actions.pop(0)()
            self._check()
            is_ready = is_ready or time.monotonic() > first_word or self._all_spoke()
            if is_ready:
                self._announcer.turned(self._summary())
            self._wake.wait(min(LOOK, self._announcer.rest) if is_ready else 0.1)
            self._wake.clear()

    def stop(self) -> None:
        """End ``run``. All holds stay."""
        self._stop.set()
        self._wake.set()

    def between_turns(self, action: Callable[[], None]) -> None:
        """From a signal handler: call ``action`` in the thread that runs, when it may be slow."""
        self._actions.append(action)
        self._wake.set()

    def _all_spoke(self) -> bool:
        return all(follower.spoke.is_set() for follower in self._followers)

    def _check(self) -> None:
        for follower in self._followers:
            if not follower.lives and not self._stop.is_set():
                raise SyncFailed(f"the thread of source {follower.name} has died")
            if follower.silence > self._patience:
                raise SyncFailed(
                    f"source {follower.name} has been silent for {int(follower.silence)} s"
                )

    def _summary(self) -> str:
        failing = [follower.name for follower in self._followers if follower.problem]
        summary = f"{len(self._followers)} sources"
        if failing:
            summary += f"; not read: {', '.join(failing)}"
        return summary


def _log(name: str, plan: Plan) -> None:
    steps = plan.steps
    lines = [f"placed instance={one.new.instance} ref={one.ref}" for one in steps.place[:LOGGED]]
    lines += [f"changed hold={one.hold_id} {sorted(one.after)}" for one in steps.change[:LOGGED]]
    lines += [
        f"released hold={one.hold_id} instance={one.instance}: {one.evidence}"
        for one in steps.end[:LOGGED]
    ]
    lines += [
        f"permitted {one.operation} permit={one.id} instance={one.instance} by={one.granted_by}"
        for one in steps.grant[:LOGGED]
    ]
    lines += [f"revoked permit={one.permit_id} by={one.by}" for one in steps.revoke[:LOGGED]]
    for line in lines:
        log.info("source=%s %s", name, line)
    counts = len(steps.place), len(steps.change), len(steps.end)
    if max(counts) > LOGGED:
        log.info("source=%s in all: placed=%d changed=%d released=%d", name, *counts)
    if steps.wait:
        advice = f"see 'bootlock sync {name}'"
        log.error("source=%s nothing is released: %s; %s", name, plan.stopped, advice)
