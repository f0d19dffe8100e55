"""Proofs that the hook is armed: the last one is kept, and only a change is journalled."""

from __future__ import annotations

from database.soundness import log
from lockdb import proofs
from lockdb.database import LockDB
from lockdb.proofs import Proof

QEMU, LXC = "qemu:///system", "lxc:///system"


def _record(lock_db: LockDB, uri: str, armed: bool, now: int) -> Proof:
    return proofs.record(lock_db, uri, armed=armed, answer="said so", now=now)


def test_a_proof_tells_since_when_the_outcome_is_the_same(lock_db: LockDB) -> None:
    for now, armed, since in ((10, True, 10), (20, True, 10), (30, False, 30), (40, True, 40)):
        proof = _record(lock_db, QEMU, armed, now)
        assert (proof.armed, proof.since, proof.at) == (armed, since, now)
        assert proofs.stored(lock_db) == [proof]


def test_drivers_are_proven_each_by_itself(lock_db: LockDB) -> None:
    qemu = _record(lock_db, QEMU, True, 10)
    lxc = _record(lock_db, LXC, False, 20)
    assert proofs.stored(lock_db) == [lxc, qemu]


def test_only_a_change_is_journalled(lock_db: LockDB) -> None:
    for now, armed in enumerate([True, True, False, False, True]):
        _record(lock_db, QEMU, armed, now)
    told = [(entry["event"], entry["at"]) for entry in log(lock_db)[1:]]
    assert told == [("armed", 0), ("disarmed", 2), ("armed", 4)]
