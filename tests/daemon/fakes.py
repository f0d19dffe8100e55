"""Fences that do as they are told, and a libvirt that is not there."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bootlockd.config import Config, Daemon, Database, Libvirt
from bootlockd.cycle import Cycle, Stop
from bootlockd.errors import FenceError
from bootlockd.fences.base import Quiet
from bootlockd.values import Case, Guest, Outcome, Power
from lockdb import database, holds
from lockdb.enforcements import State
from lockdb.values import Hold, Kind, NewHold
from waiting import PATIENCE


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def guest(instance: str) -> Guest:
    return Guest("test:///", "g", instance, Power.RUNNING, 1, True, False)


def place(path: Path, instance: str, kind: Kind = Kind.BOOT_LOCK, until: int | None = None) -> Hold:
    with database.open_db(path) as lock_db:
        new = NewHold(instance=instance, reason="r", placed_by="t", kind=kind, until=until)
        return holds.place(lock_db, new, now=1)


def release(path: Path, hold: Hold) -> None:
    with database.open_db(path) as lock_db:
        holds.release(lock_db, hold.id, reason="r", by="t", now=2)


class FakeFence(Quiet):
    """Up for boot locks. What it does to an instance is in ``acts``: hang, fail, raise or work."""

    def __init__(self, name: str = "fake") -> None:
        self.name = name
        self.acts: dict[str, str] = {}
        #: What it prepares; its first outcome for an instance says just that it is about to.
        self.prepares: set[str] = set()
        self.prepared: list[str] = []
        self.followed: list[list[Case]] = []
        self.calls: list[tuple[str, str]] = []
        self.up: set[str] = set()
        self.let_go = threading.Event()
        self.most_at_once = 0
        self._inside: list[str] = []
        self.twice: set[str] = set()

    def asks(self, hold: Hold) -> bool:
        return hold.kind is Kind.BOOT_LOCK

    def wanted(self, case: Case) -> bool:
        return bool(case.boot_locks) and not case.is_permitted

    def reaches(self, case: Case) -> bool:
        return case.guest is not None

    def follow(self, cases: Sequence[Case]) -> None:
        self.followed.append(list(cases))

    def prepare(self, case: Case) -> Outcome | None:
        if case.instance not in self.prepares:
            return None
        with self._called("prepare", case.instance):
            if not case.rows:
                return Outcome(State.PENDING, "about to")
            self.prepared.append(case.instance)
            return Outcome(State.ENFORCED, "prepared")

    def apply(self, case: Case) -> Outcome:
        with self._called("apply", case.instance):
            self.up.add(case.instance)
            return Outcome(State.ENFORCED, "up")

    def verify(self, case: Case) -> Outcome:
        with self._called("verify", case.instance):
            is_up = case.instance in self.up
            return Outcome(State.ENFORCED, "up") if is_up else Outcome(State.FAILED, "down")

    def lift(self, case: Case) -> Outcome:
        with self._called("lift", case.instance):
            self.up.discard(case.instance)
            return Outcome(State.LIFTED)

    @contextmanager
    def _called(self, action: str, instance: str) -> Iterator[None]:
        self.calls.append((action, instance))
        if instance in self._inside:
            self.twice.add(instance)
        self._inside.append(instance)
        self.most_at_once = max(self.most_at_once, len(self._inside))
        try:
            act = self.acts.get(instance)
            if act == "hang":
                assert self.let_go.wait(PATIENCE)
            if act == "fail":
                raise FenceError("it does not work", "try again")
            if act == "raise":
                raise ZeroDivisionError("a defect")
            yield
        finally:
            self._inside.remove(instance)


def settings(path: Path, *, interval: int = 3600, patience: int = 1, workers: int = 16) -> Config:
    return Config(
        daemon=Daemon(interval=interval, patience=patience, workers=workers),
        database=Database(path),
        libvirt=Libvirt(("test:///",)),
    )


@contextmanager
def turning(config: Config, fences: Sequence[FakeFence]) -> Iterator[Cycle]:
    """A cycle in a thread of its own; what hangs is let go at the end."""
    cycle = Cycle(config, fences)
    thread = threading.Thread(target=cycle.run)
    thread.start()
    try:
        yield cycle
    finally:
        for fence in fences:
            fence.let_go.set()
        cycle.inbox.put(Stop())
        thread.join(PATIENCE)
    assert not thread.is_alive()
