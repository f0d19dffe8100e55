"""The polkit fence and its file, without polkit: what it writes, and when it claims what."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bootlockd.config import Polkit
from bootlockd.errors import FenceError
from bootlockd.fences.polkit import IN_RULES, PolkitFence
from bootlockd.values import Case, Guest, Power
from lockdb import holds, permits
from lockdb.database import LockDB
from lockdb.enforcements import State
from lockdb.values import Hold, Kind, Operation
from samples import FREE, HELD, NOW, OTHER, new_hold
from waiting import wait_until

GUEST = Guest("qemu:///system", "web", HELD, Power.OFF, None, True, False)


class Polkits:
    """What polkit and libvirt say, and what polkit was asked."""

    def __init__(self) -> None:
        self.off = ""
        self.fault = ""
        self.asked: list[str] = []

    def why_off(self) -> str:
        return self.off

    def why_not_run(self, proof: str) -> str:
        self.asked.append(proof)
        return self.fault


@pytest.fixture
def polkit() -> Polkits:
    return Polkits()


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    (tmp_path / "rules.d").mkdir()
    return tmp_path / "rules.d/00-bootlock.rules"


@pytest.fixture
def fence(path: Path, rules: Path, polkit: Polkits) -> Iterator[PolkitFence]:
    fence = PolkitFence(Polkit(rules_file=rules), path, polkit.why_off, polkit.why_not_run)
    yield fence
    fence.stop()


def case(lock_db: LockDB, instance: str = HELD) -> Case:
    return Case(
        instance=instance,
        now=NOW,
        holds=holds.active(lock_db, now=NOW, instance=instance),
        permits=permits.active(lock_db, now=NOW, instance=instance),
        guest=replace(GUEST, uuid=instance),
    )


def place(lock_db: LockDB, instance: str = HELD) -> Hold:
    return holds.place(lock_db, new_hold(instance), now=NOW)


def test_one_apply_brings_in_all_that_is_held(
    fence: PolkitFence, lock_db: LockDB, rules: Path, polkit: Polkits
) -> None:
    place(lock_db)
    place(lock_db, OTHER)
    outcome = fence.apply(case(lock_db))
    assert (outcome.state, outcome.detail) == (State.ENFORCED, IN_RULES)
    before = rules.stat()
    assert fence.verify(case(lock_db, OTHER)).is_enforced
    assert fence.apply(case(lock_db, OTHER)).is_enforced
    assert rules.stat() == before
    # One question answers for both.
    assert len(polkit.asked) == 1


def test_it_is_whole_readable_for_polkit_and_roots_alone(
    fence: PolkitFence, lock_db: LockDB, rules: Path
) -> None:
    place(lock_db)
    victim = rules.with_name("victim")
    victim.write_text("precious")
    rules.with_name(f".{rules.name}.new").symlink_to(victim)
    fence.apply(case(lock_db))
    assert stat.S_IMODE(rules.stat().st_mode) == 0o644
    assert victim.read_text() == "precious"
    assert sorted(os.listdir(rules.parent)) == [rules.name, "victim"]


def test_nothing_is_claimed_where_it_is_not_so(
    fence: PolkitFence, lock_db: LockDB, rules: Path, polkit: Polkits
) -> None:
    place(lock_db)
    polkit.off = "no access_drivers in a file"
    outcome = fence.apply(case(lock_db))
    assert outcome.state is State.NOT_HERE
    assert "no access_drivers in a file" in outcome.detail
    # For when it is turned on.
    assert HELD in rules.read_text()
    polkit.off = ""
    assert fence.apply(replace(case(lock_db), guest=None)).state is State.NOT_HERE
    rules.write_text("")
    assert fence.verify(case(lock_db)).state is State.FAILED
    rules.unlink()
    assert fence.verify(case(lock_db)).state is State.FAILED
    assert fence.apply(case(lock_db)).is_enforced
    rules.unlink()
    rules.parent.rmdir()
    assert fence.apply(case(lock_db)).state is State.NOT_HERE
    assert fence.lift(Case(HELD, NOW, guest=GUEST)).state is State.LIFTED


def test_what_polkit_does_not_run_has_failed(
    fence: PolkitFence, lock_db: LockDB, polkit: Polkits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bootlockd.fences.polkit.LOADED_IN", 0.0)
    place(lock_db)
    polkit.fault = "polkit does not run it"
    outcome = fence.apply(case(lock_db))
    assert (outcome.state, outcome.detail) == (State.FAILED, "polkit does not run it")


def test_another_hold_or_permit_is_not_proven_by_the_rules_of_before(
    fence: PolkitFence, lock_db: LockDB
) -> None:
    place(lock_db)
    assert fence.apply(case(lock_db)).is_enforced
    permit = permits.grant(
        lock_db, HELD, Operation.DELETE, until=NOW + 9, reason="r", by="t", now=NOW
    )
    assert fence.verify(case(lock_db)).state is State.FAILED
    assert fence.apply(case(lock_db)).is_enforced
    permits.revoke(lock_db, permit.id, reason="r", by="t", now=NOW)
    assert fence.verify(case(lock_db)).state is State.FAILED


def test_a_release_takes_it_out_and_what_vanished_stays_in(
    fence: PolkitFence, lock_db: LockDB, rules: Path
) -> None:
    released, vanished = place(lock_db), place(lock_db, OTHER)
    kept = case(lock_db, OTHER)
    fence.apply(case(lock_db))
    holds.release(lock_db, released.id, reason="r", by="t", now=NOW)
    with lock_db.write() as db:
        db.execute("DELETE FROM hold WHERE id = ?", [vanished.id])
    assert fence.lift(case(lock_db)).state is State.LIFTED
    assert HELD not in rules.read_text()
    assert fence.verify(kept).is_enforced


def test_a_lost_database_changes_nothing_and_lifts_nothing(
    fence: PolkitFence, lock_db: LockDB, rules: Path, path: Path
) -> None:
    place(lock_db)
    known = case(lock_db)
    fence.apply(known)
    before = rules.read_bytes()
    path.rename(path.with_name("aside"))
    with pytest.raises(FenceError):
        fence.lift(Case(HELD, NOW, guest=GUEST))
    assert fence.verify(known).is_enforced
    assert rules.read_bytes() == before


def test_a_full_disk_leaves_the_rules_of_before(
    fence: PolkitFence, lock_db: LockDB, rules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(lock_db)
    fence.apply(case(lock_db))
    before = rules.read_bytes()
    place(lock_db, OTHER)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(FenceError, match="No space left"):
            fence.apply(case(lock_db, OTHER))
    assert rules.read_bytes() == before
    assert os.listdir(rules.parent) == [rules.name]
    assert fence.apply(case(lock_db, OTHER)).is_enforced


def test_it_follows_the_database_and_guards_its_file(
    fence: PolkitFence, lock_db: LockDB, rules: Path
) -> None:
    fence.start(lambda wake: None)
    wait_until(rules.exists, "rules about nothing")
    place(lock_db)
    wait_until(lambda: HELD in rules.read_text(), "the hold is in them")
    rules.write_text("nonsense")
    wait_until(lambda: HELD in rules.read_text(), "they are put back")
    assert "put back at" in fence.verify(case(lock_db)).detail


def test_switched_off_it_removes_its_rules_and_asks_for_nothing(
    path: Path, rules: Path, lock_db: LockDB
) -> None:
    rules.write_text("of before")
    off = PolkitFence(Polkit(enabled=False, rules_file=rules), path)
    hold = place(lock_db)
    assert not off.asks(hold)
    assert not off.wanted(case(lock_db))
    off.start(lambda wake: None)
    assert not rules.exists()
    assert off.lift(case(lock_db)).state is State.LIFTED


def test_each_hold_is_its_business(fence: PolkitFence, lock_db: LockDB) -> None:
    for kind in Kind:
        for blocks in (None, "delete"):
            hold = holds.place(lock_db, new_hold(FREE, kind=kind, blocks=blocks), now=NOW)
            assert fence.asks(hold)
