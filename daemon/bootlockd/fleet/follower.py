"""Keeps in step with the registry: everything at one revision, then what changes, from there on.

    own key ──▶ all keys, page by page, at one revision R ──▶ watch from R ──▶ each event
       ▲                                                          │
       └──────── doubt: read everything again, from another member ┘

Rules kept here:

- The watch begins at R, and what it says of R or before is dropped: a watch from R + 1 may be
  accepted after R + 1 was compacted, and then silently leaves a deletion out.
- What has been seen is known by the last event, never by a header: a replay's frames all carry the
  present revision.
- A watch is alive if this host's own key, which it writes every few seconds, comes back on it. A
  member that hangs, or that lost its majority, says nothing or goes on as if all was well.
- Permits come on a watch of their own. What is applied is told by the holds' alone: one watch may
  be ahead of another. A permit that can't be read, or that a registry under suspicion has, grants
  nothing; one that is deleted ends by itself.
- Any doubt (an error, a silence, a line that can't be read) ends in reading everything again. What
  may be another registry altogether is ``history``.
"""

from __future__ import annotations

import logging
import math
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from bootlockd.fleet import records
from bootlockd.fleet.beat import Audited, Beaten, Beater, BeatFailed, OwnKey
from bootlockd.fleet.client import Client, Stream
from bootlockd.fleet.errors import Compacted, EtcdError, Forbidden
from bootlockd.fleet.facts import Facts, Followed
from bootlockd.fleet.history import Broken, Standing, Suspicion
from bootlockd.fleet.keys import Keys
from bootlockd.fleet.permissions import Permissions
from bootlockd.fleet.records import BadRecord
from bootlockd.fleet.wire import Event, Frame, KeyValue
from bootlockd.sources.base import Observation, Reading, Said

log = logging.getLogger(__name__)

#: Of the watches in one stream.
_HOLDS, _OWN, _PERMITS = 0, 1, 2
#: Frames that wait for the database before etcd has to wait.
_AHEAD = 256
#: Keys whose events are written to the database at once.
_BATCH = 5000
#: How often a snapshot is begun anew that was overtaken by a compaction.
_TRIES = 5
#: Seconds, at most, over which a fleet spreads its reading everything again.
_SPREAD = 60.0
#: Faults that are named; the others are counted.
_NAMED = 3


@dataclass(frozen=True)
class _Ended:
    """The stream has, and why."""

    error: Exception


class _Again(Exception):
    """Read everything anew, at once: nothing is wrong."""


class Rows:
    """What the registry says of each hold: turns its keys and events into observations."""

    def __init__(self, keys: Keys, standing: Standing, held: set[str]) -> None:
        self._keys = keys
        self.permissions = Permissions(keys)
        self.standing = standing
        #: Those that this host holds, as far as has been said here.
        self.held = held
        #: Up to which revision permits are granted and revoked here; 0 while none are.
        self.permits = 0
        #: What is wrong with which hold.
        self.problems: dict[str, str] = {}
        #: Something is no longer wrong, which only reading everything takes back.
        self.is_cleared = False
        self._mods: dict[str, int] = {}

    @property
    def unread(self) -> list[str]:
        """Holds and permits whose value can't be read."""
        new = set(self.problems) - self.held
        return [*sorted(new), *sorted(set(self.problems) - new), *self.permissions.unread]

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong with the registry as a whole."""
        suspicion = self.standing.suspicion
        if not suspicion:
            return ()
        return (
            f"{suspicion.why}: nothing is released or permitted until 'bootlock fleet accept' on"
            " this host",
        )

    @property
    def trouble(self) -> list[str]:
        """All that is wrong, some of it by name."""
        lines = [f"hold {ref}: {problem}" for ref, problem in self.problems.items()]
        lines += self.permissions.faults
        more = [f"and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
        return [*self.faults, *lines[:_NAMED], *more]

    def whole(self, items: list[KeyValue], permits: Sequence[KeyValue], revision: int) -> Reading:
        """Everything, as of ``revision``. Raises Broken."""
        self.problems, self.is_cleared = {}, False
        known, self._mods = self._mods, {}
        for item in items:
            if item.mod < known.get(self._keys.name_of(item.key), 0):
                raise Broken(f"the registry has an older state of {item.key!r:.80}")
        said = tuple(self._observed(item) for item in items)
        self.standing = self.standing.applied(revision)
        self.permissions.forget()
        self.permits = 0 if self.standing.suspicion or self.permissions.refused else revision
        reading = Reading(said, whole=True, revision=self.standing.text, faults=self.faults)
        return self._with_permits(reading, permits)

    def changes(self, events: list[Event], permits: Sequence[Event] = ()) -> Reading:
        """What came on the watches; the last of each key counts."""
        latest = {event.item.key: event for event in events}
        said = [
            self._gone(e.item) if e.deleted else self._observed(e.item) for e in latest.values()
        ]
        revision = max((event.item.mod for event in events), default=0)
        self.standing = self.standing.applied(revision)
        observations = tuple(each for each in said if each)
        reading = Reading(observations, whole=False, revision=self.standing.text)
        written = {event.item.key: event for event in permits}
        self.permissions.gone(event.item for event in written.values() if event.deleted)
        if self.permits:
            self.permits = max(self.permits, *(event.item.mod for event in permits), 0)
        items = [event.item for event in written.values() if not event.deleted]
        return self._with_permits(reading, items)

    def _with_permits(self, reading: Reading, items: Iterable[KeyValue]) -> Reading:
        granted, revoked = self.permissions.read(items)
        self.is_cleared = self.is_cleared or self.permissions.is_cleared
        return replace(
            reading,
            permits=() if self.standing.suspicion else granted,
            revocations=revoked,
            faults=(*reading.faults, *self.permissions.faults),
        )

    def _observed(self, item: KeyValue) -> Observation:
        ref = self._keys.name_of(item.key)
        self._mods[ref] = item.mod
        self._clear(ref)
        try:
            record = records.decoded(ref, item.value)
        except BadRecord as error:
            return self._unknown(ref, f"its value can't be read: {error}")
        if not record.released:
            self.held.add(ref)
            return Observation(ref, Said.HELD, order=record.order, hold_id=ref)
        if self.standing.suspicion and ref in self.held:
            return self._unknown(ref, "it is released, in a registry that is not the one known")
        self.held.discard(ref)
        override = record.released.override
        return Observation(
            ref, Said.RELEASED, evidence=record.evidence, hold_id=ref, override=override
        )

    def _gone(self, item: KeyValue) -> Observation | None:
        ref = self._keys.name_of(item.key)
        self._mods.pop(ref, None)
        self._clear(ref)
        if ref not in self.held:
            # Tidying up after a release.
            return None
        return self._unknown(ref, "its key was deleted, which is no release")

    def _clear(self, ref: str) -> None:
        self.is_cleared = self.problems.pop(ref, None) is not None or self.is_cleared

    def _unknown(self, ref: str, problem: str) -> Observation:
        self.problems[ref] = problem
        return Observation(ref, Said.UNKNOWN, problem=problem, hold_id=ref)


class Follower:
    """Follows from one thread. ``facts`` answers for this host meanwhile."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        name: str,
        facts: Facts,
        standing: Standing,
        held: set[str],
    ) -> None:
        self._client = client
        self._keys = keys
        self._name = name
        self._facts = facts
        self._settings = client.settings
        self._own = OwnKey(client, keys, name)
        self._rows = Rows(keys, standing, held)
        self._count = 0
        self._permits_seen = 0
        self._doubt = ""
        #: Has this host's own key written, if there is something new.
        self._tell: Callable[[], None] = _nobody
        #: Seconds in which what was written must come back on the watch.
        self._lag = 2.0 * self._settings.timeout
        #: Seconds without this host's own key after which it is not written any more.
        self._silence = 3.0 * self._settings.heartbeat + self._lag

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """Until ``stop``. Each reading is in the database when the next is asked for.

        Raises EtcdError when it could not be read at all; once it was, only after a while: a new
        leader takes seconds.
        """
        last = -math.inf
        while not stop.is_set():
            try:
                for reading in self._round(stop):
                    yield reading
                    last = time.monotonic()
            except Broken as broken:
                self._suspect(str(broken))
            except _Again:
                pass
            except EtcdError as error:
                if time.monotonic() > last + self._silence:
                    raise
                self._doubt = f"{_clock()}: {error}"
                log.warning("etcd: everything is read again: %s", error)
                self._client.next_member()
                stop.wait(self._spread())

    def look(self) -> Reading:
        """Everything, once. Raises EtcdError."""
        self._look_for_acceptance()
        self._rows.standing = self._rows.standing.settled()
        try:
            return self._snapshot()
        except Broken as broken:
            self._suspect(str(broken))
            return self._snapshot()

    # -- one round: everything, then the watch ---------------------------------------------------

    def _round(self, stop: threading.Event) -> Iterator[Reading]:
        self._look_for_acceptance()
        self._rows.standing, report = self._own.find(self._rows.standing.settled())
        self._facts.published(report)
        reading = self._snapshot()
        yield reading
        self._note_applied()
        start = self._rows.standing.revision
        own = self._keys.host(self._name)
        ranges = [self._keys.holds, (own, b"")]
        if not self._rows.permissions.refused:
            ranges.append(self._keys.permits)
        self._permits_seen = start
        inbox: queue.Queue[object] = queue.Queue()
        room = threading.Semaphore(_AHEAD)
        stream = self._client.watch(ranges, start, silence=self._silence)
        reader = threading.Thread(
            target=_read, args=[stream, inbox, room], name="fleet-watch", daemon=True
        )
        beater = Beater(
            self._client,
            self._keys,
            self._settings,
            self._own,
            self._name,
            self._facts.report,
            self._facts.path,
            inbox,
            start,
        )
        reader.start()
        beater.start()
        self._tell = beater.tell
        try:
            yield from self._watched(inbox, room, stop)
        finally:
            beater.stop()
            stream.close()
            # A reader that waits for room must see that it is over.
            room.release(_AHEAD)

    def _snapshot(self) -> Reading:
        for _ in range(_TRIES):
            items: list[KeyValue] = []
            revision = count = 0
            with suppress(Compacted):
                for page in self._client.pages(*self._keys.holds):
                    self._rows.standing = self._rows.standing.seen(page.header)
                    revision = revision or page.header.revision
                    count = count or page.count
                    items += page.items
                if len(items) != count:
                    raise EtcdError(f"the registry has {count} holds and gave {len(items)}")
                permits = self._permits(revision)
                self._count = count
                return self._rows.whole(items, permits, revision)
        raise EtcdError("the registry is compacted faster than it can be read")

    def _permits(self, revision: int) -> list[KeyValue]:
        """All permits at ``revision``. Not to be let read them is no reason to lose the holds."""
        items: list[KeyValue] = []
        self._rows.permissions.refused = ""
        try:
            for page in self._client.pages(*self._keys.permits, revision=revision):
                self._rows.standing = self._rows.standing.seen(page.header)
                items += page.items
        except Forbidden as error:
            self._rows.permissions.refused = f"permits can't be read: {error}"
            return []
        return items

    def _watched(
        self,
        inbox: queue.Queue[object],
        room: threading.Semaphore,
        stop: threading.Event,
    ) -> Iterator[Reading]:
        liveness = _Liveness(self._lag, self._silence)
        cleared: float | None = None
        proof = 0.0
        while not stop.is_set():
            events: list[Event] = []
            permits: list[Event] = []
            is_news = False
            for message in _several(inbox):
                if isinstance(message, Frame):
                    room.release()
                    (permits if message.watch == _PERMITS else events).extend(
                        self._events(message, liveness)
                    )
                else:
                    is_news = self._heard(message, liveness) or is_news
                if len(events) + len(permits) > _BATCH:
                    break
            # The database is written to for a change, and now and then to say that all is well.
            if events or permits or (is_news and time.monotonic() > proof):
                yield self._rows.changes(events, permits)
                self._note_applied()
                proof = time.monotonic() + self._settings.heartbeat / 2
            if inbox.empty():
                liveness.check(self._rows.standing.revision)
            if self._look_for_acceptance():
                raise _Again
            if self._rows.is_cleared and cleared is None:
                cleared = time.monotonic() + self._spread()
            if cleared and time.monotonic() > cleared:
                raise _Again

    def _events(self, frame: Frame, liveness: _Liveness) -> list[Event]:
        """The new events of holds, or of permits, in one frame."""
        standing = self._rows.standing
        standing.check_cluster(frame.header)
        if frame.problem:
            raise EtcdError(frame.problem)
        if frame.created and frame.header.revision < standing.revision:
            raise EtcdError("this member is behind what is known")
        if frame.watch == _OWN:
            liveness.came_back(max((event.item.mod for event in frame.events), default=0))
            return []
        if frame.watch == _PERMITS:
            return [event for event in frame.events if event.item.mod > self._permits_seen]
        return [event for event in frame.events if event.item.mod > standing.revision]

    def _heard(self, message: object, liveness: _Liveness) -> bool:
        """What another thread found out. Whether it is worth a reading."""
        if isinstance(message, Beaten):
            standing = self._rows.standing.seen(message.header)
            self._rows.standing = replace(standing, own=message.own, nonce=message.nonce)
            liveness.beaten(message.own)
            return True
        if isinstance(message, Audited):
            liveness.expect(message.revision)
        if isinstance(message, BeatFailed | _Ended):
            if isinstance(message.error, EtcdError | Broken):
                raise message.error
            raise EtcdError(f"a defect: {message.error!r}") from message.error
        return False

    # -- what others see of it -------------------------------------------------------------------

    def _note_applied(self) -> None:
        standing = self._rows.standing
        self._facts.followed = Followed(
            standing.cluster,
            standing.revision,
            self._rows.permits,
            self._rows.unread,
            self._rows.trouble,
            self._doubt,
        )
        self._tell()

    def _suspect(self, why: str) -> None:
        log.error("etcd: %s; what it releases is not released here until it is accepted", why)
        suspicion = Suspicion(secrets.token_hex(4), why, int(time.time()))
        standing = self._rows.standing.suspecting(suspicion)
        self._rows = Rows(self._keys, standing, self._rows.held)

    def _spread(self) -> float:
        """Seconds to wait: a fleet must not read everything at the same moment."""
        return secrets.randbelow(1000) / 1000 * min(_SPREAD, 0.2 + self._count / 1000)

    def _look_for_acceptance(self) -> bool:
        """Whether an admin has just accepted the registry as it is."""
        suspicion = self._rows.standing.suspicion
        if not suspicion or self._facts.accepted() != suspicion.id:
            return False
        log.info("etcd: accepted as it is: %s", suspicion.why)
        self._rows.standing = replace(self._rows.standing, suspicion=None)
        return True


class _Liveness:
    """Whether what is known to have been written has come on the watch, in time."""

    def __init__(self, lag: float, silence: float) -> None:
        self._lag = lag
        self._silence = silence
        self._last_beat = time.monotonic()
        self._came_back = 0
        self._own: tuple[int, float] | None = None
        self._expected: tuple[int, float] | None = None

    def beaten(self, own: int) -> None:
        """The own key was written."""
        self._last_beat = time.monotonic()
        if own > self._came_back and self._own is None:
            self._own = (own, self._last_beat + self._lag)

    def came_back(self, own: int) -> None:
        """The watch brought it."""
        self._came_back = max(self._came_back, own)
        if self._own and own >= self._own[0]:
            self._own = None

    def expect(self, revision: int) -> None:
        """Some hold was written at ``revision``."""
        self._expected = (revision, time.monotonic() + self._lag)

    def check(self, revision: int) -> None:
        """Holds have come up to ``revision``. Raises EtcdError."""
        now = time.monotonic()
        if self._own and now > self._own[1]:
            raise EtcdError("what this host wrote does not come back on the watch")
        if self._expected and revision >= self._expected[0]:
            self._expected = None
        if self._expected and now > self._expected[1]:
            raise EtcdError("a change of a hold did not come on the watch")
        if now > self._last_beat + self._silence:
            raise EtcdError("this host's own key is not written any more")


def _read(stream: Stream, inbox: queue.Queue[object], room: threading.Semaphore) -> None:
    """The reader's thread: does nothing that could keep it from reading, but wait for room."""
    try:
        for frame in stream:
            room.acquire()
            inbox.put(frame)
    except Exception as error:
        inbox.put(_Ended(error))


def _several(inbox: queue.Queue[object]) -> Iterator[object]:
    """What is there, waiting up to a second for the first."""
    with suppress(queue.Empty):
        yield inbox.get(timeout=1.0)
        while True:
            yield inbox.get_nowait()


def _nobody() -> None:
    """Nothing is written yet."""


def _clock() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
