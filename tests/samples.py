"""Instances, holds and times that the tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lockdb import database, holds
from lockdb.values import Hold, NewHold

HELD = "11111111-aaaa-4333-8444-bbbbbbbbbbbb"
OTHER = "22222222-2222-4333-8444-555555555555"
FREE = "ffffffff-2222-4333-8444-555555555555"

#: A moment in the past of every clock: a hold that was placed then is in force now.
NOW = 1_700_000_000


def new_hold(instance: str = HELD, **fields: Any) -> NewHold:
    """A hold to be placed; what a test doesn't care about has a value."""
    return NewHold(**{"instance": instance, "reason": "unpaid", "placed_by": "tester"} | fields)


def place(path: Path, instance: str = HELD, *, now: int = NOW, **fields: Any) -> Hold:
    """Place a hold in the database at ``path``."""
    with database.open_db(path) as lock_db:
        return holds.place(lock_db, new_hold(instance, **fields), now=now)
