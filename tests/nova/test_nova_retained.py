"""A hold that came from Nova and was retained on this host, which no word of Nova's ends early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bootlockd.config import Nova
from bootlockd.sources.nova import NovaSource
from bootlockd.sources.reconcile import known
from database.clocks import Clocks
from lockdb import database, holds, witness
from lockdb.values import Hold, Kind, Retention
from nova.fakenova import HOST, START, FakeNova, FakeServer
from sources.said import in_force, take

DAY = 86400
A = "00000001-1111-4222-8333-444444444444"


def unlocked(fake: FakeNova) -> None:
    fake.unlock(A)


def locked_by_its_customer(fake: FakeNova) -> None:
    fake.lock(A, "owner", "mine")


def locked_for_another_reason(fake: FakeNova) -> None:
    fake.lock(A, "admin", "maintenance")


def deleted(fake: FakeNova) -> None:
    fake.delete(A)


def gone(fake: FakeNova) -> None:
    del fake.servers[A]


CHANGES: list[Callable[[FakeNova], None]] = [
    unlocked,
    locked_by_its_customer,
    locked_for_another_reason,
    deleted,
    gone,
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_retained_here_stays_until_its_date_and_goes_if_nova_said_so(
    path: Path, change: Callable[[FakeNova], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks(true=START, booted=START - 1000)
    monkeypatch.setattr(witness, "look", clocks.see)
    fake = FakeNova(FakeServer(A, "admin", "bootlock: 1"))

    def look() -> list[Hold]:
        source = NovaSource(Nova(cloud="test"), connect=fake.connect, host=HOST)
        take(path, source.read(known(path, "nova")), source="nova", now=clocks.now)
        return in_force(path, "nova", now=clocks.now)

    (hold,) = look()
    with database.open_db(path) as lock_db:
        until = START + 30 * DAY
        kept = holds.retain(
            lock_db, hold.id, until=until, mode=Retention.COMPLIANCE, by="a", now=START
        )
    change(fake)
    for ahead in (0, 365 * DAY, -365 * DAY, 0):
        clocks.ahead = ahead
        assert kept in look()
        assert [one.kind for one in look() if one != kept] == (
            [Kind.STATE_LOCK] if change is locked_by_its_customer else []
        )
    clocks.pass_by(30 * DAY)
    is_release = change in {unlocked, locked_by_its_customer}
    assert (kept in look()) is not is_release
