"""Numbers about the whole database, for metrics: what is in force, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlite_utils import Database

from lockdb import journal
from lockdb.database import LockDB
from lockdb.permits import active as active_permits


def holds(lock_db: LockDB, *, now: int) -> dict[tuple[str, str], int]:
    """The holds in force, by kind and source."""
    with lock_db.read() as db:
        rows = db.execute(
            "SELECT kind, source, count(*) FROM hold "
            "WHERE released_at IS NULL AND (until IS NULL OR until > ?) GROUP BY 1, 2",
            [now],
        )
        return {(kind, source): count for kind, source, count in rows}


def enforcements(lock_db: LockDB) -> dict[tuple[str, str], int]:
    """What fences did for holds that were not lifted since, by fence and state."""
    with lock_db.read() as db:
        rows = db.execute(
            "SELECT fence, state, count(*) FROM enforcement WHERE state <> 'lifted' GROUP BY 1, 2"
        )
        return {(fence, state): count for fence, state, count in rows}


def permits(lock_db: LockDB, *, now: int) -> dict[str, int]:
    """The permits in force, by operation."""
    return Counter(permit.operation.value for permit in active_permits(lock_db, now=now))


def waiting(lock_db: LockDB) -> dict[str, int]:
    """The releases that wait for an admin's word, by source."""
    with lock_db.read() as db:
        return dict(db.execute("SELECT source, count(*) FROM waiting WHERE NOT kept GROUP BY 1"))


@dataclass(frozen=True)
class Totals:
    """What happened ever, up to one entry of the journal."""

    head: journal.Head = field(default_factory=lambda: journal.Head(0, journal.GENESIS))
    #: Starts that the hook refused, as far as they are in the journal.
    refused: int = 0
    #: QEMUs that were started past libvirt, by what was done about them.
    foreign: Mapping[str, int] = field(default_factory=dict)


def totals(lock_db: LockDB, last: Totals) -> Totals:
    """``last`` and what the journal has after it; all anew if this is another journal.

    Each entry is read once, and what was missed by who counts is not lost to the count.
    """
    with lock_db.read() as db:
        if last.head.seq and not _has(db, last.head):
            last = Totals()
        rows = db.execute(
            "SELECT event, json_extract(entry, '$.action'), "
            "sum(ifnull(json_extract(entry, '$.count'), 1)) FROM journal "
            "WHERE seq > ? AND event IN ('refused', 'foreign_process') GROUP BY 1, 2",
            [last.head.seq],
        )
        refused, foreign = last.refused, Counter(last.foreign)
        for event, action, count in rows:
            if event == "refused":
                refused += count
            else:
                foreign[action] += count
        newest = db.execute("SELECT seq, hash FROM journal ORDER BY seq DESC LIMIT 1").fetchone()
        return Totals(journal.Head(*newest) if newest else last.head, refused, foreign)


def spooled(lock_db: LockDB) -> int:
    """The refusals that the hook counted and nobody moved to the journal yet."""
    with lock_db.read() as db:
        (count,) = db.execute("SELECT ifnull(sum(count), 0) FROM refusal").fetchone()
        return int(count)


def _has(db: Database, head: journal.Head) -> bool:
    row = db.execute("SELECT hash FROM journal WHERE seq = ?", [head.seq]).fetchone()
    return row is not None and row[0] == head.hash
