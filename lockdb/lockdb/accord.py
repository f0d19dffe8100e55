"""Whether the tables say of retained holds what the journal says: whoever edits one forgets two.

The chain shows that the journal is what was written. That a row of ``hold`` was changed past it, by
an editor of SQLite that drops the triggers first, shows only here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from lockdb.values import Retention
from lockdb.when import iso

#: What keeps other programs from ending a retained hold, or changing the journal.
TRIGGERS = (
    "hold_is_kept",
    "hold_is_not_displaced",
    "hold_is_not_replaced",
    "hold_is_retained",
    "hold_preserves",
    "journal_keeps_rows",
    "journal_keeps_text",
)


@dataclass
class _Said:
    """What the journal says of one hold."""

    instance: str
    until: int | None = None
    mode: str | None = None
    ended_at: int | None = None
    overridden: bool = False


def contradictions(db: Database) -> Iterator[str]:
    """What the tables deny of what the journal says about retention, one line each."""
    found = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='trigger'")}
    for trigger in TRIGGERS:
        if trigger not in found:
            yield f"the trigger {trigger} is gone from the database"
    for hold_id, said in _said(db).items():
        yield from _of_hold(db, hold_id, said)


def _said(db: Database) -> dict[str, _Said]:
    """Of every hold that was ever retained."""
    found: dict[str, _Said] = {}
    # Most holds never are: what is looked at is what names a date.
    query = (
        "SELECT entry FROM journal WHERE event IN ('placed', 'retained', 'changed', 'released') "
        "AND instr(entry, '\"retain_until\"') ORDER BY seq"
    )
    for (text,) in db.execute(query):
        entry: dict[str, Any] = json.loads(text)
        event = entry["event"]
        fields = entry["after"] if event == "changed" else entry
        hold = found.setdefault(entry["id"], _Said(entry["instance"]))
        if event == "released":
            hold.ended_at, hold.overridden = entry["at"], entry["overridden"]
        else:
            hold.until = fields.get("retain_until", hold.until)
            hold.mode = fields.get("retention", hold.mode)
    return {hold_id: hold for hold_id, hold in found.items() if hold.until is not None}


def _of_hold(db: Database, hold_id: str, said: _Said) -> Iterator[str]:
    assert said.until is not None
    what = f"hold {hold_id} on {said.instance}, retained until {iso(said.until)} ({said.mode})"
    query = "SELECT instance, retain_until, retention, released_at FROM hold WHERE id = ?"
    row = db.execute(query, [hold_id]).fetchone()
    if row is None:
        yield f"{what}, is gone from the table"
        return
    instance, until, mode, released_at = row
    if released_at is not None and said.ended_at is None:
        yield f"{what}, is released in the table, and the journal has no release"
    if (instance, until, mode) != (said.instance, said.until, said.mode):
        yield f"{what}, is another in the table"
    early = said.ended_at is not None and said.ended_at < said.until
    if early and (said.mode == Retention.COMPLIANCE or not said.overridden):
        yield f"{what}, was released at {iso(said.ended_at or 0)}, before its date"
