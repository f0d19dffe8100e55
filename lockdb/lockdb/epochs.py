"""Which other history of the fleet's registry an admin of this host has accepted.

A registry that was wiped or restored may not release holds until then, see docs/fleet.md.
"""

from __future__ import annotations

from lockdb import journal
from lockdb.database import LockDB
from lockdb.values import ACTOR_MAX, REASON_MAX, required_line

_KEY = "fleet_epoch"


def accept(lock_db: LockDB, epoch: str, *, why: str, reason: str, by: str, now: int) -> None:
    """Remember it, journalled. ``why``: what was found. Raises InvalidValue or DatabaseError."""
    reason = required_line("reason", reason, REASON_MAX)
    by = required_line("by", by, ACTOR_MAX)
    with lock_db.write() as db:
        db.execute("REPLACE INTO meta VALUES (?, ?)", [_KEY, epoch])
        journal.append(db, "epoch_accepted", now, epoch=epoch, why=why, by=by, reason=reason)


def accepted(lock_db: LockDB) -> str:
    """The id of the one that was accepted last; "" if none ever was. Raises DatabaseError."""
    with lock_db.read() as db:
        row = db.execute("SELECT value FROM meta WHERE key = ?", [_KEY]).fetchone()
        return str(row[0]) if row else ""
