"""One instance's job, from looking to reporting, in a thread of its own.

A job that hangs, because a guest or a hook hangs, holds up its own instance and nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from weakref import WeakValueDictionary

from bootlockd import hypervisor
from bootlockd.errors import BootlockdError
from bootlockd.fences.base import Fence
from bootlockd.plan import Action, Step, plan
from bootlockd.values import Case, Outcome
from lockdb import disks, enforcements, holds, permits
from lockdb.database import open_db
from lockdb.enforcements import Enforcement, State
from lockdb.errors import DatabaseError, LockDBError
from lockdb.values import Hold

log = logging.getLogger(__name__)

#: A job that hangs may outlive the cycle that began it, when the settings are read again. As long
#: as a job has its lock it is here.
_at_work: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
_at_work_changes = threading.Lock()

#: Seconds after which what failed is tried again, if its fence names no time of its own.
RETRY = 15

#: Milliseconds that recording disks may wait before what is ordered is carried out.
RECORD_PATIENCE = 1000

#: Milliseconds that a report may wait for another writer: what happens to the instance meanwhile
#: waits for it. Then it is made anew with the next try.
REPORT_PATIENCE = 5000

#: Seconds that libvirt may take to show one guest.
LOOK_LIMIT = 60.0


@dataclass(frozen=True)
class Job:
    """What a worker is given. ``known`` are the holds last read: they hold if the file is lost.

    ``looks``: libvirt is asked; otherwise only what the database alone orders is done.
    """

    instance: str
    known: Sequence[Hold]
    looks: bool = True


@dataclass(frozen=True)
class Done:
    """What came of a job. ``error``: it could not look, or could not report."""

    instance: str
    #: The rows whose state or detail is new.
    changed: Sequence[Enforcement]
    next_try: int | None
    error: str = ""
    #: By fence: seconds that its step took.
    took: Mapping[str, float] = field(default_factory=dict)


class Worker:
    """Carries jobs out. Has no state: whatever it must know is in the database or in the world."""

    def __init__(self, database: Path, uris: Sequence[str], fences: Sequence[Fence]) -> None:
        self._database = database
        self._uris = uris
        self._fences = {fence.name: fence for fence in fences}

    def run(self, job: Job) -> Done:
        """Look at one instance, do what it needs, report. Never raises."""
        with _at_work_changes:
            its_turn = _at_work.setdefault(job.instance, threading.Lock())
        with its_turn:
            try:
                return self._run(job) if job.looks else self._prepare(job)
            except Exception as error:
                # A defect; the instance must not stay unguarded for it.
                log.exception("instance=%s", job.instance)
                return Done(job.instance, (), int(time.time()) + RETRY, repr(error))

    def _run(self, job: Job) -> Done:
        now = int(time.time())
        try:
            case = self.look(job, now)
        except LockDBError as error:
            log.warning("instance=%s cannot be looked at: %s", job.instance, error)
            return Done(job.instance, (), now + RETRY, str(error))
        outcomes, took = {}, {}
        for step in plan(case, [*self._fences.values()]):
            began = time.monotonic()
            outcomes[step.fence] = self.carry_out(step, case)
            took[step.fence] = time.monotonic() - began
        changed, unreported = self._report(self._rows(case, outcomes))
        tries = [outcome.next_try for outcome in outcomes.values() if outcome.next_try is not None]
        tries += [now + RETRY] if unreported else []
        # What ends by itself is undone, or put up again, at that moment.
        ends = [permit.until for permit in case.permits] + [hold.until for hold in case.holds]
        tries += [end for end in ends if end is not None and end > now]
        return Done(job.instance, changed, min(tries, default=None), unreported, took)

    def _prepare(self, job: Job) -> Done:
        """What fences can do before libvirt answers. A job that looks comes after it."""
        changed: list[Enforcement] = []
        took: dict[str, float] = {}
        try:
            case = self._from_database(job, int(time.time()))
        except LockDBError as error:
            return Done(job.instance, (), None, str(error))
        for _ in ("", "what was announced"):
            outcomes = self._prepared(case, took)
            rows = [row for row in self._rows(case, outcomes) if _is_news(case, row)]
            recorded, unreported = self._report(rows)
            changed += recorded
            if unreported or not any(row.state is State.PENDING for row in rows):
                break
            case = replace(case, rows={**case.rows, **{(r.hold, r.fence): r for r in rows}})
        return Done(case.instance, changed, None, took=took)

    def _prepared(self, case: Case, took: dict[str, float]) -> dict[str, Outcome]:
        outcomes = {}
        for fence in self._fences.values():
            began = time.monotonic()
            try:
                outcome = fence.prepare(case) if fence.wanted(case) else None
            except BootlockdError as error:
                # The job that looks tries again at once, and records it.
                facts = (case.instance, fence.name, error)
                log.info("instance=%s fence=%s not before libvirt answers: %s", *facts)
                continue
            if outcome:
                outcomes[fence.name] = outcome
                took[fence.name] = time.monotonic() - began
        return outcomes

    def look(self, job: Job, now: int) -> Case:
        """The instance as it is now. Raises Unreachable, or DatabaseError without known holds."""
        case = self._from_database(job, now)
        guest = hypervisor.observe(self._uris, job.instance, LOOK_LIMIT)
        if guest and case.holds:
            case = self._with_disks(case, hypervisor.definition_of(guest, LOOK_LIMIT))
        return replace(case, guest=guest)

    def carry_out(self, step: Step, case: Case) -> Outcome:
        """One step of a plan. Never raises."""
        fence = self._fences[step.fence]
        try:
            if step.action is Action.LIFT:
                return fence.lift(case)
            if step.action is Action.VERIFY:
                outcome = fence.verify(case)
                if outcome.is_enforced:
                    return outcome
                facts = (case.instance, fence.name, outcome.detail)
                log.info("instance=%s fence=%s is put up again: %s", *facts)
            return fence.apply(case)
        except BootlockdError as error:
            hint = f"; {error.hint}" if error.hint else ""
            return Outcome(State.FAILED, f"{error}{hint}", case.now + RETRY)
        except Exception as error:
            # A defect in one fence must not keep the others from being put up.
            log.exception("instance=%s fence=%s", case.instance, fence.name)
            return Outcome(State.FAILED, f"{type(error).__name__}: {error}", case.now + RETRY)

    def _from_database(self, job: Job, now: int) -> Case:
        try:
            with open_db(self._database, read_only=True) as lock_db, lock_db.read():
                current = holds.active(lock_db, now=now, instance=job.instance)
                ended = {h.id for h in holds.history(lock_db, instance=job.instance)}
                vanished = [hold for hold in job.known if hold.id not in ended]
                return Case(
                    instance=job.instance,
                    now=now,
                    # Absence is no release: what is gone from the file without a trace still holds.
                    holds=(*current, *vanished),
                    permits=permits.active(lock_db, now=now, instance=job.instance),
                    disks=disks.of_instance(lock_db, job.instance),
                    rows={
                        (row.hold, row.fence): row
                        for row in enforcements.of_instance(lock_db, job.instance)
                    },
                )
        except DatabaseError:
            if not job.known:
                raise
            return Case(instance=job.instance, now=now, holds=job.known)

    def _with_disks(self, case: Case, known: hypervisor.Definition | None) -> Case:
        if known is None or known.disks <= set(case.disks):
            return case
        try:
            with open_db(self._database) as lock_db:
                # Nobody's hold waits for a writer that keeps the file; the next look tries again.
                lock_db.db.execute(f"PRAGMA busy_timeout = {RECORD_PATIENCE}")
                disks.record(lock_db, case.instance, known.disks, now=case.now)
        except DatabaseError as error:
            log.warning("instance=%s its disks are not recorded: %s", case.instance, error)
        return replace(case, disks=sorted({*case.disks, *known.disks}))

    def _rows(self, case: Case, outcomes: Mapping[str, Outcome]) -> list[Enforcement]:
        rows = []
        for name, outcome in outcomes.items():
            fence = self._fences[name]
            asking = {hold.id for hold in case.holds if fence.asks(hold)}
            for hold in asking:
                rows.append(_row(case, hold, name, outcome))
            for (hold, fence_name), row in case.rows.items():
                if fence_name == name and hold not in asking and row.state is not State.LIFTED:
                    # With no hold left it tells of the lift itself, and when to try it again.
                    still = asking and outcome.state is not State.LIFTED
                    ended = Outcome(State.LIFTED, "still up for another hold")
                    rows.append(_row(case, hold, name, ended if still else outcome))
        return rows

    def _report(self, rows: Sequence[Enforcement]) -> tuple[Sequence[Enforcement], str]:
        if not rows:
            return (), ""
        try:
            with open_db(self._database) as lock_db:
                lock_db.db.execute(f"PRAGMA busy_timeout = {REPORT_PATIENCE}")
                return enforcements.record(lock_db, rows), ""
        except DatabaseError as error:
            log.error("enforcement is not recorded: %s", error)
            return rows, str(error)


def _is_news(case: Case, row: Enforcement) -> bool:
    last = case.rows.get((row.hold, row.fence))
    return last is None or (last.state, last.detail) != (row.state, row.detail)


def _row(case: Case, hold: str, fence: str, outcome: Outcome) -> Enforcement:
    return Enforcement(
        hold=hold,
        fence=fence,
        instance=case.instance,
        state=outcome.state,
        detail=outcome.detail,
        since=case.now,
        at=case.now,
        next_try=outcome.next_try,
    )
