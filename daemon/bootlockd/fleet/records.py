"""What stands in the registry for one hold, or for one permit.

A record goes from held to released once, and never back: its id is random and never used again. So
whoever reads that this very id was released reads something true, however old the registry is that
says so. What can't be read is said to be so, and changes nothing.

A permit's goes from granted to revoked in the same way. It lasts for a few days at most, whatever
is written: one that says more can't be read, and grants nothing.
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
    PERMIT_MAX,
    REASON_MAX,
    UNTIL_MAX,
    Kind,
    NewHold,
    OnRunning,
    Operation,
    Permit,
    Retention,
    parse_instance,
    required_line,
)
from lockdb.when import iso

SCHEMA = 1
#: Bytes. A record of ours has at most a tenth of it.
LONGEST = 2**16

_PERMIT_FIELDS = ("instance", "operation", "reason", "granted_at", "granted_by", "until")

T = TypeVar("T")


class BadRecord(Exception):
    """Why a value can't be read, in one line."""


class FutureRecord(BadRecord):
    """It was written by a newer bootlock."""


@dataclass(frozen=True)
class Release:
    """Who ended a hold, when and why. ``override``: though it is retained in governance mode."""

    by: str
    at: int
    reason: str
    override: bool = False


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


@dataclass(frozen=True)
class PermitRecord:
    """One permit. ``permit`` is missing if it was revoked when nobody could read it any more."""

    id: str
    permit: Permit | None
    revoked: Release | None = None

    @property
    def evidence(self) -> str:
        """What the registry says about its end."""
        assert self.revoked
        return f"revoked in the registry at {iso(self.revoked.at)}: {self.revoked.reason}"


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


def encoded_permit(record: PermitRecord) -> bytes:
    """The value of its key."""
    value: dict[str, Any] = {
        "schema": SCHEMA,
        "id": record.id,
        "state": "revoked" if record.revoked else "granted",
    }
    if record.permit:
        value["permit"] = {name: getattr(record.permit, name) for name in _PERMIT_FIELDS}
    if record.revoked:
        value["revoked"] = asdict(record.revoked)
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()


def decoded(hold_id: str, value: bytes) -> Record:
    """The record of the hold that its key names. Raises BadRecord.

    Fields that are unknown are left alone: to change what the known ones mean is another schema.
    """
    fields = _opened(hold_id, value)
    try:
        return _record(hold_id, fields)
    except InvalidValue as error:
        raise BadRecord(str(error)) from error


def decoded_permit(permit_id: str, value: bytes) -> PermitRecord:
    """The record of the permit that its key names. Raises BadRecord."""
    fields = _opened(permit_id, value)
    try:
        state = _get(fields, "state", str)
        if state == "granted":
            return PermitRecord(permit_id, _permit(permit_id, _get(fields, "permit", dict)))
        if state != "revoked":
            raise BadRecord(f"state: {state!r:.40} is neither granted nor revoked")
        end = _release("revoked", _get(fields, "revoked", dict))
        try:
            permit = _permit(permit_id, _get(fields, "permit", dict))
        except (BadRecord, InvalidValue):
            permit = None
        return PermitRecord(permit_id, permit, end)
    except InvalidValue as error:
        raise BadRecord(str(error)) from error


def _opened(record_id: str, value: bytes) -> dict[str, Any]:
    """What all records have in common. Raises BadRecord."""
    if not is_hold_id(record_id):
        raise BadRecord(f"{record_id!r} is no id of a record")
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
    if _get(fields, "id", str) != record_id:
        raise BadRecord("its id is not that of its key")
    return fields


def _record(hold_id: str, fields: dict[str, Any]) -> Record:
    state = _get(fields, "state", str)
    placed_at = _moment(fields, "placed_at")
    if state == "held":
        return Record(hold_id, _order(_get(fields, "order", dict)), placed_at)
    if state != "released":
        raise BadRecord(f"state: {state!r:.40} is neither held nor released")
    release = _release("released", _get(fields, "released", dict))
    try:
        order = _order(_get(fields, "order", dict))
    except (BadRecord, InvalidValue):
        # It holds no longer: what it ordered is history, and no reason to go on holding.
        order = None
    return Record(hold_id, order, placed_at, release)


def _release(name: str, fields: dict[str, Any]) -> Release:
    return Release(
        required_line(f"{name}.by", _get(fields, "by", str), ACTOR_MAX),
        _moment(fields, "at"),
        required_line(f"{name}.reason", _get(fields, "reason", str), REASON_MAX),
        _get(fields, "override", bool, False),
    )


def _permit(permit_id: str, fields: dict[str, Any]) -> Permit:
    granted_at, until = _moment(fields, "granted_at"), _moment(fields, "until")
    if not granted_at < until <= granted_at + PERMIT_MAX:
        raise BadRecord(f"until: a permit lasts {PERMIT_MAX} s at most")
    return Permit(
        id=permit_id,
        instance=parse_instance(_get(fields, "instance", str)),
        operation=_word(fields, "operation", Operation),
        reason=required_line("reason", _get(fields, "reason", str), REASON_MAX),
        granted_at=granted_at,
        granted_by=required_line("granted_by", _get(fields, "granted_by", str), ACTOR_MAX),
        until=until,
        revoked_at=None,
        revoked_by=None,
    )


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
        preserve=_get(fields, "preserve", bool, False),
        until=None if fields.get("until") is None else _moment(fields, "until"),
        blocks=None if fields.get("blocks") is None else _get(fields, "blocks", str),
        **_retained(fields),
    )
    values = asdict(new)
    del values["source"]
    return Order(**values)


def _retained(fields: dict[str, Any]) -> dict[str, Any]:
    if fields.get("retain_until") is None:
        return {}
    mode = _word(fields, "retention", Retention, Retention.GOVERNANCE)
    return {"retain_until": _moment(fields, "retain_until"), "retention": mode}


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
