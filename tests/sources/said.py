"""What sources say, in short, and what a reading of it comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bootlockd.sources.base import Observation, Order, Reading, Said
from bootlockd.sources.reconcile import Limits, Plan, reconcile
from lockdb import database, holds, sources
from lockdb.values import Hold, Kind
from samples import NOW

#: No test but those of the guard is about it.
UNGUARDED = Limits(most=1_000_000, percent=100)


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def order(number: int, **fields: Any) -> Order:
    return Order(**{"instance": uuid(number), "kind": Kind.BOOT_LOCK, "reason": "unpaid"} | fields)


def held(number: int, ref: str = "", hold_id: str = "", **fields: Any) -> Observation:
    return Observation(ref or f"r{number}", Said.HELD, order(number, **fields), hold_id=hold_id)


def released(number: int, ref: str = "", hold_id: str = "", evidence: str = "paid") -> Observation:
    return Observation(ref or f"r{number}", Said.RELEASED, evidence=evidence, hold_id=hold_id)


def unknown(number: int, problem: str = "garbled") -> Observation:
    return Observation(f"r{number}", Said.UNKNOWN, problem=problem)


def whole(*observations: Observation, **fields: Any) -> Reading:
    return Reading(observations, whole=True, **fields)


def part(*observations: Observation, **fields: Any) -> Reading:
    return Reading(observations, whole=False, **fields)


def take(
    path: Path,
    reading: Reading,
    *,
    source: str = "file",
    limits: Limits = UNGUARDED,
    now: int = NOW,
) -> Plan:
    """Reconcile as if this had just been read."""
    with database.open_db(path) as lock_db:
        turn = sources.stored(lock_db, source).turn
        return reconcile(lock_db, source, reading, turn=turn, limits=limits, now=now)


def in_force(path: Path, source: str | None = "file", *, now: int = NOW) -> list[Hold]:
    with database.open_db(path, read_only=True) as lock_db:
        return holds.active(lock_db, now=now, source=source)


def instances(path: Path, source: str | None = "file", *, now: int = NOW) -> list[str]:
    return sorted(hold.instance for hold in in_force(path, source, now=now))


def state(path: Path, source: str = "file") -> sources.State:
    with database.open_db(path, read_only=True) as lock_db:
        return sources.stored(lock_db, source)
