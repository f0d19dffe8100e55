"""The decision, in Python: the same ``decide.sql`` that the hook runs, on the same input."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from xml.sax.saxutils import escape

from lockdb import holds, permits
from lockdb.database import LockDB
from lockdb.values import Operation


class Verdict(StrEnum):
    """``undecided`` means refused as well: there was no answer."""

    ALLOW = "allow"
    REFUSE = "refuse"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Decision:
    """A verdict; ``hold`` is the refusing hold's id ("canary" for a canary), ``text`` its notice,
    or why nothing could be decided."""

    verdict: Verdict
    hold: str = ""
    text: str = ""


def decide(lock_db: LockDB, document: str | bytes, operation: str, *, now: int) -> Decision:
    """Would the hook let this domain through?

    ``document``: the domain's XML as libvirt formats it. ``operation``: the hook's (``prepare``,
    ``start``, ``migrate``). Raises DatabaseError where the hook would refuse as undecided.
    """
    text = document.encode("utf-8", "surrogateescape") if isinstance(document, str) else document
    with lock_db.read() as db:
        db.execute("CREATE TEMP TABLE request (operation TEXT, now INTEGER)")
        db.execute("CREATE TEMP TABLE document (xml TEXT)")
        db.execute("INSERT INTO temp.request VALUES (?, ?)", [operation, now])
        # As bytes, like the hook's import: what is not UTF-8 must not be an error of Python's.
        db.execute("INSERT INTO temp.document VALUES (CAST(? AS TEXT))", [text])
        (answer,) = db.execute(decide_sql()).fetchone()
        # Inside a write, this is not the end of the transaction.
        db.execute("DROP TABLE temp.request")
        db.execute("DROP TABLE temp.document")
    return _parse(answer)


def blocking(lock_db: LockDB, instance: str, operation: Operation, *, now: int) -> Decision:
    """Would a hold on this instance block the operation? Of starts the hook knows more: ``decide``.

    Raises DatabaseError.
    """
    with lock_db.read():
        found = [
            hold
            for hold in holds.active(lock_db, now=now, instance=instance)
            if operation in hold.blocked
        ]
        granted = permits.active(lock_db, now=now, instance=instance)
    if not found or any(permit.operation is operation for permit in granted):
        return Decision(Verdict.ALLOW)
    first = min(found, key=lambda hold: (hold.kind, hold.placed_at, hold.id))
    return Decision(Verdict.REFUSE, first.id, first.notice)


def minimal_document(instance: str) -> str:
    """XML of a domain of which nothing but the UUID is known."""
    return f"<domain><uuid>{escape(instance)}</uuid></domain>"


@cache
def decide_sql() -> str:
    """The text of ``decide.sql``."""
    return files("lockdb").joinpath("decide.sql").read_text("utf-8")


def _parse(answer: str) -> Decision:
    word, _, rest = answer.partition(" ")
    verdict = Verdict(word)
    if verdict is Verdict.REFUSE:
        hold, _instance, _name, notice = rest.split(" ", 3)
        return Decision(verdict, hold, notice)
    return Decision(verdict, text=rest)
