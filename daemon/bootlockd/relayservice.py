"""``bootlockd --relay``: one relay of several, of which only who has the office reads and writes.

Two threads: one keeps the office, since a look at a large cloud takes longer than its lease; the
other follows Nova for as long as the office is had. The main thread only watches both.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from bootlockd import relaystate
from bootlockd.config import Config, NovaScope
from bootlockd.errors import BootlockdError, ConfigError
from bootlockd.fleet.client import Client
from bootlockd.fleet.errors import EtcdError
from bootlockd.fleet.keys import Keys, host_name
from bootlockd.fleet.lease import Office, TermClient
from bootlockd.fleet.registry import OFFICE, Registry
from bootlockd.fleet.relays import RelayReport
from bootlockd.fleet.wire import Term
from bootlockd.notify import Announcer
from bootlockd.relay import Relay, Standing
from bootlockd.sources.base import Known, Order, Reading, Source, SourceError
from bootlockd.sources.nova import NovaSource
from bootlockd.sources.runner import (
    END_LIMIT,
    FIRST_PAUSE,
    LEAST_PATIENCE,
    LONGEST_PAUSE,
    LOOK,
    SyncFailed,
    limits_of,
)
from lockdb.errors import AlreadyEnded, LockDBError, Retained
from lockdb.when import iso

log = logging.getLogger(__name__)

#: Seconds after which the office of a relay that died is another's.
LEASE = 15
#: Seconds between two notes in the registry, where nothing has changed but the time.
NOTED = 10.0


class RegistryWriter:
    """The registry, as a relay writes it."""

    def __init__(self, client: TermClient, keys: Keys) -> None:
        self._client = client
        self._registry = Registry(client, keys)

    def begin(self, term: Term) -> None:
        """Write in this term from now on, and nothing once it is over."""
        self._client.term = term

    def standing(self) -> Sequence[Standing]:
        """All holds that can be read: of what can't, nobody knows whose it is."""
        with _in_words():
            entries = self._registry.holds()
        records = [entry.record for entry in entries if entry.record]
        return [
            Standing(record.id, record.order, end.at if end else None, end.by if end else "")
            for record in records
            for end in [record.released]
            if record.order
        ]

    def place(self, hold_id: str, order: Order, *, now: int) -> None:
        """Place a hold; one that is there already with this id is left as it is."""
        with _in_words():
            self._registry.place(order, now=now, hold_id=hold_id)

    def note(self, report: RelayReport) -> None:
        """Say how far this relay is."""
        with _in_words():
            self._registry.note_relay(report)

    def release(self, hold_id: str, *, reason: str, by: str, now: int) -> None:
        """End it; one that has ended stays so, and so does one that is retained by now."""
        with _in_words():
            try:
                self._registry.release(hold_id, reason=reason, by=by, now=now)
            except (AlreadyEnded, Retained) as error:
                log.info("relay: %s", error)


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except EtcdError as error:
        raise SourceError(f"etcd: {error}", error.hint) from error
    except LockDBError as error:
        raise SourceError(f"the registry: {error}", error.hint) from error


class _Heard:
    """A source that calls ``done`` when what it said has been written."""

    def __init__(self, source: Source, done: Callable[[], None]) -> None:
        self.name = source.name
        self._source = source
        self._done = done

    def read(self, known: Known) -> Reading:
        return self._source.read(known)

    def follow(self, known: Known, stop: threading.Event) -> Iterator[Reading]:
        for reading in self._source.follow(known, stop):
            yield reading
            # Whoever asks for the next one is through with this one.
            self._done()


class RelayService:
    """``run`` blocks until ``stop``, which may be called from a signal handler."""

    def __init__(self, config: Config, source: Source, *, lease: int = LEASE) -> None:
        fleet = config.fleet
        self._rest = lease / 5
        self._stop = threading.Event()
        self._wake = threading.Event()
        #: Set while the office is not ours; what follows Nova ends with it.
        self._lost = threading.Event()
        self._lost.set()
        # A client is one thread's own.
        asks, writes = Client(fleet), TermClient(fleet)
        self._clients = [asks, writes]
        keys = Keys(fleet.prefix)
        self._name = host_name(fleet)
        self._office = Office(asks, keys.lead(OFFICE), name=self._name, ttl=lease)
        self._writer = RegistryWriter(writes, keys)
        self._relay = Relay(
            _Heard(source, self._written),
            self._writer,
            self._office,
            limits_of(config, source.name),
        )
        self._state = relaystate.given_directory(os.environ)
        self._unsaid = ""
        self._noted: tuple[float, RelayReport] = -NOTED, RelayReport()
        self._stale_after = config.sync.stale_after
        self._patience = max(
            LEAST_PATIENCE, config.sync.stale_after, 2 * config.sync.interval + LONGEST_PAUSE
        )
        self._heard = {"office": time.monotonic(), "relay": time.monotonic()}
        self._fresh = time.monotonic()
        self._is_stale = False
        self._pause = FIRST_PAUSE
        self._problems: dict[str, str] = {}
        self._actions: list[Callable[[], None]] = []
        self._announcer = Announcer()

    def run(self) -> None:
        """Serve. Raises SyncFailed when a thread is lost."""
        threads = [
            threading.Thread(target=self._keep, name="office", daemon=True),
            threading.Thread(target=self._follow, name="relay", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            self._watch(threads)
        finally:
            self.stop()
            end = time.monotonic() + END_LIMIT
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))
            if not any(thread.is_alive() for thread in threads):
                self._give_back()

    def stop(self) -> None:
        """End ``run``. All holds stay."""
        self._stop.set()
        self._lost.set()
        self._wake.set()

    def between_turns(self, action: Callable[[], None]) -> None:
        """From a signal handler: call ``action`` in the thread that runs, when it may be slow."""
        self._actions.append(action)
        self._wake.set()

    # -- the office -----------------------------------------------------------------------------

    def _keep(self) -> None:
        had = False
        while not self._stop.is_set():
            try:
                mine = self._office.ask()
                self._well("office")
            except EtcdError as error:
                mine = self._office.term is not None
                self._failed("office", error)
            if mine != had:
                log.info("relay: the office is %s", "ours" if mine else "not ours")
            had = mine
            if mine and not self._stop.is_set():
                self._lost.clear()
            else:
                self._lost.set()
            self._wake.set()
            self._stop.wait(self._rest)
        # ``stop`` may have come between the question and its answer.
        self._lost.set()

    def _give_back(self) -> None:
        try:
            self._office.give_back()
        except EtcdError as error:
            log.info("relay: the office is another's when its lease is over: %s", error)
        for client in self._clients:
            client.close()

    # -- Nova -----------------------------------------------------------------------------------

    def _follow(self) -> None:
        while not self._stop.is_set():
            if self._lost.is_set():
                self._well("relay")
                # What one says of itself is the leader's to say.
                self._problems.pop("note", None)
                self._fresh = time.monotonic()
                self._stop.wait(self._rest / 2)
                continue
            try:
                self._relay.serve(self._lost)
                if not self._lost.is_set():
                    # Nova ended without a word, or the lease ran out and is asked for anew.
                    self._stop.wait(self._rest)
            except Exception as error:
                if not isinstance(error, SourceError):
                    log.exception("relay failed")
                self._failed("relay", error)
                # Not all relays of a site at the same moment.
                self._stop.wait(self._pause * random.uniform(0.7, 1.3))  # noqa: S311
                self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def _written(self) -> None:
        self._pause = FIRST_PAUSE
        self._fresh = time.monotonic()
        self._well("relay")
        self._note()

    def _note(self) -> None:
        """Tell the registry."""
        report, (at, before) = self._report(), self._noted
        if time.monotonic() < at + NOTED and replace(report, read_at=before.read_at) == before:
            return
        try:
            self._writer.note(report)
        except SourceError as error:
            # Of holds it writes all the same what it may.
            self._failed("note", error, "'bootlock fleet status' does not see how far this is")
            return
        self._well("note")
        self._noted = time.monotonic(), report

    # -- what is said ---------------------------------------------------------------------------

    def _report(self) -> RelayReport:
        written = self._relay.written
        return RelayReport(
            self._name,
            leads=self._office.term is not None,
            read_at=written.at,
            whole_at=written.whole_at,
            stale_after=self._stale_after,
            holds=written.holds,
            faults=written.faults,
            waiting=written.waiting,
            failing=tuple(sorted(self._problems)),
        )

    def _well(self, what: str) -> None:
        if self._problems.pop(what, ""):
            log.info("relay: %s: well again", what)
        self._heard[what] = time.monotonic()

    def _failed(
        self, what: str, error: Exception, meaning: str = "nothing is written, all holds stay"
    ) -> None:
        hint = error.hint if isinstance(error, BootlockdError) else ""
        line = " ".join((f"{error}; {hint}" if hint else str(error)).split())
        if line != self._problems.get(what):
            log.error("relay: %s: %s: %s", what, meaning, line)
        self._problems[what] = line
        self._heard[what] = time.monotonic()

    def _watch(self, threads: Sequence[threading.Thread]) -> None:
        while not self._stop.is_set():
            while self._actions:
                self._actions.pop(0)()
            now = time.monotonic()
            for thread in threads:
                silence = now - self._heard[thread.name]
                if not thread.is_alive() and not self._stop.is_set():
                    raise SyncFailed(f"the thread {thread.name} has died")
                if silence > self._patience:
                    raise SyncFailed(f"the thread {thread.name} is silent for {int(silence)} s")
            self._look_at_age(now - self._fresh)
            report = self._report()
            self._save(report)
            self._announcer.turned(_summary(report))
            self._wake.wait(min(LOOK, self._announcer.rest))
            self._wake.clear()

    def _look_at_age(self, age: float) -> None:
        is_stale = age > self._stale_after
        if is_stale and not self._is_stale:
            log.error("relay: nothing of Nova was written for %d s", age)
        elif self._is_stale and not is_stale:
            log.info("relay: what Nova says is written again")
        self._is_stale = is_stale

    def _save(self, report: RelayReport) -> None:
        if self._state is None:
            return
        problem = ""
        try:
            relaystate.save(self._state, report)
        except OSError as error:
            problem = str(error)
        if problem and problem != self._unsaid:
            log.error("relay: its state can't be written: %s", problem)
        self._unsaid = problem


def _summary(report: RelayReport) -> str:
    """For ``systemctl status``."""
    parts = ["leads" if report.leads else "stands by"]
    if report.leads and report.read_at:
        whole = iso(report.whole_at) if report.whole_at else "never"
        parts.append(f"{report.holds} holds; Nova read at {iso(report.read_at)}, whole at {whole}")
    if report.leads and report.waiting:
        parts.append(f"{report.waiting} releases wait")
    if report.failing:
        parts.append(f"failing: {', '.join(report.failing)}")
    return "; ".join(parts)


def relay_service(config: Config) -> RelayService:
    """The relay that the configuration asks for. Raises ConfigError if it asks for none."""
    if not config.fleet.endpoints or not config.sources.nova.cloud:
        hint = "give [fleet] endpoints and [sources.nova] cloud, see docs/nova.md"
        raise ConfigError("a relay needs a registry to write and a Nova to read", hint)
    settings = replace(config.sources.nova, scope=NovaScope.CLOUD)
    return RelayService(config, NovaSource(settings, interval=config.sync.interval))
