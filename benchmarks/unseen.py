"""How long a held guest runs that was let run by a route on which libvirt asks no hook.

By libvirt's own events, as they arrive in this process: from the guest's start or resumption to its
suspension, which comes first where it is destroyed. QEMUs past libvirt are in ``process_watch``.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import libvirt

from bootlockd.events import run_event_loop
from daemon_live import bootsectors
from daemon_live.copying import Migration
from daemon_live.runner import (
    Daemon,
    place,
    release,
    remove_guests,
    start_guest,
    wait_enforced,
    wait_power,
)
from lockdb.values import Hold, OnRunning
from privatehost import PrivateHost
from waiting import wait_until

_NAME = "unseen"

#: A route: what lets the paused guest run.
Route = Callable[[PrivateHost], object]

_ENDS = {libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_STOPPED}


class Runs:
    """The times that one guest ran, in seconds. ``close`` it."""

    def __init__(self, host: PrivateHost, instance: str, begins: Sequence[int]) -> None:
        run_event_loop()
        self.times: list[float] = []
        self._began: float | None = None
        self._instance = instance
        self._begins = begins
        self._connection = host.connect()
        self._connection.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._happened, None
        )

    def _happened(self, _c: object, domain: libvirt.virDomain, event: int, *_: object) -> None:
        now = time.monotonic()
        if domain.UUIDString() != self._instance:
            return
        if event in self._begins and self._began is None:
            self._began = now
        elif event in _ENDS and self._began is not None:
            self.times.append(now - self._began)
            self._began = None

    def next(self, let_run: Callable[[], object]) -> float:
        """Seconds that it runs after this."""
        before = len(self.times)
        let_run()
        wait_until(lambda: len(self.times) > before, "it ran and was stopped")
        return self.times[-1]

    def close(self) -> None:
        """Listen no more."""
        self._connection.close()


def routes(host: PrivateHost, daemon: Daemon, rounds: int) -> dict[str, list[float]]:
    """Seconds by route: each of ``rounds`` tries."""
    found = {
        "resume": paused(host, daemon, rounds, _resume),
        "the monitor's cont": paused(host, daemon, rounds, _cont),
        "reset, then resume": paused(host, daemon, rounds, _reset),
        "a wake-up (S3)": [woken(host, daemon) for _ in range(rounds)],
        "a start that no hook saw": started(host, daemon, rounds),
    }
    with PrivateHost(name="destination", network_of=host) as destination:
        destination.install_bootlock()
        with Daemon(destination) as there:
            found["the end of a migration, held in its copy"] = [
                migrated(host, destination, there) for _ in range(max(1, rounds // 3))
            ]
    return found


def paused(host: PrivateHost, daemon: Daemon, rounds: int, route: Route) -> list[float]:
    """Of a guest that is held paused."""
    with guest(host, bootsectors.TALKATIVE) as instance:
        hold = held(host, daemon, instance, OnRunning.PAUSE, "paused")
        with closing(Runs(host, instance, [libvirt.VIR_DOMAIN_EVENT_RESUMED])) as runs:
            times = []
            for _ in range(rounds):
                times.append(runs.next(lambda: route(host)))
                wait_power(host, instance, "paused")
        release(host, hold)
        daemon.wake()
    return times


def woken(host: PrivateHost, daemon: Daemon) -> float:
    """Of a guest that sleeps, and is held paused."""
    with guest(host, bootsectors.SLEEPY) as instance:
        wait_power(host, instance, "asleep")
        hold = held(host, daemon, instance, OnRunning.PAUSE, "paused")
        begins = [libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_RESUMED]
        with closing(Runs(host, instance, begins)) as runs:
            took = runs.next(lambda: host.virsh("dompmwakeup", _NAME))
        release(host, hold)
        daemon.wake()
    return took


def started(host: PrivateHost, daemon: Daemon, rounds: int) -> list[float]:
    """Of a guest that is held off, on a host whose hook is disarmed."""
    hook = host.outside("/etc/libvirt/hooks/qemu.d/50-bootlock")
    # Without a disk, whose lock would keep it from starting.
    with guest(host) as instance:
        hold = held(host, daemon, instance, OnRunning.DESTROY, "off")
        hook.chmod(0o644)
        begins = [libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_RESUMED]
        with closing(Runs(host, instance, begins)) as runs:
            times = []
            for _ in range(rounds):
                # It may be stopped in the middle of its start, which then fails.
                times.append(runs.next(lambda: host.virsh("start", _NAME, check=False)))
                wait_power(host, instance, "off")
        hook.chmod(0o755)
        release(host, hold)
        daemon.wake()
    return times


def migrated(host: PrivateHost, destination: PrivateHost, there: Daemon) -> float:
    """Of a guest that is held at the destination while its memory is copied."""
    with guest(host, bootsectors.BUSY) as instance:
        with closing(Migration(host, destination, instance)) as migration:
            hold = place(destination, instance, OnRunning.PAUSE)
            there.wake()
            begins = [libvirt.VIR_DOMAIN_EVENT_RESUMED]
            with closing(Runs(destination, instance, begins)) as runs:
                took = runs.next(migration.finish)
        wait_power(destination, instance, "paused")
        release(destination, hold)
        there.wake()
        remove_guests(destination)
    return took


@contextmanager
def guest(host: PrivateHost, program: str = "") -> Iterator[str]:
    """The UUID of a running guest with this program on its disk; removed afterwards."""
    instance = str(uuid.uuid4())
    disks = [bootsectors.write(host.images / f"{_NAME}.img", program)] if program else []
    said = host.images / f"{_NAME}.log"
    said.unlink(missing_ok=True)
    serial = f"<serial type='file'><source path='{said}'/></serial>"
    start_guest(host, _NAME, instance, disks=disks, devices=serial)
    if program in {bootsectors.TALKATIVE, bootsectors.BUSY}:
        wait_until(lambda: said.exists() and said.stat().st_size, "the guest runs")
    try:
        yield instance
    finally:
        remove_guests(host)


def held(host: PrivateHost, daemon: Daemon, instance: str, order: OnRunning, detail: str) -> Hold:
    """The hold, once it is enforced."""
    hold = place(host, instance, order)
    daemon.wake()
    wait_enforced(host, hold, detail)
    return hold


def _resume(host: PrivateHost) -> None:
    host.virsh("resume", _NAME)


def _cont(host: PrivateHost) -> None:
    host.virsh("qemu-monitor-command", _NAME, '{"execute": "cont"}')


def _reset(host: PrivateHost) -> None:
    host.virsh("reset", _NAME)
    host.virsh("resume", _NAME)
