"""One run of the daemon with one configuration: the cycle and everything that feeds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Protocol

from bootlockd import __version__, hypervisor
from bootlockd.armed import Armed
from bootlockd.breakglass import BreakGlassWatch
from bootlockd.config import Config
from bootlockd.control import ControlSocket
from bootlockd.cycle import Cycle
from bootlockd.events import EventFeeder
from bootlockd.feeder import DatabaseFeeder
from bootlockd.notify import Announcer
from bootlockd.registry import fences


class Feeder(Protocol):
    """What wakes the cycle, or proves something beside it."""

    def start(self) -> None:
        """Begin. Returns at once."""

    def stop(self) -> None:
        """End."""


class Service:
    """``run`` blocks until ``stop``, which may be called from a signal handler."""

    def __init__(self, config: Config) -> None:
        self._cycle = Cycle(config, fences(config), self._after_turn)
        self._armed = Armed(config)
        self._break_glass = BreakGlassWatch(config.database.path)
        self._events = [
            EventFeeder(uri, self._cycle.wake, self._connected) for uri in config.libvirt.uris
        ]
        self._control = ControlSocket(config.daemon.control_socket, self._cycle, self.status)
        self._feeders: list[Feeder] = [
            self._armed,
            self._break_glass,
            DatabaseFeeder(config.database.path, self._cycle.holds_changed),
            *self._events,
        ]
        self._announcer = Announcer()
        self._cycle.longest_wait = self._announcer.rest

    def run(self) -> None:
        """Serve. Raises BootlockdError if it can't begin."""
        self._control.start()
        try:
            for feeder in self._feeders:
                feeder.start()
            self._cycle.run()
        finally:
            for feeder in self._feeders:
                feeder.stop()
            self._control.stop()

    def stop(self) -> None:
        """End ``run``. What is enforced stays enforced."""
        self._cycle.stop()

    def between_turns(self, action: Callable[[], None]) -> None:
        """From a signal handler: call ``action`` in the thread that runs, when it may be slow."""
        self._cycle.between_turns(action)

    def status(self, cycle: Cycle) -> dict[str, Any]:
        """Health as plain JSON types."""
        return asdict(cycle.health) | {
            "database": str(cycle.config.database.path),
            "holds": len(cycle.holds),
            "libvirt": {feeder.uri: feeder.connected for feeder in self._events},
            "armed": self._armed.standing(),
            "break_glass": self._break_glass.present,
            "turns": cycle.turns.as_dict(),
            "jobs": cycle.jobs.as_dict(),
            "version": __version__,
        }

    def _connected(self, uri: str) -> None:
        """A libvirtd answers, perhaps a new one, which may have drivers that the last had not."""
        hypervisor.drivers.look_again()
        for feeder in self._events:
            if feeder.uri != uri and not feeder.connected:
                feeder.again()
        self._armed.connected(uri)

    def _after_turn(self, cycle: Cycle) -> None:
        # Ready once what can be done before libvirt answers was done. libvirt may wait for this to
        # start: to wait for it here would be to wait for each other.
        self._announcer.turned(_summary(cycle) if cycle.is_prepared else "")


def _summary(cycle: Cycle) -> str:
    health = cycle.health
    faults = [health.database_error, health.libvirt_error]
    faults += [f"{len(health.stuck)} instances do not answer"] if health.stuck else []
    faults += [f"{len(health.vanished)} holds vanished"] if health.vanished else []
    faults += [] if health.looked else ["libvirt has not answered yet"]
    words = [f"enforcing {len(cycle.holds)} holds", *filter(None, faults)]
    return "; ".join(" ".join(word.split()) for word in words)
