"""What this host can say of itself, from its database."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bootlockd.fleet.hosts import MOST, Report
from lockdb import enforcements, epochs, journal, proofs, sources
from lockdb.database import LockDB, open_db
from lockdb.enforcements import Enforcement
from lockdb.errors import DatabaseError
from lockdb.journal import Head

#: As in ``hold.source``.
SOURCE = "etcd"


@dataclass(frozen=True)
class Followed:
    """What the follower knows: how far the database is with the registry, and what is wrong."""

    cluster: str = ""
    applied: int = 0
    permits: int = 0
    unread: Sequence[str] = ()
    trouble: Sequence[str] = ()
    doubt: str = ""


class Facts:
    """Looks into the database at ``path`` when asked to; only at what can have changed."""

    def __init__(self, path: Path, name: str, heartbeat: int) -> None:
        self.path = path
        self._name = name
        self._heartbeat = heartbeat
        self._witness = Head(0, journal.GENESIS)
        self._seq = -1
        self._here: dict[str, dict[str, str]] = {}
        self._unlooked: list[str] = []
        self._waiting: list[str] = []
        #: Replaced as a whole by the follower's thread.
        self.followed = Followed()

    def published(self, report: Report | None) -> None:
        """What the registry has of this host from before: its journal must still contain it."""
        if report and not report.problem:
            self._witness = Head(*report.journal)

    def report(self) -> Report:
        """As of now. Never raises: a database that can't be read is among the troubles."""
        followed = self.followed
        trouble = list(followed.trouble)
        armed: list[Mapping[str, object]] = []
        try:
            with open_db(self.path, read_only=True) as lock_db, lock_db.read():
                armed = [
                    {"uri": proof.uri, "armed": proof.armed, "at": proof.at}
                    for proof in proofs.stored(lock_db)
                ]
                self._look(lock_db, trouble)
        except DatabaseError as error:
            trouble.append(str(error))
        return Report(
            self._name,
            at=int(time.time()),
            heartbeat=self._heartbeat,
            cluster=followed.cluster,
            applied=followed.applied,
            permits=followed.permits,
            unread=followed.unread,
            waiting=self._waiting,
            unlooked=self._unlooked,
            here=self._here,
            armed=armed,
            journal=(self._witness.seq, self._witness.hash),
            trouble=trouble,
            doubt=followed.doubt,
        )

    def accepted(self) -> str:
        """Which suspicion an admin of this host accepted last; "" if that can't be read."""
        try:
            with open_db(self.path, read_only=True) as lock_db:
                return epochs.accepted(lock_db)
        except DatabaseError:
            return ""

    def _look(self, lock_db: LockDB, trouble: list[str]) -> None:
        head = journal.head(lock_db.db)
        if journal.contains(lock_db.db, self._witness):
            self._witness = head
        else:
            # What was published stays so, as the evidence.
            trouble.append(
                f"the journal no longer has its entry {self._witness.seq} as it was published"
            )
        self._waiting = sources.waiting_ids(lock_db, SOURCE, limit=MOST + 1)
        # Whatever changes a row or a hold is in the journal; but not that nothing is here.
        if head.seq != self._seq or self._unlooked:
            rows = enforcements.standing_of_source(lock_db, SOURCE, limit=8 * MOST)
            self._here = _by_hold(rows)
            self._unlooked = enforcements.unlooked(lock_db, SOURCE, limit=MOST + 1)
            self._seq = head.seq


def _by_hold(rows: Sequence[Enforcement]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        found.setdefault(row.hold, {})[row.fence] = row.state
    return found
