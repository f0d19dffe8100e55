"""What became of held instances' definitions, as journal entries.

The definitions themselves are not in this file: they have passwords in them, and more people read
this. ``sha256`` is that of the definition without them, as ``bootlock export`` hands it over.
"""

from __future__ import annotations

from lockdb import journal
from lockdb.database import LockDB


def kept(lock_db: LockDB, instance: str, *, now: int, **facts: str | int) -> None:
    """A definition was kept: of its hold's beginning, or of a change that was permitted."""
    with lock_db.write() as db:
        journal.append(db, "definition_kept", now, instance=instance, **facts)


def restored(lock_db: LockDB, instance: str, *, now: int, **facts: str | int) -> None:
    """An instance that was undefined, or defined otherwise, was defined as it had been."""
    with lock_db.write() as db:
        journal.append(db, "definition_restored", now, instance=instance, **facts)


def ended(lock_db: LockDB, instance: str, *, now: int, **facts: str | int) -> None:
    """Nothing is kept any more; ``why``, and where it was left if it was."""
    with lock_db.write() as db:
        journal.append(db, "definition_ended", now, instance=instance, **facts)
