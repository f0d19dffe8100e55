"""When each libvirt driver of this host was last proven to refuse through our hook.

Kept in ``meta`` under ``armed URI``. Only a change goes to the journal: proofs are made often.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from lockdb import journal
from lockdb.database import LockDB

_KEY = "armed "


@dataclass(frozen=True)
class Proof:
    """The outcome of the last canary at ``uri``: at ``at``, and the same ever since ``since``."""

    uri: str
    armed: bool
    since: int
    at: int
    #: What libvirt answered, in one line.
    answer: str


def record(lock_db: LockDB, uri: str, *, armed: bool, answer: str, now: int) -> Proof:
    """Remember a canary's outcome; journalled if it is another than the last."""
    with lock_db.write() as db:
        last = next((proof for proof in stored(lock_db) if proof.uri == uri), None)
        changed = last is None or last.armed != armed
        since = now if last is None or changed else last.since
        proof = Proof(uri, armed, since, now, answer)
        db.execute("REPLACE INTO meta VALUES (?, ?)", [_KEY + uri, json.dumps(asdict(proof))])
        if changed:
            journal.append(db, "armed" if armed else "disarmed", now, uri=uri, answer=answer)
    return proof


def stored(lock_db: LockDB) -> list[Proof]:
    """The last proof of each driver that was ever tried, by URI."""
    with lock_db.read() as db:
        rows = db.execute(
            "SELECT value FROM meta WHERE key >= ? AND key < ? ORDER BY key", [_KEY, "armed!"]
        )
        return [Proof(**json.loads(value)) for (value,) in rows]
