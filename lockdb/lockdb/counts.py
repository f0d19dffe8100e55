"""Numbers about the whole database, for metrics: what is in force, and what came of it."""

from __future__ import annotations

from lockdb.database import LockDB


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


class Refusals:
    """How many starts were refused, ever. Reads each entry of the journal once."""

    def __init__(self) -> None:
        self._seq = 0
        self._count = 0

    def total(self, lock_db: LockDB) -> int:
        """Those in the journal and those that the hook counted since."""
        with lock_db.read() as db:
            (last,) = db.execute("SELECT ifnull(max(seq), 0) FROM journal").fetchone()
            if last < self._seq:
                # Another database.
                self._seq = self._count = 0
            (new,) = db.execute(
                "SELECT ifnull(sum(json_extract(entry, '$.count')), 0) FROM journal "
                "WHERE seq > ? AND event = 'refused'",
                [self._seq],
            ).fetchone()
            (spooled,) = db.execute("SELECT ifnull(sum(count), 0) FROM refusal").fetchone()
        self._seq, self._count = last, self._count + new
        return int(self._count + spooled)
