"""What each fence did for each hold on this host: the acknowledgement of a hold.

One row for each hold and fence, written by the daemon, read by the CLI. Only a change of state or
detail goes to the journal; that it was found true again only moves ``at``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from lockdb import journal
from lockdb.database import LockDB


class State(StrEnum):
    """How far a fence has come for a hold."""

    PENDING = "pending"
    ENFORCED = "enforced"
    FAILED = "failed"
    LIFTED = "lifted"
    NOT_HERE = "not_here"

    @property
    def is_final(self) -> bool:
        """Nothing more happens without something new."""
        return self is not State.PENDING


@dataclass(frozen=True)
class Enforcement:
    """One row: true since ``since``, last proven at ``at``, tried again at ``next_try``."""

    hold: str
    fence: str
    instance: str
    state: State
    detail: str
    since: int
    at: int
    next_try: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, keys as in the table."""
        return asdict(self)


def record(lock_db: LockDB, rows: Iterable[Enforcement]) -> list[Enforcement]:
    """Store rows; ``since`` stays where state and detail are what they were. Those that changed."""
    changed = []
    with lock_db.write() as db:
        for row in rows:
            last = _select(lock_db, "hold = ? AND fence = ?", [row.hold, row.fence])
            same = bool(last) and (last[0].state, last[0].detail) == (row.state, row.detail)
            since = last[0].since if same else row.since
            db.table("enforcement").upsert(asdict(row) | {"since": since}, pk=("hold", "fence"))
            if not same:
                journal.append(
                    db,
                    "enforcement",
                    row.at,
                    hold=row.hold,
                    fence=row.fence,
                    instance=row.instance,
                    state=row.state,
                    detail=row.detail,
                )
                changed.append(row)
    return changed


def record_new(lock_db: LockDB, rows: Iterable[Enforcement]) -> None:
    """Store rows for holds and fences that have none yet. Nothing was done: no journal entry."""
    with lock_db.write() as db:
        db.table("enforcement").insert_all(
            (asdict(row) for row in rows), pk=("hold", "fence"), ignore=True
        )


def of_hold(lock_db: LockDB, hold: str) -> list[Enforcement]:
    """The rows of one hold, by fence."""
    return _select(lock_db, "hold = ? ORDER BY fence", [hold])


def of_instance(lock_db: LockDB, instance: str) -> list[Enforcement]:
    """The rows of all holds on an instance, by hold and fence."""
    return _select(lock_db, "instance = ? ORDER BY hold, fence", [instance])


def standing(lock_db: LockDB) -> dict[str, list[Enforcement]]:
    """The rows of what must be kept up or undone on this host, by instance."""
    found: dict[str, list[Enforcement]] = {}
    for row in _select(lock_db, "state NOT IN ('lifted', 'not_here') ORDER BY hold, fence", []):
        found.setdefault(row.instance, []).append(row)
    return found


def standing_of_source(lock_db: LockDB, source: str, *, limit: int) -> list[Enforcement]:
    """The rows of one source's holds in force whose instances are on this host, by hold."""
    return _select(
        lock_db,
        "state NOT IN ('lifted', 'not_here') AND hold IN ("
        " SELECT id FROM hold WHERE source = ? AND released_at IS NULL) ORDER BY hold, fence"
        f" LIMIT {limit}",
        [source],
    )


def unlooked(lock_db: LockDB, source: str, *, limit: int) -> list[str]:
    """Boot locks of one source in force that no fence has a row for yet: their ids."""
    with lock_db.read() as db:
        rows = db.execute(
            "SELECT id FROM hold WHERE source = ? AND released_at IS NULL AND kind = 'boot_lock'"
            " AND NOT EXISTS (SELECT 1 FROM enforcement WHERE hold = hold.id) LIMIT ?",
            [source, limit],
        )
        return [hold for (hold,) in rows]


def _select(lock_db: LockDB, where: str, values: list[str]) -> list[Enforcement]:
    with lock_db.read() as db:
        rows = db.query(f"SELECT * FROM enforcement WHERE {where}", values)
        return [Enforcement(**row | {"state": State(row["state"])}) for row in rows]
