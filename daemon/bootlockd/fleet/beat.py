"""This host's own key: written every few seconds, and what its writing proves.

Each write is a compare-and-swap on the key's last place, with a nonce. So it is at once the sign
of life, the acknowledgement of holds, and the proof that the registry still has what was written
into it last: one that has not was wiped or restored.
"""

from __future__ import annotations

import json
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bootlockd.config import Fleet
from bootlockd.fleet import hosts
from bootlockd.fleet.client import Client
from bootlockd.fleet.errors import EtcdError, NoMember
from bootlockd.fleet.history import Broken, Standing
from bootlockd.fleet.keys import Keys
from bootlockd.fleet.lease import Lease
from bootlockd.fleet.wire import Header
from bootlockd.inotify import Inotify, Mask

log = logging.getLogger(__name__)

#: Seconds between two writes, whatever happens in between.
PAUSE = 1.0
#: Seconds between two comparisons of what was followed with what there is.
AUDIT = 3600.0


@dataclass(frozen=True)
class Beaten:
    """The own key was written: at revision ``own``, for the ``nonce``-th time."""

    header: Header
    own: int
    nonce: int


@dataclass(frozen=True)
class Audited:
    """Some hold was written at this revision: by now its event should have come."""

    revision: int


@dataclass(frozen=True)
class BeatFailed:
    """It could not be written, or not as it should be."""

    error: Exception


class OwnKey:
    """The key, and where it was left.

    One for as long as the process runs: a beater that is ended may be in the middle of a write when
    the next one begins, and the next one waits for it here.
    """

    def __init__(self, client: Client, keys: Keys, name: str) -> None:
        self._client = client
        self._key = keys.host(name)
        self._name = name
        self._run = secrets.token_hex(8)
        self._own = 0
        self._nonce = 0
        self._lock = threading.Lock()

    def find(self, standing: Standing) -> tuple[Standing, hosts.Report | None]:
        """How far the registry is, and what it has of this host. Raises Broken or EtcdError."""
        with self._lock:
            header, there = self._client.get(self._key)
            standing = standing.seen(header)
            nonce = hosts.signature(there.value)[1] if there else 0
            if there is None and standing.own:
                raise Broken("the registry has lost this host's own key")
            if there and (there.mod < standing.own or nonce < standing.nonce):
                raise Broken("the registry has an older state of this host's own key")
            self._own, self._nonce = (there.mod if there else 0), nonce
            return standing, hosts.decoded(self._name, there.value) if there else None

    def write(self, report: hosts.Report) -> Beaten:
        """Raises Broken or EtcdError; after the latter it may have been written all the same."""
        with self._lock:
            return self._write(report)

    def _write(self, report: hosts.Report) -> Beaten:
        nonce = self._nonce + 1
        value = hosts.encoded(report, run=self._run, nonce=nonce)
        header, written, there = self._client.write(self._key, value, mod=self._own)
        if written:
            own = header.revision
        elif there is None or there.mod < self._own:
            raise Broken("the registry has lost what this host wrote into its own key")
        elif hosts.signature(there.value) == (self._run, nonce):
            # It had been written when there was no answer.
            own = there.mod
        else:
            raise EtcdError(
                f"another writes the key of host {self._name}",
                "is a second host called so, or is bootlockd --sync run twice? see fleet.host",
            )
        self._own, self._nonce = own, nonce
        return Beaten(header, own, nonce)


class Beater:
    """Writes the own key from a thread of its own, and tells how it went through ``inbox``."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        settings: Fleet,
        own: OwnKey,
        name: str,
        look: Callable[[], hosts.Report],
        database: Path,
        inbox: queue.Queue[object],
        audited: int,
    ) -> None:
        self._client = client
        self._holds = keys.holds
        self._settings = settings
        self._own = own
        self._look = look
        self._database = database
        self._inbox = inbox
        self._alive = Lease(client, keys.alive(name), ttl=3 * settings.heartbeat)
        self._changes = Inotify()
        self._changed = threading.Event()
        self._stopped = False
        self._audited = audited
        self._next_audit = time.monotonic() + AUDIT * (1 + secrets.randbelow(1000) / 1000)

    def start(self) -> None:
        """Begin."""
        for name, target in (("fleet-changes", self._watch), ("fleet-beat", self._run)):
            threading.Thread(target=target, name=name, daemon=True).start()

    def stop(self) -> None:
        """Write nothing more."""
        self._stopped = True
        self._changes.close()
        self._changed.set()

    def tell(self) -> None:
        """There may be something new: what the follower knows is in no file."""
        self._changed.set()

    def _watch(self) -> None:
        try:
            self._changes.watch(self._database.parent, Mask.MODIFY | Mask.MOVED_TO | Mask.ONLYDIR)
            for change in self._changes:
                if change.name.startswith(self._database.name) or change.mask & Mask.OVERFLOW:
                    self._changed.set()
        except OSError as error:
            # Then it is said with the next sign of life.
            log.error("%s is not watched: %s", self._database.parent, error)

    def _run(self) -> None:
        said: hosts.Report | None = None
        due = 0.0
        patience = 2.0 * self._settings.timeout
        answered = time.monotonic()
        while not self._stopped:
            try:
                self._changed.clear()
                report = self._look()
                is_due = time.monotonic() >= due
                if is_due:
                    self._alive.hold()
                if is_due or _news(report, said):
                    self._inbox.put(self._own.write(report))
                    said = report
                if is_due:
                    due = time.monotonic() + self._settings.heartbeat
                self._audit()
                answered = time.monotonic()
            except NoMember as error:
                # A new leader takes a moment, for which nobody has to read everything again.
                if time.monotonic() > answered + patience:
                    self._inbox.put(BeatFailed(error))
                    return
                due = 0.0
            except Exception as error:
                # Whatever it is: the follower must not take silence for health.
                self._inbox.put(BeatFailed(error))
                return
            time.sleep(PAUSE)
            self._changed.wait(max(0.0, due - time.monotonic()))

    def _audit(self) -> None:
        if time.monotonic() < self._next_audit:
            return
        page = self._client.page(*self._holds, since=self._audited + 1, keys_only=True)
        self._next_audit, self._audited = time.monotonic() + AUDIT, page.header.revision
        if page.items:
            self._inbox.put(Audited(max(item.mod for item in page.items)))


def _news(report: hosts.Report, said: hosts.Report | None) -> bool:
    return said is None or _content(report) != _content(said)


def _content(report: hosts.Report) -> str:
    # A proof that is only newer, and entries of the journal alone, can wait for the next beat.
    armed = [proof["armed"] for proof in report.armed]
    still = replace(report, at=0, armed=(), journal=(0, ""))
    return json.dumps([armed, repr(still)])
