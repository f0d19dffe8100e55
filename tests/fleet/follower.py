"""A host of the fleet without libvirt: a database, and the source that follows the registry.

It does what ``bootlockd --sync`` does with one source, in threads of the test's process.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Self

from bootlock.main import main
from bootlockd.config import Config, Database, Fleet
from bootlockd.sources.base import SourceError
from bootlockd.sources.etcd import EtcdSource
from bootlockd.sources.reconcile import Limits, Overtaken, known, reconcile
from lockdb import database, holds, sources
from lockdb.sources import State
from lockdb.values import Hold
from waiting import wait_until

SOURCE = "etcd"


class Follower:
    """One host; a context manager from its start to its stop. Can be started again."""

    def __init__(self, directory: Path, settings: Fleet, *, limits: Limits | None = None) -> None:
        self.name = settings.host
        self.path = directory / settings.host / "lock.db"
        self._config = Config(database=Database(self.path), fleet=settings)
        self._limits = limits or Limits(most=1000, percent=100)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.defects: list[BaseException] = []
        database.create(self.path, now=1, host=self.name)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None:
            error.add_note(f"{self.name}: {self.state()} {self.defects}")
        self.stop()
        assert not self.defects

    def start(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name=self.name)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._follow()
                self._stop.wait(0.2)
        except BaseException as error:
            self.defects.append(error)

    def _follow(self) -> None:
        before = known(self.path, SOURCE)
        turn = before.turn
        try:
            for reading in EtcdSource(self._config).follow(before, self._stop):
                with database.open_db(self.path) as lock_db:
                    done = reconcile(
                        lock_db,
                        SOURCE,
                        reading,
                        turn=turn,
                        limits=self._limits,
                        now=int(time.time()),
                    )
                turn = done.after.turn
        except Overtaken:
            pass
        except SourceError as error:
            with database.open_db(self.path) as lock_db:
                sources.failed(lock_db, SOURCE, str(error), now=int(time.time()))

    # -- what is to be seen -------------------------------------------------------------------

    def holds(self) -> set[str]:
        """The ids of the holds in force."""
        return {hold.id for hold in self._active()}

    def hold(self, hold_id: str) -> Hold:
        with database.open_db(self.path, read_only=True) as lock_db:
            return holds.find(lock_db, hold_id)

    def state(self) -> State:
        with database.open_db(self.path, read_only=True) as lock_db:
            return sources.stored(lock_db, SOURCE)

    def faults(self) -> str:
        return " | ".join(self.state().faults.first)

    def accept(self) -> None:
        """As an admin of this host does."""
        settings = self.path.with_name("bootlock.toml")
        words = ["fleet", "accept", "--reason", "it is the backup of noon"]
        assert main(["--database", str(self.path), "--config", str(settings), *words]) == 0

    def until(self, *hold_ids: str, timeout: float = 30.0) -> None:
        """Wait until exactly these are held."""
        wanted = set(hold_ids)
        wait_until(lambda: self.holds() == wanted, f"{self.name} holds {wanted}", timeout)

    def _active(self) -> list[Hold]:
        with database.open_db(self.path, read_only=True) as lock_db:
            return holds.active(lock_db, now=int(time.time()), source=SOURCE)
