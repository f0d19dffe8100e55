"""Reading the database as a member of the group bootlock, who may write nothing in its directory.

SQLite reads a file in WAL mode together with its ``-wal`` and ``-shm``. They are there while others
use it, and an onlooker reads them as everybody does. When the last of the others has closed it they
are gone, and an onlooker may not make them: the file alone is the whole database then, and is read
without locks (``immutable``). Nothing keeps others from beginning to write meanwhile. So what was
found like that counts only if the file is afterwards what it was before; else it is read again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lockdb.database import LockDB, open_db
from lockdb.errors import DatabaseBusy, DatabaseMissing

#: Looks until it is given up. One fails only if others open, write and close at that very moment.
TRIES = 20
#: Seconds between two looks, and the age from which a file's time tells the next write from the
#: last: the kernel's clock for it ticks at least a hundred times a second.
TICK = 0.02

T = TypeVar("T")


def look(path: Path, question: Callable[[LockDB], T]) -> T:
    """What ``question`` finds in the database; it may be asked again. Raises DatabaseError."""
    for last in [False] * (TRIES - 1) + [True]:
        before = _mark(path)
        try:
            with open_db(path, read_only=True) as lock_db:
                answer = question(lock_db)
        except DatabaseMissing:
            raise
        except Exception:
            # Half a write may look like anything, and -wal and -shm may go between two calls.
            if last:
                raise
        else:
            if not lock_db.is_frozen or (before and before == _mark(path)):
                return answer
        time.sleep(TICK)
    raise DatabaseBusy(path, f"it changed during each of {TRIES} looks", "try again")


def _mark(path: Path) -> tuple[int, ...]:
    """What any write to the file changes; empty while the next one may not show in its time."""
    try:
        status = path.stat()
    except OSError:
        # The reason is found by who opens it.
        return ()
    if 0 <= time.time() - status.st_ctime < TICK:
        return ()
    return (status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)
