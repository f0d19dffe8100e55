"""The journal's record of the break-glass file: since when starts that can't be decided go through.

The file lies in /run and the hook only tests that it is there; the daemon watches it and records.
What was recorded last is kept in ``meta``, so that a restart of the daemon records nothing twice.
"""

from __future__ import annotations

from pathlib import Path

from lockdb import journal
from lockdb.database import LockDB

#: The hook has the same path in its text.
PATH = Path("/run/bootlock/break-glass")

_KEY = "break_glass"


def record(lock_db: LockDB, *, present: bool, seen: int, now: int) -> bool:
    """Journal that the file was there, or not, at ``seen``; True if that is a change."""
    with lock_db.write() as db:
        row = db.execute("SELECT value FROM meta WHERE key = ?", [_KEY]).fetchone()
        if present == (row is not None and row[0] == "on"):
            return False
        db.execute("REPLACE INTO meta VALUES (?, ?)", [_KEY, "on" if present else "off"])
        if present:
            journal.append(db, "break_glass_on", now, seen=seen)
        else:
            journal.append(db, "break_glass_off", now, seen=seen)
        return True
