"""The cycle: the one thread that decides what is looked at and when. It never blocks on libvirt.

Everything reaches it as a message in one queue: wakes from the feeders, jobs that are done,
requests from the control socket. It alone keeps state: the holds last read, which jobs are under
way, when to come back. Losing that state loses nothing; the next full look makes it again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TypeVar

from bootlockd import hypervisor
from bootlockd.config import Config
from bootlockd.durations import Durations
from bootlockd.errors import NoSuchDriver
from bootlockd.fences.base import Fence
from bootlockd.values import Case, Guest, Wake
from bootlockd.worker import Done, Job, Worker
from lockdb import disks, enforcements, holds, permits, refusals, witness
from lockdb.database import LockDB, open_db
from lockdb.enforcements import Enforcement, State
from lockdb.errors import DatabaseError
from lockdb.values import Hold

log = logging.getLogger(__name__)

#: Seconds that the cycle may take to answer: it never blocks, so this is a defect's bound.
ANSWER_LIMIT = 10.0

#: Seconds that looks wait, at the start, for what needs no libvirt.
FIRST_LIMIT = 5.0

T = TypeVar("T")


@dataclass(frozen=True)
class Stop:
    """End the cycle."""


@dataclass(frozen=True)
class Listing:
    """The guests that libvirt shows, and why it may not show all."""

    guests: Mapping[str, Guest]
    error: str = ""


@dataclass(frozen=True)
class Request:
    """A question from another thread, answered by calling ``answer`` in the cycle's thread."""

    answer: Callable[[Cycle], None]


Message = Wake | Done | Listing | Request | Stop


@dataclass
class Health:
    """What the cycle knows of itself, for status, metrics and the watchdog."""

    started: int
    looked: int = 0
    database_error: str = ""
    libvirt_error: str = ""
    vanished: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()


@dataclass
class Cycle:
    """``run`` until a ``Stop`` arrives in ``inbox``."""

    config: Config
    fences: Sequence[Fence]
    #: Called after each turn with the cycle: the watchdog, the metrics.
    after_turn: Callable[[Cycle], None] = lambda _cycle: None
    inbox: SimpleQueue[Message] = field(default_factory=SimpleQueue)
    #: Seconds after which it turns even if nothing happens, for who watches that it does.
    longest_wait: float = 3600.0
    #: Which holds it is about; the others are none of its business.
    concerns: Callable[[Hold], bool] = lambda _hold: True

    def __post_init__(self) -> None:
        self.health = Health(started=int(time.time()))
        #: How long its turns took, less what they waited for; and its jobs.
        self.turns = Durations()
        self.jobs = Durations()
        #: By hold id: every hold read and not seen to end since.
        self.holds: dict[str, Hold] = {}
        # The same: a source may bring a hundred thousand, and each is asked for by its instance.
        self._of_instance: dict[str, list[Hold]] = {}
        #: Instances with rows that are not lifted.
        self._standing: set[str] = set()
        self._worker = Worker(self.config.database.path, self.config.libvirt.uris, self.fences)
        self._under_way: dict[str, float] = {}
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._again: set[str] = set()
        self._due: dict[str, float] = {}
        self._listing_since: float | None = None
        #: Set while they are written.
        self._notes = threading.Event()
        self._next_look = 0.0
        self._look_again = False
        #: Instances that are to be prepared before any job waits for libvirt, and that are being.
        self._first: list[str] = []
        self._preparing: set[str] = set()
        self._first_until = 0.0

    def wake(self, wake: Wake) -> None:
        """From any thread: look at an instance, or at everything."""
        self.inbox.put(wake)

    def holds_changed(self, instances: Sequence[str]) -> None:
        """From any thread: read the holds again, and look at these instances."""
        self.inbox.put(Request(lambda cycle: cycle.read_holds()))
        for instance in instances:
            self.wake(Wake("hold or permit changed", instance))

    def between_turns(self, action: Callable[[], None]) -> None:
        """From a signal handler: call ``action`` in the cycle's thread, when it may be slow."""
        self.inbox.put(Request(lambda _cycle: action()))

    def stop(self) -> None:
        """End ``run``. May be called from a signal handler."""
        self.inbox.put(Stop())

    def run(self) -> None:
        """Turn until stopped."""
        for fence in self.fences:
            fence.start(self.wake)
        try:
            self._prepare()
            while self._turn():
                self.after_turn(self)
        finally:
            for fence in self.fences:
                fence.stop()

    def ask(self, question: Callable[[Cycle], T]) -> T:
        """From any other thread: the answer, given in the cycle's own. Raises OSError if none."""
        answers: SimpleQueue[T] = SimpleQueue()
        self.inbox.put(Request(lambda cycle: answers.put(question(cycle))))
        try:
            return answers.get(timeout=ANSWER_LIMIT)
        except Empty:
            raise OSError("the cycle does not turn") from None

    @property
    def is_prepared(self) -> bool:
        """What can be done before libvirt answers was done, or takes too long."""
        return not self._first and not self._preparing

    @property
    def is_idle(self) -> bool:
        """No job is under way or waits for its turn."""
        has_jobs = self._under_way or self._waiting or not self.is_prepared
        return not has_jobs and self._listing_since is None

    def is_treated(self, instance: str) -> bool:
        """No job for this instance is under way, waits, or must run again."""
        return instance not in self._under_way and instance not in self._waiting

    def _turn(self) -> bool:
        messages = self._messages()
        began = time.monotonic()
        for message in messages:
            if isinstance(message, Stop):
                return False
            self._take(message)
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + self.config.daemon.interval
            self._look_at_everything()
        if not self.is_prepared and now >= self._first_until:
            self._give_up_preparing()
        for instance in [name for name, due in self._due.items() if due <= now]:
            del self._due[instance]
            self._treat(instance)
        self._dispatch()
        self.turns.add(time.monotonic() - began)
        return True

    def _messages(self) -> list[Message]:
        """All that has arrived; waits for the first until something is due."""
        now = time.monotonic()
        due = [self.longest_wait, self._next_look - now]
        due += [moment - now for moment in self._due.values()]
        if self._under_way or self._waiting:
            due.append(1.0)
        if not self.is_prepared:
            due.append(self._first_until - now)
        found: list[Message] = []
        try:
            found.append(self.inbox.get(timeout=max(0.0, min(due))))
            while True:
                found.append(self.inbox.get_nowait())
        except Empty:
            return found

    def _take(self, message: Message) -> None:
        if isinstance(message, Wake):
            log.debug("woken: %s instance=%s", message.reason, message.instance)
            if message.instance is None:
                self._next_look = 0.0
            elif message.instance in self._held() or message.instance in self._standing:
                self._treat(message.instance)
        elif isinstance(message, Done):
            self._done(message)
        elif isinstance(message, Listing):
            self._listed(message)
        elif isinstance(message, Request):
            message.answer(self)

    # -- starting -----------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Begin with what the database alone orders: libvirt may wait for us, and then start.

        Jobs that look wait until all of it is under way, and READY for its end: ``FIRST_LIMIT``
        at most, since a disk's storage may hang.
        """
        self.read_holds()
        cases = self._cases({})
        self._follow(cases)
        # Of others nothing is known here, and a provider may hold a hundred thousand.
        here = [case for case in cases if case.disks or case.instance in self._standing]
        self._first = [case.instance for case in here if case.holds]
        self._first_until = time.monotonic() + FIRST_LIMIT

    def _give_up_preparing(self) -> None:
        left = [*self._preparing, *self._first]
        log.error(
            "instance=%s and %d more are not prepared in %d s: their disks' storage may hang",
            left[0],
            len(left) - 1,
            FIRST_LIMIT,
        )
        self._first.clear()
        self._preparing.clear()

    def _follow(self, cases: Sequence[Case]) -> None:
        for fence in self.fences:
            fence.follow(cases)

    # -- looking ------------------------------------------------------------------------------

    def read_holds(self) -> None:
        """Take what the database says now. What is gone from it without a trace still holds."""
        now = int(time.time())
        try:
            # Only read: another writer may hold the file for long, and this thread never waits.
            with open_db(self.config.database.path, read_only=True) as lock_db, lock_db.read():
                self._read(lock_db, now)
                problem = lock_db.problem
            if problem and problem != self.health.database_error:
                log.error("the holds are read from a copy: %s", problem)
            self.health.database_error = problem
        except DatabaseError as error:
            if not self.health.database_error:
                log.error("the holds last read stay in force: %s; %s", error, error.hint)
            self.health.database_error = str(error)
        except Exception as error:
            # A row that nobody foresaw must not end the daemon, and what it knows with it.
            log.exception("the holds last read stay in force")
            self.health.database_error = repr(error)

    def _read(self, lock_db: LockDB, now: int) -> None:
        found = holds.active(lock_db, now=now)
        current = {hold.id: hold for hold in found if self.concerns(hold)}
        gone = [hold for hold in self.holds.values() if hold.id not in current]
        vanished = [hold for hold in gone if not holds.exists(lock_db, hold.id)]
        for hold in vanished:
            if hold.id not in self.health.vanished:
                log.error("hold=%s instance=%s vanished, still enforced", hold.id, hold.instance)
        self.health.vanished = tuple(hold.id for hold in vanished)
        # At once, and each by itself: a list of all guests may hang with one of them.
        for hold_id in current.keys() ^ self.holds.keys():
            if hold_id not in self.health.vanished:
                self._treat_later((current.get(hold_id) or self.holds[hold_id]).instance)
        self.holds = current | {hold.id: hold for hold in vanished}
        self._of_instance = {}
        for hold in self.holds.values():
            self._of_instance.setdefault(hold.instance, []).append(hold)
        ours = {fence.name for fence in self.fences}
        self._standing = {
            instance
            for instance, rows in enforcements.standing(lock_db).items()
            if any(row.fence in ours for row in rows)
        }

    def _look_at_everything(self) -> None:
        self.read_holds()
        if self._listing_since is not None:
            # What happened after it began it may not show.
            self._look_again = True
            return
        self._listing_since = time.monotonic()
        if not _started(self._list, name="list"):
            self._listing_since = None

    def _list(self) -> None:
        found: dict[str, Guest] = {}
        lost, absent = [], []
        uris = self.config.libvirt.uris
        for uri in uris:
            try:
                if hypervisor.drivers.is_absent(uri):
                    absent.append(f"{uri}: libvirtd has no such driver")
                else:
                    found |= hypervisor.guests(uri)
            except NoSuchDriver as error:
                absent.append(str(error))
            except Exception as error:
                # A defect too: without an answer there would never be another look.
                lost.append(str(error) or repr(error))
        if len(absent) == len(uris):
            lost += absent
        self.inbox.put(Listing(found, "; ".join(lost)))

    def _listed(self, listing: Listing) -> None:
        self._listing_since = None
        if self._look_again:
            self._look_again, self._next_look = False, 0.0
        if not listing.error:
            self.health.looked = int(time.time())
        if listing.error and not self.health.libvirt_error:
            log.error("libvirt does not show all guests: %s", listing.error)
        self.health.libvirt_error = listing.error
        cases = self._cases(listing.guests)
        self._follow(cases)
        if listing.error:
            # One hung guest hangs the list. Each instance is looked at by itself.
            for instance in self._held() | self._standing:
                self._treat_later(instance)
            return
        absent = []
        for case in cases:
            reached = any(fence.wanted(case) and fence.reaches(case) for fence in self.fences)
            if reached or case.instance in self._standing:
                self._treat(case.instance)
            else:
                absent.append(case)
        if not self._notes.is_set():
            self._notes.set()
            if not _started(self._note, absent, name="notes"):
                self._notes.clear()

    def _cases(self, guests: Mapping[str, Guest]) -> list[Case]:
        by_instance: dict[str, list[Hold]] = {name: [] for name in self._standing}
        for hold in self.holds.values():
            by_instance.setdefault(hold.instance, []).append(hold)
        now = int(time.time())
        try:
            with open_db(self.config.database.path, read_only=True) as lock_db, lock_db.read():
                allowed = permits.active(lock_db, now=now)
                owned = disks.by_instance(lock_db)
        except DatabaseError:
            # No permit is better than one that was revoked.
            allowed, owned = [], {}
        return [
            Case(
                instance=instance,
                now=now,
                holds=found,
                permits=[permit for permit in allowed if permit.instance == instance],
                guest=guests.get(instance),
                disks=owned.get(instance, ()),
            )
            for instance, found in by_instance.items()
        ]

    def _note(self, absent: Sequence[Case]) -> None:
        """Write down what nothing waits for: the hook's refusals, and holds of instances elsewhere.

        In a thread of its own, see ``read_holds``.
        """
        rows = [
            Enforcement(hold.id, fence.name, case.instance, State.NOT_HERE, "", case.now, case.now)
            for case in absent
            for hold in case.holds
            for fence in self.fences
            if fence.asks(hold)
        ]
        try:
            with open_db(self.config.database.path) as lock_db:
                refusals.drain(lock_db, now=int(time.time()))
                enforcements.record_new(lock_db, rows)
                witness.keep(lock_db, int(time.time()))
        except DatabaseError as error:
            log.error("refusals and absent instances are not recorded: %s", error)
        finally:
            self._notes.clear()

    # -- acting -------------------------------------------------------------------------------

    def _held(self) -> set[str]:
        return {hold.instance for hold in self.holds.values()}

    def treat(self, instance: str) -> None:
        """Have a job run for this instance that begins after now."""
        self._treat(instance)

    def _treat(self, instance: str) -> None:
        if instance in self._under_way:
            self._again.add(instance)
        else:
            self._waiting[instance] = None
            # Something is known of it, while most held instances may be on other hosts.
            self._waiting.move_to_end(instance, last=False)

    def _treat_later(self, instance: str) -> None:
        """As ``_treat``, behind all that wait: there may be a thousand of them."""
        if instance in self._under_way:
            self._again.add(instance)
        else:
            self._waiting.setdefault(instance)

    def _dispatch(self) -> None:
        now = time.monotonic()
        patience = self.config.daemon.patience
        stuck = {name for name, since in self._under_way.items() if now - since > patience}
        for instance in stuck - set(self.health.stuck):
            log.error(
                "instance=%s does not answer, its job is under way since %d s", instance, patience
            )
        self.health.stuck = tuple(sorted(stuck))
        while len(self._under_way) - len(stuck) < self.config.daemon.workers:
            job = self._next_job()
            if job is None:
                return
            if not _started(self._work, job, name=job.instance):
                # A turn comes each second meanwhile.
                self._preparing.discard(job.instance)
                self._treat(job.instance)
                return
            self._under_way[job.instance] = now

    def _next_job(self) -> Job | None:
        """What needs no libvirt goes first: what needs it may hang until that one starts."""
        if self._first:
            instance = self._first.pop()
            self._waiting.pop(instance, None)
            # The job that looks is the next one.
            self._again.add(instance)
            self._preparing.add(instance)
            return Job(instance, self._known(instance), looks=False)
        if not self._waiting:
            return None
        instance = next(iter(self._waiting))
        del self._waiting[instance]
        return Job(instance, self._known(instance))

    def _known(self, instance: str) -> list[Hold]:
        return self._of_instance.get(instance, [])

    def _work(self, job: Job) -> None:
        self.inbox.put(self._worker.run(job))

    def _done(self, done: Done) -> None:
        self.jobs.add(time.monotonic() - self._under_way.pop(done.instance))
        self._preparing.discard(done.instance)
        for row in done.changed:
            facts = (row.instance, row.hold, row.fence, row.state)
            took = done.took.get(row.fence, 0.0)
            log.info("instance=%s hold=%s fence=%s state=%s took=%.3f %s", *facts, took, row.detail)
            if row.state not in {State.LIFTED, State.NOT_HERE}:
                self._standing.add(done.instance)
        if done.next_try is not None:
            # From here on by the clock that nobody sets.
            self._due[done.instance] = time.monotonic() + max(0, done.next_try - time.time())
        if done.instance in self._again:
            self._again.discard(done.instance)
            self._treat(done.instance)


def _started(target: Callable[..., None], *arguments: object, name: str) -> bool:
    """Whether there is a thread that does it: what hangs may have all that the unit allows."""
    try:
        threading.Thread(target=target, args=arguments, name=name, daemon=True).start()
    except RuntimeError as error:
        log.error("%s waits: %s; see TasksMax= of the unit", name, error)
        return False
    return True
