"""``bootlockd --preserve``: keeps the disks of preserved instances as they are.

A process of its own, since it needs what nothing else of ours does: to change files everywhere
guests' disks may be, immutable ones too. It talks to nobody but libvirt on this host: its orders
are the holds in the database, and what it did is there, in rows, as bootlockd's own.

It is the same cycle as bootlockd's with one fence, about those holds alone that order it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence

from bootlockd import hypervisor, running
from bootlockd.config import Config
from bootlockd.cycle import Cycle, Request, Stop
from bootlockd.events import EventFeeder
from bootlockd.feeder import DatabaseFeeder
from bootlockd.fences.preserve import PreserveFence
from bootlockd.notify import notify, watchdog_interval
from bootlockd.values import Wake

log = logging.getLogger(__name__)

#: Seconds between turns that nothing asks for.
NEVER = 3600.0


class PreserveService:
    """``run`` blocks until ``stop``, which may be called from a signal handler."""

    def __init__(self, config: Config) -> None:
        fence = PreserveFence(config.database.path, config.libvirt.uris)
        self._cycle = Cycle(config, [fence], self._after_turn, concerns=fence.asks)
        self._lock = running.lock_of(config.database.path)
        self._events = [
            EventFeeder(uri, self._cycle.wake, self._connected) for uri in config.libvirt.uris
        ]
        self._database = DatabaseFeeder(config.database.path, self._changed)
        self._said = ""
        self._watchdog = watchdog_interval()
        self._next_ping = 0.0
        self._cycle.longest_wait = self._watchdog / 3 if self._watchdog else NEVER

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
        self._cycle.inbox.put(Stop())

    def between_turns(self, action: Callable[[], None]) -> None:
        """From a signal handler: call ``action`` in the thread that runs, when it may be slow."""
        self._cycle.inbox.put(Request(lambda _cycle: action()))

    def _connected(self, _uri: str) -> None:
        hypervisor.drivers.look_again()

    def _changed(self, instances: Sequence[str]) -> None:
        self._cycle.inbox.put(Request(lambda cycle: cycle.read_holds()))
        for instance in instances:
            self._cycle.wake(Wake("hold or permit changed", instance))

    def _after_turn(self, cycle: Cycle) -> None:
        count = len({hold.instance for hold in cycle.holds.values()})
        summary = f"preserving {count} instances"
        if cycle.health.database_error:
            summary += f"; {' '.join(cycle.health.database_error.split())}"
        now = time.monotonic()
        try:
            if not self._said:
                notify("READY=1")
                log.info("ready: %s", summary)
            if summary != self._said:
                notify(f"STATUS={summary}")
            if self._watchdog and now >= self._next_ping:
                self._next_ping = now + self._watchdog / 3
                notify("WATCHDOG=1")
        except OSError as error:
            log.error("systemd does not listen: %s", error)
        self._said = summary
