"""Sources of holds, as the database knows them: what each said last, and what came of it.

A source is a place where holds are decided elsewhere. Its holds are rows of ``hold`` with its name
in ``source`` and its own name of each in ``ref``. Whether a hold of a source is placed, changed or
ended is planned in ``bootlockd.sources.reconcile``; here a plan's steps are carried out, with
their journal entries, in the caller's transaction. No step touches a hold of another source.

What would end more holds at once than is believed stays in the table ``waiting`` until an admin
accepts it, or the source takes it back. So does what would end a hold that is retained, until its
date: that is nobody's to accept.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from sqlite_utils import Database

from lockdb import journal, permits, retention, witness
from lockdb.database import LockDB
from lockdb.errors import NotFound, NotNow
from lockdb.holds import forget_disks_if_free
from lockdb.values import NewHold, Permit

#: The source of what is placed here, which no other may call itself.
LOCAL: Final = "local"

#: What a source decides about a hold, in the order in which ``rows`` has it.
FIELDS: Final = (
    "instance",
    "kind",
    "reason",
    "notice",
    "case",
    "on_running",
    "grace",
    "isolate",
    "until",
    "placed_by",
    "blocks",
    "retain_until",
    "retention",
    "preserve",
)

#: Where a row has its retention.
RETAIN_UNTIL: Final = 2 + FIELDS.index("retain_until")
RETENTION: Final = 2 + FIELDS.index("retention")

#: Of a long list, so many are kept as examples.
EXAMPLES = 5

#: ``ref``, ``id``, then FIELDS.
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Marks:
    """A list of names or lines of which only the first few are kept, and whether it changed."""

    count: int = 0
    first: tuple[str, ...] = ()
    digest: str = ""

    @classmethod
    def of(cls, items: Iterable[str]) -> Marks:
        """The marks of these, whatever their order."""
        lines = sorted(set(items))
        if not lines:
            return cls()
        return cls(len(lines), tuple(lines[:EXAMPLES]), _digest(lines))

    def and_also(self, items: Iterable[str]) -> Marks:
        """These, with others that may be among them already.

        Once there are more than are kept it is not known which are new: no more are counted.
        """
        new = sorted(set(items) - set(self.first))
        if not new or self.count >= EXAMPLES:
            return self
        first = (*self.first, *new)[:EXAMPLES]
        return Marks(self.count + len(new), first, _digest([self.digest, *new]))


@dataclass(frozen=True)
class State:
    """One row of ``source``."""

    name: str
    #: Counts what was reconciled: a reading that began before another was taken in is outdated.
    turn: int = 0
    #: Up to where the last reading was complete; the source's own words.
    revision: str = ""
    tried_at: int | None = None
    #: When it last said something, and when it last said all.
    read_at: int | None = None
    whole_at: int | None = None
    #: Why it can't be read now, and since when.
    error: str = ""
    error_since: int | None = None
    #: What kept it from seeing or saying more.
    faults: Marks = field(default_factory=Marks)
    #: Holds that the last whole reading missed, by ``ref``. They stay.
    vanished: Marks = field(default_factory=Marks)
    #: When holds ended without an admin's word, and how many: as far back as is looked.
    ended: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Forgotten:
    """What a source left behind: holds that are active, of which so many waited to end."""

    holds: int
    waiting: int


@dataclass(frozen=True)
class Placing:
    """Place a hold. ``hold_id``: "" for one of our own choice."""

    ref: str
    new: NewHold
    hold_id: str = ""


@dataclass(frozen=True)
class Changing:
    """Set columns of a hold to what the source says now."""

    hold_id: str
    instance: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]


@dataclass(frozen=True)
class Ending:
    """End a hold; or, with ``change``, loosen it so that it bars no start any more.

    ``override``: though it is retained, in governance mode. ``kept``: it waits for the end of a
    retention alone, which is ``retain_until``.
    """

    hold_id: str
    instance: str
    evidence: str
    change: Changing | None = None
    override: bool = False
    kept: bool = False
    retain_until: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Revoking:
    """End a permit before its time."""

    permit_id: str
    instance: str
    by: str
    evidence: str


@dataclass(frozen=True)
class Steps:
    """All that one reading changes."""

    place: Sequence[Placing] = ()
    change: Sequence[Changing] = ()
    #: Releases only: what is merely loosened now is among the changes.
    end: Sequence[Ending] = ()
    #: Endings that are not carried out, but wait; and ids of holds whose ending waits no more.
    wait: Sequence[Ending] = ()
    withdraw: Sequence[str] = ()
    grant: Sequence[Permit] = ()
    revoke: Sequence[Revoking] = ()


def stored(lock_db: LockDB, name: str) -> State:
    """What is known of a source; of one never read, nothing."""
    with lock_db.read() as db:
        found = list(db.query("SELECT * FROM source WHERE name = ?", [name]))
    return _state(found[0]) if found else State(name)


def all_stored(lock_db: LockDB) -> list[State]:
    """Every source that was ever tried, by name."""
    with lock_db.read() as db:
        return [_state(row) for row in db.query("SELECT * FROM source ORDER BY name")]


def rows(db: Database, name: str) -> Iterator[Row]:
    """The holds of a source that were not released, expired ones too."""
    _widen_cache(db)
    yield from db.execute(f"SELECT {_COLUMNS} FROM hold WHERE {_OF_SOURCE}", [name])


def rows_of(db: Database, name: str, refs: Iterable[str]) -> Iterator[Row]:
    """Those of ``rows`` that are called so, each once, found by an index."""
    query = f"SELECT {_COLUMNS} FROM hold WHERE {_OF_SOURCE} AND ref = ?"
    for ref in dict.fromkeys(refs):
        # What is no text in UTF-8 was never stored.
        with suppress(UnicodeEncodeError):
            yield from db.execute(query, [name, ref])


def row(lock_db: LockDB, name: str, ref: str) -> Row | None:
    """One of ``rows``, or None."""
    with lock_db.read() as db:
        return next(rows_of(db, name, [ref]), None)


def active(db: Database, name: str, *, now: int, most: int | None = None) -> int:
    """How many of ``rows`` have not expired, counted up to ``most``."""
    query = f"SELECT 1 FROM hold WHERE {_OF_SOURCE} AND (until IS NULL OR until > ?) LIMIT ?"
    limit = -1 if most is None else most
    (count,) = db.execute(f"SELECT count(*) FROM ({query})", [name, now, limit]).fetchone()
    return int(count)


def refs(lock_db: LockDB, name: str) -> list[str]:
    """The ``ref`` of each of ``rows``."""
    with lock_db.read() as db:
        _widen_cache(db)
        return [ref for (ref,) in db.execute(f"SELECT ref FROM hold WHERE {_OF_SOURCE}", [name])]


def _widen_cache(db: Database) -> None:
    # In KiB. Rows lie in the order of their ids and are asked for in that of their refs: with
    # SQLite's usual 2 MiB each would be read from the file again.
    db.execute("PRAGMA cache_size=-65536")


_COLUMNS = ", ".join(f'"{column}"' for column in ("ref", "id", *FIELDS))
_OF_SOURCE = "source = ? AND released_at IS NULL AND ref IS NOT NULL"


def waiting(lock_db: LockDB, name: str) -> list[Ending]:
    """The endings that wait, oldest first: for an admin, or for the end of a retention."""
    with lock_db.read() as db:
        found = db.execute(
            "SELECT waiting.hold, hold.instance, waiting.evidence, waiting.change, "
            "hold.retain_until, waiting.override AND hold.retention IS 'governance', waiting.kept "
            "FROM waiting "
            "JOIN hold ON hold.id = waiting.hold AND hold.released_at IS NULL "
            "WHERE waiting.source = ? ORDER BY waiting.since, waiting.hold",
            [name],
        )
        return [_ending(*columns) for columns in found]


def waiting_ids(lock_db: LockDB, name: str, *, limit: int) -> list[str]:
    """The first so many of the holds whose ending waits."""
    with lock_db.read() as db:
        found = db.execute(
            "SELECT waiting.hold FROM waiting "
            "JOIN hold ON hold.id = waiting.hold AND hold.released_at IS NULL "
            "WHERE waiting.source = ? ORDER BY waiting.hold LIMIT ?",
            [name, limit],
        )
        return [hold_id for (hold_id,) in found]


def stopped(lock_db: LockDB, name: str, *, now: int) -> list[Ending]:
    """Of ``waiting``, what an admin can accept."""
    with lock_db.read() as db:
        proven = witness.proven(db, now)
        found = waiting(lock_db, name)
        return [one for one in found if not one.kept and not is_retained(one, proven)]


def retained(lock_db: LockDB, name: str) -> list[Ending]:
    """Of ``waiting``, what waits for the end of a retention alone."""
    return [one for one in waiting(lock_db, name) if one.kept]


def is_retained(ending: Ending, proven: int) -> bool:
    """Whether the date of its hold has to come first, whatever anybody says."""
    until = ending.retain_until
    return until is not None and until > proven and not ending.override


def token_of(endings: Iterable[Ending]) -> str:
    """Names exactly this set of endings: what an admin has seen is what is accepted."""
    return _digest(sorted(f"{ending.hold_id} {_change_text(ending)}" for ending in endings))[:8]


def carry_out(db: Database, after: State, steps: Steps, *, now: int) -> list[str]:
    """Take the steps of one reading, and make ``after`` the state of its source.

    In the caller's transaction. Returns the ids of what was placed, in the order of ``steps``.
    """
    name = after.name
    if any(placing.new.retain_until for placing in steps.place) or any(
        changing.after.get("retain_until") for changing in steps.change
    ):
        witness.begin(db, now)
    elif steps.end or steps.change:
        witness.advance(db, now)
    with journal.Chain(db, now) as chain:
        for changing in steps.change:
            _change(db, chain, name, changing)
        ids = [_place(db, chain, placing, now) for placing in steps.place]
        for ending in steps.end:
            _end(db, chain, name, ending, now)
        db.conn.executemany("DELETE FROM waiting WHERE hold = ?", [[i] for i in steps.withdraw])
        db.conn.executemany(
            "REPLACE INTO waiting VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                [one.hold_id, name, one.evidence, _change_text(one), now, one.override, one.kept]
                for one in steps.wait
            ],
        )
        for permit in steps.grant:
            permits.write(db, chain, permit, source=name)
        for revoking in steps.revoke:
            _revoke(db, chain, name, revoking, now)
        for ending in steps.wait:
            if not ending.kept:
                continue
            chain.append(
                "release_retained",
                id=ending.hold_id,
                instance=ending.instance,
                source=name,
                retain_until=ending.retain_until,
                evidence=ending.evidence,
            )
        stops = [one for one in steps.wait if not one.kept]
        if stops:
            (count,) = db.execute(
                "SELECT count(*) FROM waiting WHERE source = ? AND NOT kept", [name]
            ).fetchone()
            examples = sorted(ending.instance for ending in stops)[:EXAMPLES]
            chain.append("release_stopped", source=name, count=count, first=examples)
        _note(db, chain, after)
    return ids


def failed(lock_db: LockDB, name: str, error: str, *, now: int) -> None:
    """A source could not be read. Its holds stay; journalled when it could be before."""
    with lock_db.write() as db:
        before = stored(lock_db, name)
        since = before.error_since if before.error else now
        with journal.Chain(db, now) as chain:
            after = replace(before, tried_at=now, error=error, error_since=since)
            _note(db, chain, after)


def accept(lock_db: LockDB, name: str, token: str, *, by: str, now: int) -> list[Ending]:
    """Carry out what waits, if it is exactly what ``token`` names. Raises NotFound, NotNow."""
    with lock_db.write() as db:
        witness.advance(db, now)
        endings = stopped(lock_db, name, now=now)
        if not endings:
            raise NotFound(f"nothing of the source {name} waits", f"see 'bootlock sync {name}'")
        if token != token_of(endings):
            raise NotNow(
                f"what waits of the source {name} is not {token[:80]!r} any more",
                f"look again: 'bootlock sync {name}'",
            )
        with journal.Chain(db, now) as chain:
            chain.append("release_accepted", source=name, by=by, count=len(endings), token=token)
            for ending in endings:
                if ending.change:
                    _change(db, chain, name, ending.change)
                else:
                    _end(db, chain, name, ending, now)
        db.conn.executemany("DELETE FROM waiting WHERE hold = ?", [[e.hold_id] for e in endings])
        return endings


def forget(lock_db: LockDB, name: str, *, by: str, now: int) -> Forgotten:
    """Drop what is known of a source; its holds stay. Raises NotFound.

    What waited to end was never accepted, and waits no more. Read again, the source is new.
    """
    with lock_db.write() as db:
        if not list(db.query("SELECT 1 FROM source WHERE name = ?", [name])):
            raise NotFound(f"no source {name[:80]!r} was ever read here", "see 'bootlock status'")
        forgotten = Forgotten(
            active(db, name, now=now),
            len(waiting(lock_db, name)),
        )
        db.execute("DELETE FROM waiting WHERE source = ?", [name])
        db.execute("DELETE FROM source WHERE name = ?", [name])
        with journal.Chain(db, now) as chain:
            chain.append(
                "source_forgotten",
                source=name,
                by=by,
                holds=forgotten.holds,
                waiting=forgotten.waiting,
            )
        return forgotten


def _place(db: Database, chain: journal.Chain, placing: Placing, now: int) -> str:
    row = vars(placing.new) | {
        "id": placing.hold_id or secrets.token_hex(8),
        "was_running": None,
        "placed_at": now,
        "ref": placing.ref,
    }
    columns = ", ".join(f'"{column}"' for column in row)
    marks = ", ".join("?" * len(row))
    db.execute(f"INSERT INTO hold ({columns}) VALUES ({marks})", list(row.values()))
    chain.append("placed", **row)
    return str(row["id"])


def _change(db: Database, chain: journal.Chain, name: str, changing: Changing) -> None:
    settings = ", ".join(f'"{column}" = ?' for column in changing.after)
    values = [*changing.after.values(), changing.hold_id, name]
    db.execute(f"UPDATE hold SET {settings} WHERE id = ? AND source = ?", values)
    chain.append(
        "changed",
        id=changing.hold_id,
        instance=changing.instance,
        source=name,
        before=changing.before,
        after=changing.after,
    )


def _end(db: Database, chain: journal.Chain, name: str, ending: Ending, now: int) -> None:
    by = f"source {name}"
    query = "SELECT retain_until, retention FROM hold WHERE id = ?"
    until, mode = db.execute(query, [ending.hold_id]).fetchone() or (None, None)
    overridden = bool(until and ending.override and until > witness.proven(db, now))
    db.execute(
        "UPDATE hold SET released_at = ?, released_by = ?, release_reason = ?, overridden = ? "
        "WHERE id = ? AND source = ?",
        [now, by, ending.evidence, overridden, ending.hold_id, name],
    )
    chain.append(
        "released",
        id=ending.hold_id,
        instance=ending.instance,
        by=by,
        reason=ending.evidence,
        **retention.facts(until, mode, overridden),
    )
    forget_disks_if_free(db, ending.instance)


def _revoke(db: Database, chain: journal.Chain, name: str, revoking: Revoking, now: int) -> None:
    revoked = {"revoked_at": now, "revoked_by": revoking.by}
    db.table("permit").update(revoking.permit_id, revoked)
    chain.append(
        "permit_revoked",
        id=revoking.permit_id,
        instance=revoking.instance,
        by=revoking.by,
        reason=revoking.evidence,
        source=name,
    )


def _note(db: Database, chain: journal.Chain, after: State) -> None:
    """Store a source's state; what changed of its health is journalled, once."""
    found = list(db.query("SELECT * FROM source WHERE name = ?", [after.name]))
    before = _state(found[0]) if found else State(after.name)
    # The words of an error may be others at each try.
    if after.error and not before.error:
        chain.append("source_failed", source=after.name, error=after.error)
    elif before.error and not after.error:
        chain.append("source_recovered", source=after.name, since=before.error_since)
    if after.faults != before.faults:
        faults = after.faults
        chain.append("source_faults", source=after.name, count=faults.count, first=faults.first)
    if after.vanished != before.vanished:
        gone = after.vanished
        chain.append("source_vanished", source=after.name, count=gone.count, first=gone.first)
    columns = asdict(after) | {
        "faults": json.dumps(asdict(after.faults)),
        "vanished": json.dumps(asdict(after.vanished)),
        "ended": json.dumps(after.ended),
    }
    marks = ", ".join("?" * len(columns))
    db.execute(
        f"REPLACE INTO source ({', '.join(columns)}) VALUES ({marks})", list(columns.values())
    )


def _state(row: dict[str, Any]) -> State:
    return State(
        **row
        | {
            "faults": _marks(row["faults"]),
            "vanished": _marks(row["vanished"]),
            "ended": tuple((at, count) for at, count in json.loads(row["ended"])),
        }
    )


def _marks(text: str) -> Marks:
    marks = json.loads(text)
    return Marks(**marks | {"first": tuple(marks["first"])})


def _change_text(ending: Ending) -> str:
    if not ending.change:
        return ""
    return json.dumps([ending.change.before, ending.change.after], sort_keys=True)


def _ending(
    hold_id: str,
    instance: str,
    evidence: str,
    change: str,
    retain_until: int | None,
    override: int,
    kept: int,
) -> Ending:
    changing = Changing(hold_id, instance, *json.loads(change)) if change else None
    return Ending(hold_id, instance, evidence, changing, bool(override), bool(kept), retain_until)


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:16]
