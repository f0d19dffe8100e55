"""The append-only, hash-chained record of everything placed, released, permitted and refused.

An entry is one line of canonical JSON: sorted keys, no blanks, UTF-8. It carries ``seq`` (from 1,
without gaps), ``at`` (Unix seconds), ``event`` and ``prev``: the SHA-256 of the entry before it, in
hexadecimal, sixty-four zeros in the first. So an exported journal needs only ``sha256sum`` to
check: the hash of each line, without its newline, is the ``prev`` of the next.

It also carries ``link``, which commits to all hashes before it: that of the entry before, and that
one's hash, hashed together. So single entries can be shown to be of this journal without showing
the others' text: their hashes are enough (``bootlock export``). ``salt`` is random, so that nobody
finds out by trying what an entry says of which he has the hash. Entries from before there were
links have none; the first that has one commits to them too.

The chain shows a changed, removed or inserted row. That the tail was cut off shows only against the
head kept in ``meta``, and, should somebody have rewritten both, against a head noted elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from lockdb.errors import DatabaseCorrupt

GENESIS = "0" * 64
_HEAD = re.compile(r"([1-9]\d*) ([0-9a-f]{64})")


@dataclass(frozen=True)
class Head:
    """The last entry: its number and its hash; 0 and GENESIS before the first."""

    seq: int
    hash: str


@dataclass(frozen=True)
class Fault:
    """The first entry that breaks the chain, and how."""

    seq: int
    problem: str


def append(db: Database, event: str, at: int, **facts: Any) -> Head:
    """Add one entry, inside the caller's write transaction: the act and its record share a fate."""
    with Chain(db, at) as chain:
        return chain.append(event, **facts)


class Chain:
    """Many entries at once: the head is read at the start of the block and noted at its end."""

    def __init__(self, db: Database, at: int) -> None:
        if not db.conn.in_transaction:
            raise RuntimeError("a journal entry belongs into the transaction that it records")
        self._db = db
        self._at = at
        self._head = self._noted = head(db)
        _must_be_the_end(db, self._head)
        self._link = link_after(db, self._head.seq)

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *_exception: object) -> None:
        # After an exception the transaction is rolled back, and this with it.
        if self._head != self._noted:
            new = f"{self._head.seq} {self._head.hash}"
            self._db.execute("REPLACE INTO meta VALUES ('journal_head', ?)", [new])

    def append(self, event: str, **facts: Any) -> Head:
        """Add one entry. Raises TypeError for a fact by the name of what ties it to the chain."""
        seq, prev = self._head.seq + 1, self._head.hash
        envelope = {"seq": seq, "at": self._at, "event": event, "prev": prev, "link": self._link}
        # dict() takes no name twice: a fact must not take the place of what ties the entry.
        entry = canonical(dict(**envelope, salt=secrets.token_hex(16), **facts))
        self._head = Head(seq, digest(entry))
        self._link = linked(self._link, self._head.hash)
        self._db.execute(
            "INSERT INTO journal (seq, entry, hash) VALUES (?, ?, ?)",
            [seq, entry, self._head.hash],
        )
        return self._head


def head(db: Database) -> Head:
    """The last entry, as ``meta`` has it."""
    row = db.execute("SELECT value FROM meta WHERE key = 'journal_head'").fetchone()
    noted = _HEAD.fullmatch(row[0]) if row else None
    return Head(int(noted[1]), noted[2]) if noted else Head(0, GENESIS)


def _must_be_the_end(db: Database, last: Head) -> None:
    """Raises DatabaseCorrupt: an entry after an older head would be one in the middle."""
    (end,) = db.execute("SELECT ifnull(max(seq), 0) FROM journal").fetchone()
    if end > last.seq:
        path = db.execute("PRAGMA database_list").fetchone()[2]
        raise DatabaseCorrupt(
            Path(path),
            f"the journal ends at {end}, and meta has {last.seq or 'none'} as its head",
            "nothing can be recorded any more: restore a backup; holds stay in force meanwhile",
        )


def linked(link: str, hashed: str) -> str:
    """The link behind an entry with this link and this hash."""
    return hashlib.sha256((link + hashed).encode()).hexdigest()


def link_after(db: Database, seq: int) -> str:
    """The link that follows entry ``seq``; after 0, that of the first."""
    link, start = GENESIS, 0
    row = db.execute("SELECT entry FROM journal WHERE seq = ?", [seq]).fetchone()
    if row and (known := _link_of(row[0])):
        link, start = known, seq - 1
    # All of them, once, after an upgrade.
    query = "SELECT CAST(hash AS BLOB) FROM journal WHERE seq > ? AND seq <= ? ORDER BY seq"
    for (hashed,) in db.execute(query, [start, seq]):
        link = linked(link, hashed.decode("ascii", "replace"))
    return link


def _link_of(entry: object) -> str | None:
    try:
        link = json.loads(str(entry)).get("link")
    except (ValueError, AttributeError, RecursionError):
        # It is none: verify says so.
        return None
    return link if isinstance(link, str) else None


def contains(db: Database, noted: Head) -> bool:
    """Whether the entry that was the head once still is what it was. Looks at that one only."""
    row = db.execute("SELECT hash FROM journal WHERE seq = ?", [noted.seq]).fetchone()
    return noted.seq == 0 or (row is not None and row[0] == noted.hash)


def entries(
    db: Database, *, instance: str | None = None, event: str | None = None, last: int | None = None
) -> Iterator[str]:
    """The entries' own text, oldest first: all, or about an instance, of an event, the last n."""
    wanted = {"instance": instance, "event": event}
    where = " AND ".join(f"{name} = :{name}" for name, value in wanted.items() if value) or "1"
    newest = f"SELECT seq, entry FROM journal WHERE {where} ORDER BY seq DESC LIMIT :last"
    limit = -1 if last is None else last
    for (entry,) in db.execute(
        f"SELECT entry FROM ({newest}) ORDER BY seq", wanted | {"last": limit}
    ):
        yield entry


def verify(db: Database, expected: Head | None = None) -> Iterator[Fault | Head]:
    """Walk the chain: yields a Head for each sound entry, then stops, or ends with the first Fault.

    ``expected`` is a head noted earlier, perhaps on another machine; the chain must contain it.
    """
    kept = head(db)
    known = [kept, expected] if expected else [kept]
    last, link, has_links = Head(0, GENESIS), GENESIS, False
    # As bytes: what is not UTF-8 is a broken entry, not an error.
    query = "SELECT seq, CAST(entry AS BLOB), CAST(hash AS BLOB) FROM journal ORDER BY seq"
    for seq, entry, stored in db.execute(query):
        this = Head(seq, stored.decode("ascii", "replace"))
        problem = _problem(last, this, entry)
        if not problem and seq > kept.seq:
            problem = f"the journal's head was {kept.seq}"
        if not problem and any(seq == noted.seq and this != noted for noted in known):
            problem = "its hash is not the one that was noted"
        if not problem:
            said = json.loads(entry).get("link")
            if said != link and (has_links or said is not None):
                problem = "its link is not to the entries before it"
            has_links = said is not None
        if problem:
            yield Fault(seq, problem)
            return
        last, link = this, linked(link, this.hash)
        yield last
    for noted in known:
        if noted.seq > last.seq:
            yield Fault(last.seq + 1, f"the journal ends at {last.seq}, its head was {noted.seq}")
            return


def outcome(steps: Iterable[Fault | Head]) -> Fault | Head:
    """Where ``verify`` ended: the head of a sound chain, or what broke it."""
    end: Fault | Head = Head(0, GENESIS)
    for step in steps:
        end = step
    return end


def canonical(value: dict[str, Any]) -> str:
    """The one JSON text of ``value``."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(entry: str) -> str:
    """SHA-256 of the entry's UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(entry.encode()).hexdigest()


def _problem(last: Head, this: Head, entry: bytes) -> str:
    if this.seq < 1:
        return "it stands before the first entry"
    if this.seq != last.seq + 1:
        return f"entries {last.seq + 1} to {this.seq - 1} are missing"
    if hashlib.sha256(entry).hexdigest() != this.hash:
        return "its text is not what was hashed"
    try:
        fields = json.loads(entry)
        text = canonical(fields).encode()
    except (ValueError, RecursionError):
        return "it is not JSON"
    if not isinstance(fields, dict) or text != entry:
        return "it is not canonical JSON"
    if fields.get("seq") != this.seq:
        return f"it says it is entry {fields.get('seq')}"
    if fields.get("prev") != last.hash:
        return "it does not follow the entry before it"
    return ""
