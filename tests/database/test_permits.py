"""Permits: recorded exceptions, each with an end."""

from __future__ import annotations

import pytest

from database.soundness import log
from lockdb import holds, permits
from lockdb.database import LockDB
from lockdb.errors import AlreadyEnded, InvalidValue, NotFound, NotNow
from lockdb.values import CANARY_PREFIX, NewHold, Operation, Permit
from samples import HELD, NOW, OTHER


def _grant(
    lock_db: LockDB, instance: str = HELD, *, until: int = NOW + 60, reason: str = "rescue"
) -> Permit:
    return permits.grant(
        lock_db, instance, Operation.START, until=until, reason=reason, by="chief", now=NOW
    )


def test_a_permit_is_in_force_from_its_first_second_to_before_its_last(lock_db: LockDB) -> None:
    permit = _grant(lock_db)
    for now, active in ((NOW - 1, False), (NOW, True), (NOW + 59, True), (NOW + 60, False)):
        assert permits.active(lock_db, now=now) == ([permit] if active else [])
        assert permit.is_active(now) is active


def test_a_permit_is_journalled_with_who_granted_it_and_why(lock_db: LockDB) -> None:
    permit = _grant(lock_db)
    entry = log(lock_db)[-1]
    assert entry["event"] == "permitted"
    assert (
        entry.items()
        >= {name: value for name, value in permit.as_dict().items() if value is not None}.items()
    )


def test_a_revoked_permit_is_over_at_once(lock_db: LockDB) -> None:
    one, two = _grant(lock_db), _grant(lock_db)
    revoked = permits.revoke(lock_db, one.id[:12], reason="done", by="chief", now=NOW + 1)
    assert (revoked.revoked_at, revoked.revoked_by) == (NOW + 1, "chief")
    assert permits.active(lock_db, now=NOW + 1) == [two]
    assert log(lock_db)[-1].items() >= {"event": "permit_revoked", "id": one.id}.items()


@pytest.mark.parametrize("revoked_first", [True, False])
def test_a_permit_that_is_over_is_not_revoked(lock_db: LockDB, revoked_first: bool) -> None:
    permit = _grant(lock_db)
    now = NOW + 60
    if revoked_first:
        now = NOW + 1
        permits.revoke(lock_db, permit.id, reason="done", by="chief", now=now)
    before = log(lock_db)
    with pytest.raises(AlreadyEnded, match=r"ended at 2023-11-14T22:1"):
        permits.revoke(lock_db, permit.id, reason="again", by="chief", now=now)
    assert log(lock_db) == before


def test_permits_are_found_by_instance(lock_db: LockDB) -> None:
    one = _grant(lock_db, HELD)
    two = _grant(lock_db, OTHER.upper().replace("-", ""))
    assert permits.active(lock_db, now=NOW, instance=HELD) == [one]
    assert permits.active(lock_db, now=NOW, instance=OTHER) == [two]


def test_what_is_no_permit_cannot_be_revoked(lock_db: LockDB) -> None:
    _grant(lock_db)
    with pytest.raises(NotFound, match="no permit"):
        permits.revoke(lock_db, "0123", reason="none", by="chief", now=NOW)


@pytest.mark.parametrize(
    ("instance", "reason"), [("web", "rescue"), (CANARY_PREFIX + "0" * 12, "rescue"), (HELD, " ")]
)
def test_a_permit_that_cannot_be_is_not_granted(
    lock_db: LockDB, instance: str, reason: str
) -> None:
    with pytest.raises(InvalidValue):
        _grant(lock_db, instance, reason=reason)
    assert [entry["event"] for entry in log(lock_db)] == ["created"]


@pytest.mark.parametrize("operation", list(Operation))
def test_what_would_write_to_preserved_disks_is_not_permitted(
    lock_db: LockDB, operation: Operation
) -> None:
    new = NewHold(HELD, "a court order", "a test", preserve=True, until=NOW)
    holds.place(lock_db, new, now=NOW - 9)
    writes = operation.startswith(("volume-", "start", "restore", "migrate", "revert", "block-"))

    def grant_at(now: int) -> None:
        permits.grant(lock_db, HELD, operation, until=now + 9, reason="x", by="chief", now=now)

    if writes:
        with pytest.raises(NotNow, match="are preserved by hold"):
            grant_at(NOW - 1)
        grant_at(NOW)
    else:
        grant_at(NOW - 1)
