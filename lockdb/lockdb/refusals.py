"""The hook's spool of refusals, and its way into the journal.

The hook can't chain hashes: it counts refusals in the table ``refusal``, one row for each
instance, operation and hold, however often a start is retried. ``drain`` turns those rows into
journal entries.
Beyond ``SPOOL_ROWS`` rows the hook counts into one row with empty keys.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from xml.sax.saxutils import unescape

from lockdb import journal
from lockdb.database import LockDB

SPOOL_ROWS = 10_000
_ENTITIES = {"&apos;": "'", "&quot;": '"'}


@dataclass(frozen=True)
class Refusal:
    """``count`` refusals of one instance between two times. Who asked is unknown to the hook."""

    instance: str
    operation: str
    hold: str
    #: The domain's name at the last refusal, at most 255 characters of libvirt's escaped text.
    name: str
    first_at: int
    last_at: int
    count: int


_FIELDS = {field.name for field in fields(Refusal)}


def pending(lock_db: LockDB) -> list[Refusal]:
    """What the hook recorded and ``drain`` has not yet moved, oldest first."""
    with lock_db.read() as db:
        # As bytes: a name that is not UTF-8 must not keep the others from the journal.
        rows = db.query(
            "SELECT instance, operation, hold, CAST(name AS BLOB) AS name, first_at, last_at, count"
            " FROM refusal ORDER BY first_at, instance, operation, hold"
        )
        return [Refusal(**row | {"name": _name(row["name"])}) for row in rows]


def of_instance(lock_db: LockDB, instance: str) -> list[Refusal]:
    """All recorded refusals of an instance, from the journal and the spool, oldest first."""
    with lock_db.read() as db:
        drained = [
            {name: value for name, value in json.loads(entry).items() if name in _FIELDS}
            for entry in journal.entries(db, instance=instance, event="refused")
        ]
        spooled = [refusal for refusal in pending(lock_db) if refusal.instance == instance]
    return [Refusal(**facts) for facts in drained] + spooled


def drain(lock_db: LockDB, *, now: int) -> int:
    """Move the spool into the journal, in one transaction; the number of entries made."""
    with lock_db.write() as db:
        rows = pending(lock_db)
        for refusal in rows:
            journal.append(db, "refused", now, **asdict(refusal))
        if rows:
            db.execute("DELETE FROM refusal")
    return len(rows)


def _name(escaped: bytes) -> str:
    return unescape(escaped.decode("utf-8", "replace"), _ENTITIES)
