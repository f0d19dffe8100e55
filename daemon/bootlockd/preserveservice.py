"""``bootlockd --preserve``: keeps the disks of preserved instances as they are.

A process of its own, since it needs what nothing else of ours does: to change files everywhere
guests' disks may be, immutable ones too. It talks to nobody but libvirt on this host: its orders
are the holds in the database, and what it did is there, in rows, as bootlockd's own.

It is the same cycle as bootlockd's with one fence, about those holds alone that order it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from bootlockd import hypervisor, running
from bootlockd.config import Config
from bootlockd.cycle import Cycle
from bootlockd.events import EventFeeder
from bootlockd.feeder import DatabaseFeeder
from bootlockd.fences.preserve import PreserveFence
from bootlockd.notify import Announcer


class PreserveService:
    """``run`` blocks until ``stop``, which may be called from a signal handler."""

    def __init__(self, config: Config) -> None:
        fence = PreserveFence(config.database.path, config.libvirt.uris)
        self._cycle = Cycle(config, [fence], self._after_turn, concerns=fence.asks)
        self._lock = running.lock_of(config.database.path)
        self._events = [
            EventFeeder(uri, self._cycle.wake, self._connected) for uri in config.libvirt.uris
        ]
        self._database = DatabaseFeeder(config.database.path, self._cycle.holds_changed)
        self._announcer = Announcer()
        self._cycle.longest_wait = self._announcer.rest

    def run(self) -> None:
        """Serve. Raises BootlockdError if it can't begin."""
        descriptor = running.claim(self._lock)
        feeders: list[DatabaseFeeder | EventFeeder] = [self._database, *self._events]
        try:
            for feeder in feeders:
                feeder.start()
            self._cycle.run()
        finally:
            for feeder in feeders:
                feeder.stop()
            os.close(descriptor)

    def stop(self) -> None:
        """End ``run``. What is preserved stays so."""
        self._cycle.stop()

    def between_turns(self, action: Callable[[], None]) -> None:
        """From a signal handler: call ``action`` in the thread that runs, when it may be slow."""
        self._cycle.between_turns(action)

    def _connected(self, _uri: str) -> None:
        hypervisor.drivers.look_again()

    def _after_turn(self, cycle: Cycle) -> None:
        count = len({hold.instance for hold in cycle.holds.values()})
        summary = f"preserving {count} instances"
        if cycle.health.database_error:
            summary += f"; {' '.join(cycle.health.database_error.split())}"
        self._announcer.turned(summary)
