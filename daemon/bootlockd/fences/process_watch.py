"""process_watch: no QEMU runs a boot-locked instance past libvirt, where no hook is asked.

A QEMU that was started by hand, or by libvirt's embedded or session driver, with a held UUID or a
held disk is killed before its guest's first instruction, or just reported, as configured, and
journalled as ``foreign_process``. libvirt's own are never touched: those are for power.

A QEMU that ran before its instance was locked is one that runs, and treated as the holds order:
left if that is what all of them say, killed otherwise. The row's detail remembers which was left.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bootlockd import hostpath
from bootlockd.config import ProcessWatch, WatchAction
from bootlockd.errors import FenceError
from bootlockd.offenders import Finding, Offender
from bootlockd.qemus import FileId, file_id
from bootlockd.values import Case, Outcome, Wake, strictest
from bootlockd.watchprocess import WatchProcess
from lockdb import journal
from lockdb.database import open_db
from lockdb.enforcements import State
from lockdb.errors import DatabaseError
from lockdb.values import Hold, OnRunning

log = logging.getLogger(__name__)

WATCHING = "watching"
REPORTING = "watching, reports only"
#: Not on this host as far as anybody knows; it is watched for.
WATCHED_FOR = "watched for"

#: Seconds that a killed process may take to be gone.
_END_LIMIT = 5.0
#: Seconds between two attempts to write to a journal that can't be written to: first, longest.
_FIRST_RETRY = 1.0
_LONGEST_RETRY = 15.0


class ProcessWatchFence:
    """Sees through a watcher; says what it saw, and decides about what was there before."""

    name = "process_watch"

    def __init__(self, config: ProcessWatch, database: Path) -> None:
        self._enabled = config.action is not WatchAction.OFF
        self._kills = config.action is WatchAction.KILL
        self._database = database
        self._watcher = WatchProcess(config.pid_directory, self._kills, self._found, self._ended)
        self._starting = threading.Lock()
        self._stopping = threading.Event()
        self._wake: Callable[[Wake], None] = lambda _wake: None
        #: The disk keys with which an instance was last looked at.
        self._looked: dict[str, tuple[str, ...]] = {}

    # -- the fence ----------------------------------------------------------------------------

    def asks(self, hold: Hold) -> bool:
        """A state lock is the customer's protection: it stops nothing."""
        return self._enabled and hold.bars_start

    def wanted(self, case: Case) -> bool:
        """A permitted instance may run."""
        return self._enabled and bool(case.boot_locks) and not case.is_permitted

    def reaches(self, case: Case) -> bool:
        """There is a domain, or disks that were not looked at yet. All are watched for anyway."""
        unknown = case.disks and self._looked.get(case.instance) != tuple(case.disks)
        return case.guest is not None or bool(unknown)

    def verify(self, case: Case) -> Outcome:
        """Whether it is watched for with all its disks, and no QEMU has it now."""
        disks = _files(case.disks)
        guarded = self._watcher.disks_of(case.instance)
        if guarded is None or guarded.keys() != disks.keys():
            return Outcome(State.FAILED, "not watched for with all its disks")
        self._watcher.prove()
        offenders = self._of(case)
        left = [offender for offender in offenders if self._may_stay(case, offender)]
        if offenders != left:
            return Outcome(State.FAILED, _running(offenders))
        return self._outcome(case, disks, left)

    def apply(self, case: Case) -> Outcome:
        """Watch for it, and end what there is."""
        self._run_watcher()
        disks = _files(case.disks)
        try:
            self._watcher.guard(case.instance, disks)
        except OSError as error:
            raise FenceError(f"a disk can't be watched: {error}") from error
        self._looked[case.instance] = tuple(case.disks)
        self._watcher.prove()
        left = []
        offenders = self._of(case)
        for offender in offenders:
            if self._may_stay(case, offender):
                self._watcher.settle(offender)
                left.append(offender)
            elif self._kills:
                log.info("instance=%s %s: killing it", case.instance, _running([offender]))
                self._watcher.end(offender)
            else:
                self._watcher.tell(Finding(offender, False))
        remaining = self._remaining(case, left) if offenders else []
        if remaining:
            return Outcome(State.FAILED, _running(remaining))
        return self._outcome(case, disks, left)

    def prepare(self, case: Case) -> Outcome | None:
        """Watch for it by its disks too. By UUID all are watched for, see ``follow``."""
        if not case.disks:
            return None
        outcome = self.apply(case)
        return outcome if outcome.is_enforced else None

    def lift(self, case: Case) -> Outcome:
        """Watch for it no more."""
        self._watcher.unguard(case.instance)
        self._looked.pop(case.instance, None)
        return Outcome(State.LIFTED)

    # -- watching -----------------------------------------------------------------------------

    def start(self, wake: Callable[[Wake], None]) -> None:
        """Begin to watch; what keeps it from that is said by ``apply``, which tries again."""
        self._wake = wake
        self._stopping.clear()
        if not self._enabled:
            return
        self._try_watcher()

    def follow(self, cases: Sequence[Case]) -> None:
        """Watch for all of them by UUID; their disks are known when each was looked at."""
        if not self._enabled:
            return
        wanted = frozenset(case.instance for case in cases if self.wanted(case))
        # The cycle waits for nothing.
        threading.Thread(target=self._follow, args=[wanted], name="follow", daemon=True).start()

    def _follow(self, wanted: frozenset[str]) -> None:
        self._try_watcher()
        try:
            self._watcher.keep(wanted)
            found = {offender.match.instance for offender in self._watcher.offenders()}
        except FenceError as error:
            if not self._stopping.is_set():
                log.error("%s", error)
            return
        for instance in self._looked.keys() - wanted:
            self._looked.pop(instance, None)
        for instance in found:
            self._wake(Wake("a QEMU runs past libvirt", instance))

    def stop(self) -> None:
        """End the watch."""
        self._stopping.set()
        with self._starting:
            self._watcher.stop()

    def _run_watcher(self) -> None:
        with self._starting:
            if self._watcher.runs or self._stopping.is_set():
                return
            self._looked.clear()
            try:
                self._watcher.start()
            except OSError as error:
                raise FenceError(f"processes are not watched: {_explained(error)}") from error

    def _try_watcher(self) -> None:
        try:
            self._run_watcher()
        except FenceError as error:
            log.error("%s", error)

    def _ended(self) -> None:
        self._looked.clear()
        # Who follows starts it again, and has all looked at that it must guard.
        self._wake(Wake("the process watch has ended"))

    def _found(self, finding: Finding) -> None:
        """In a thread of the watcher's own. Ends when it is in the journal."""
        offender = finding.offender
        log.warning(
            "instance=%s pid=%d exe=%s matched=%s %s%s",
            offender.match.instance,
            offender.pid,
            offender.exe,
            offender.match.what,
            "killed" if finding.killed else "runs past libvirt",
            "" if finding.after is None else f" took={finding.after:.2f} ms",
        )
        self._wake(Wake("foreign process", offender.match.instance))
        wait = _FIRST_RETRY
        while not self._journalled(finding) and not self._stopping.wait(wait):
            wait = min(wait * 2, _LONGEST_RETRY)

    def _journalled(self, finding: Finding) -> bool:
        offender = finding.offender
        try:
            with open_db(self._database) as lock_db, lock_db.write() as db:
                journal.append(
                    db,
                    "foreign_process",
                    int(time.time()),
                    instance=offender.match.instance,
                    pid=offender.pid,
                    exe=offender.exe,
                    uid=offender.uid,
                    matched=offender.match.what,
                    action="killed" if finding.killed else "reported",
                )
        except DatabaseError as error:
            log.error("pid=%d is not in the journal: %s", offender.pid, error)
            return False
        return True

    # -- deciding -----------------------------------------------------------------------------

    def _of(self, case: Case) -> list[Offender]:
        return [o for o in self._watcher.offenders() if o.match.instance == case.instance]

    def _remaining(self, case: Case, left: Sequence[Offender]) -> list[Offender]:
        """Those that are still there after what was killed had time to go."""
        deadline = time.monotonic() + _END_LIMIT
        while True:
            remaining = [offender for offender in self._of(case) if offender not in left]
            if not remaining or not self._kills or time.monotonic() > deadline:
                return remaining
            time.sleep(0.02)

    def _may_stay(self, case: Case, offender: Offender) -> bool:
        if strictest(case.boot_locks) is not OnRunning.LEAVE:
            return False
        rows = [
            row
            for (_, fence), row in case.rows.items()
            if fence == self.name and row.state is not State.LIFTED
        ]
        # Another process than the one that was left is a new run.
        return not rows or any(_name(offender) in row.detail for row in rows)

    def _outcome(
        self, case: Case, disks: Mapping[FileId, Path], left: Sequence[Offender]
    ) -> Outcome:
        if left:
            names = ", ".join(sorted({_name(offender) for offender in left}))
            return Outcome(State.ENFORCED, f"watching; left running, as ordered: {names}")
        if case.guest is None and not disks:
            return Outcome(State.NOT_HERE, WATCHED_FOR)
        return Outcome(State.ENFORCED, WATCHING if self._kills else REPORTING)


def _files(keys: Sequence[str]) -> dict[FileId, Path]:
    """The files and block devices among an instance's disks that exist. May hang with storage."""
    found: dict[FileId, Path] = {}
    for key in keys:
        kind, _, name = key.partition(":")
        if kind == "path":
            try:
                path = hostpath.reachable(name)
                disk = file_id(os.stat(path))
            except (OSError, ValueError):
                # Not here now, as on the host that an instance has left.
                continue
            if disk:
                found.setdefault(disk, Path(path))
    return found


def _name(offender: Offender) -> str:
    return f"(process {offender.pid}, started {offender.start})"


def _running(offenders: Sequence[Offender]) -> str:
    first = offenders[0]
    return f"a QEMU runs past libvirt: process {first.pid}, {first.exe}, by its {first.match.what}"


def _explained(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return f"{error}; the daemon must run in the host's own network namespace"
    return str(error)
