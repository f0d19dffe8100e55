"""What stands in the registry for one hold.

A record goes from held to released once, and never back: its id is random and never used again. So
whoever reads that this very id was released reads something true, however old the registry is that
says so. What can't be read is said to be so, and changes nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from bootlockd.fleet.keys import is_hold_id
from bootlockd.sources.base import Order
from lockdb.errors import InvalidValue
from lockdb.values import (
    ACTOR_MAX,
    REASON_MAX,
    UNTIL_MAX,
    Kind,
    NewHold,
    OnRunning,
    required_line,
)
from lockdb.when import iso

SCHEMA = 1
#: Bytes. A record of ours has at most a tenth of it.
LONGEST = 2**16

T = TypeVar("T")


class BadRecord(Exception):
    """Why a value can't be read, in one line."""


class FutureRecord(BadRecord):
    """It was written by a newer bootlock."""


@dataclass(frozen=True)
class Release:
    """Who ended a hold, when and why."""

    by: str
    at: int
    reason: str


@dataclass(frozen=True)
class Record:
    """One hold. ``order`` is missing if it was released when nobody could read it any more."""

    id: str
    order: Order | None
    placed_at: int
    released: Release | None = None

    @property
    def evidence(self) -> str:
        """What the registry says about its end."""
        assert self.released
        when = iso(self.released.at)
        return f"released in the registry at {when} by {self.released.by}: {self.released.reason}"


def encoded(record: Record) -> bytes:
    """The value of its key."""
    value: dict[str, Any] = {
        "schema": SCHEMA,
        "id": record.id,
        "state": "released" if record.released else "held",
        "placed_at": record.placed_at,
    }
    if record.order:
        value["order"] = asdict(record.order)
    if record.released:
        value["released"] = asdict(record.released)
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()


def decoded(hold_id: str, value: bytes) -> Record:
    """The record of the hold that its key names. Raises BadRecord.

    Fields that are unknown are left alone: to change what the known ones mean is another schema.
    """
    if not is_hold_id(hold_id):
        raise BadRecord(f"{hold_id!r} is no id of a hold")
    if len(value) > LONGEST:
        raise BadRecord(f"{len(value)} bytes, at most {LONGEST} are read")
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRecord("not JSON") from error
    if not isinstance(fields, dict):
        raise BadRecord("not an object")
    schema = _get(fields, "schema", int)
    if schema > SCHEMA:
        raise FutureRecord(f"schema {schema}, this bootlock reads {SCHEMA}: upgrade it")
    if schema != SCHEMA:
        raise BadRecord(f"schema {schema} is unknown")
    if _get(fields, "id", str) != hold_id:
        raise BadRecord("its id is not that of its key")
    try:
        return _record(hold_id, fields)
    except InvalidValue as error:
        raise BadRecord(str(error)) from error


def _record(hold_id: str, fields: dict[str, Any]) -> Record:
    state = _get(fields, "state", str)
    placed_at = _moment(fields, "placed_at")
    if state == "held":
        return Record(hold_id, _order(_get(fields, "order", dict)), placed_at)
    if state != "released":
        raise BadRecord(f"state: {state!r:.40} is neither held nor released")
    end = _get(fields, "released", dict)
    release = Release(
        required_line("released.by", _get(end, "by", str), ACTOR_MAX),
        _moment(end, "at"),
        required_line("released.reason", _get(end, "reason", str), REASON_MAX),
    )
    try:
        order = _order(_get(fields, "order", dict))
    except (BadRecord, InvalidValue):
        # It holds no longer: what it ordered is history, and no reason to go on holding.
        order = None
    return Record(hold_id, order, placed_at, release)


def _order(fields: dict[str, Any]) -> Order:
    # NewHold knows the rules of the fields.
    new = NewHold(
        instance=_get(fields, "instance", str),
        reason=_get(fields, "reason", str),
        placed_by=_get(fields, "placed_by", str),
        kind=_word(fields, "kind", Kind),
        notice=_get(fields, "notice", str, ""),
        case=_get(fields, "case", str, ""),
        on_running=_word(fields, "on_running", OnRunning, OnRunning.LEAVE),
        grace=_get(fields, "grace", int, 60),
        isolate=_get(fields, "isolate", bool, False),
        until=None if fields.get("until") is None else _moment(fields, "until"),
    )
    values = asdict(new)
    del values["source"]
    return Order(**values)


def _get(fields: dict[str, Any], name: str, kind: type[T], default: T | None = None) -> T:
    value = fields.get(name, default)
    # bool is an int to Python.
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise BadRecord(f"{name}: missing" if value is None else f"{name}: must be {kind.__name__}")


def _moment(fields: dict[str, Any], name: str) -> int:
    value = _get(fields, name, int)
    if not 0 <= value <= UNTIL_MAX:
        raise BadRecord(f"{name}: {value} is no time")
    return value


def _word(fields: dict[str, Any], name: str, words: Any, default: Any = None) -> Any:
    value = fields.get(name, default)
    if value not in list(words):
        raise BadRecord(f"{name}: {value!r:.40} is none of {', '.join(words)}")
    return words(value)
