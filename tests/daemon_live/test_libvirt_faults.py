"""libvirtd restarted, stopped, hung; guests that don't obey or don't answer: holds come true still.

Nothing here is reported as enforced that was not seen, and one that hangs delays no other.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from daemon_live import bootsectors
from daemon_live.runner import (
    Daemon,
    is_enforced,
    place,
    power,
    row_of,
    start_guest,
    wait_enforced,
    wait_power,
)
from daemonhost import SETTINGS
from live.guests import Identity, qemu_pid, runs, somebody_new
from lockdb.enforcements import State
from lockdb.values import OnRunning
from privatehost import PrivateHost
from waiting import wait_until

pytestmark = pytest.mark.live

#: Seconds for which libvirtd is stopped; its guests go on.
OUTAGE = 30


@contextmanager
def hung(pid: int) -> Iterator[None]:
    """The process is stopped within, as one that hangs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        # It may have been ended, as it should be.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def libvirtd_of(host: PrivateHost) -> int:
    [pid] = [pid for pid, command in host.processes().items() if command.startswith("libvirtd ")]
    return pid


def is_connected(daemon: Daemon) -> bool:
    return bool(daemon.status()["libvirt"]["qemu:///system"])


def test_libvirtd_restarted_under_it(host: PrivateHost, daemon: Daemon, guest: Identity) -> None:
    """Afterwards events arrive again: a paused one that is resumed is paused again."""
    left = somebody_new()
    start_guest(host, guest.name, guest.uuid)
    start_guest(host, left.name, left.uuid)
    paused = place(host, guest.uuid, OnRunning.PAUSE)
    stays = place(host, left.uuid, OnRunning.LEAVE)
    daemon.wake()
    wait_enforced(host, paused, "paused")
    wait_enforced(host, stays, "left running")
    process = qemu_pid(host, left.uuid)
    for how in ("TERM", "KILL"):
        host.stop_libvirtd(how)
        wait_until(lambda: not is_connected(daemon), "the daemon sees that libvirtd is gone")
        host.start_libvirtd()
        wait_until(lambda: is_connected(daemon), "it is connected again")
        host.virsh("resume", guest.name)
        wait_power(host, guest.uuid, "paused")
    wait_enforced(host, stays, "left running")
    assert qemu_pid(host, left.uuid) == process


def test_resumed_between_two_libvirtds(host: PrivateHost, guest: Identity) -> None:
    """Nobody sees the event: the daemon looks at everything when it is connected again."""
    # The fence's timer is out of the way: only the new connection can bring it about.
    settings = SETTINGS + "[daemon]\ninterval = 3600\n"
    with Daemon(host, settings=settings) as daemon:
        start_guest(host, guest.name, guest.uuid)
        hold = place(host, guest.uuid, OnRunning.PAUSE)
        daemon.wake()
        wait_enforced(host, hold, "paused")
        with hung(daemon.pid):
            host.virsh("resume", guest.name)
            host.stop_libvirtd("KILL")
        wait_until(lambda: not is_connected(daemon), "the daemon sees that libvirtd is gone")
        host.start_libvirtd()
        wait_power(host, guest.uuid, "paused")


def test_libvirtd_stopped_for_half_a_minute(
    host: PrivateHost, daemon: Daemon, guest: Identity
) -> None:
    """A hold that comes meanwhile is not claimed to be enforced, and is as soon as it can be."""
    start_guest(host, guest.name, guest.uuid)
    process = qemu_pid(host, guest.uuid)
    host.stop_libvirtd()
    hold = place(host, guest.uuid, OnRunning.DESTROY)
    daemon.wake()
    until = time.monotonic() + OUTAGE
    while time.monotonic() < until:
        assert not is_enforced(host, hold)
        time.sleep(0.5)
    assert not is_connected(daemon)
    assert daemon.status()["libvirt_error"] or "cannot be looked at" in daemon.log
    assert qemu_pid(host, guest.uuid) == process
    host.start_libvirtd()
    wait_enforced(host, hold, "off")
    assert not runs(host, guest.uuid)


def test_libvirtd_hung(host: PrivateHost, daemon: Daemon, guest: Identity) -> None:
    """The daemon answers, claims nothing, and goes on as soon as libvirtd does."""
    start_guest(host, guest.name, guest.uuid)
    with hung(libvirtd_of(host)):
        hold = place(host, guest.uuid, OnRunning.DESTROY)
        daemon.wake()
        for _ in range(10):
            daemon.status()
            assert not is_enforced(host, hold)
            time.sleep(0.5)
        assert qemu_pid(host, guest.uuid)
    wait_enforced(host, hold, "off")
    assert not runs(host, guest.uuid)


def test_a_guest_that_obeys_the_power_button_is_not_destroyed(
    host: PrivateHost, daemon: Daemon, guest: Identity
) -> None:
    disk = bootsectors.write(host.images / f"{guest.name}.img", bootsectors.OBEDIENT)
    booted = host.images / f"{guest.name}.log"
    serial = f"<serial type='file'><source path='{booted}'/></serial>"
    start_guest(host, guest.name, guest.uuid, disks=[disk], devices=serial)
    wait_until(lambda: booted.exists() and booted.stat().st_size, "the guest listens")
    hold = place(host, guest.uuid, OnRunning.SHUTDOWN, grace=3600)
    daemon.wake()
    wait_enforced(host, hold, "off")
    reason = host.virsh("domstate", "--reason", guest.name).stdout.strip()
    assert reason == "shut off (shutdown)"


def test_a_guest_that_ignores_the_power_button_is_destroyed_after_its_grace(
    host: PrivateHost, daemon: Daemon, guest: Identity
) -> None:
    start_guest(host, guest.name, guest.uuid)
    began = time.time()
    hold = place(host, guest.uuid, OnRunning.SHUTDOWN, grace=3)
    daemon.wake()

    def is_asked() -> bool:
        row = row_of(host, hold)
        return bool(row and row.state is State.PENDING and row.next_try)

    wait_until(is_asked, "it is asked to shut down")
    assert power(host, guest.uuid) == "running"
    wait_enforced(host, hold, "off")
    # A grace is counted in whole seconds.
    assert time.time() - began > 2
    reason = host.virsh("domstate", "--reason", guest.name).stdout.strip()
    assert reason == "shut off (destroyed)"


@pytest.mark.parametrize("order", list(OnRunning))
def test_a_guest_whose_qemu_hangs_delays_no_other(
    host: PrivateHost, daemon: Daemon, guest: Identity, order: OnRunning
) -> None:
    """The other is enforced while the hung one's job still hangs, or has ended it."""
    other = somebody_new()
    start_guest(host, guest.name, guest.uuid)
    start_guest(host, other.name, other.uuid)
    process = qemu_pid(host, guest.uuid)
    assert process
    with hung(process):
        stuck = place(host, guest.uuid, order, grace=1)
        daemon.wake()
        free = place(host, other.uuid, OnRunning.DESTROY)
        daemon.wake()
        wait_enforced(host, free, "off")
        assert power(host, other.uuid) == "off"
        if order is OnRunning.DESTROY:
            # SIGKILL ends a stopped process too.
            wait_enforced(host, stuck, "off")
            assert qemu_pid(host, guest.uuid) is None
        elif order is not OnRunning.LEAVE:
            assert not is_enforced(host, stuck)
    if order is not OnRunning.LEAVE:
        wait_enforced(host, stuck)
        assert power(host, guest.uuid) in {"off", "paused"}
