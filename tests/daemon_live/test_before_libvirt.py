"""bootlockd with a libvirtd that does not answer yet: it hangs, or it is starting guests.

At a boot libvirtd waits for bootlockd, then starts guests, and only then answers.
"""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from daemon_live.runner import Daemon, database, release, row_of, start_guest
from daemonhost import SETTINGS
from domainxml import domain_xml
from fences.lockedfiles import is_locked
from fences.netscene import BRIDGE, build, flush, is_cut, set_up
from live.guests import Identity, qemu_pid
from lockdb import disks, holds, permits
from lockdb.database import open_db
from lockdb.enforcements import State
from lockdb.values import Hold, NewHold, Operation
from privatehost import PrivateHost
from waiting import wait_until

pytestmark = pytest.mark.live

#: Asked by libvirtd, this keeps it from answering anybody once a guest has begun to run.
_HOOK = """#!/bin/sh
[ "$2" = started ] || exit 0
touch '{began}'
while [ -e '{stay}' ]; do sleep 0.05; done
"""


@contextmanager
def silent(host: PrivateHost) -> Iterator[None]:
    """libvirtd's socket is there, and nobody answers."""
    libvirtd = host.outside("/run/libvirtd.pid").read_text().strip()
    host.run(["kill", "-s", "STOP", libvirtd])
    try:
        yield
    finally:
        host.run(["kill", "-s", "CONT", libvirtd])


def isolate(host: PrivateHost, guest: Identity) -> Hold:
    new = NewHold(guest.uuid, "abuse", "a test", isolate=True)
    with open_db(database(host)) as lock_db:
        return holds.place(lock_db, new, now=int(time.time()))


def nic(device: str) -> str:
    return (
        f"<interface type='bridge'><source bridge='{BRIDGE}'/><target dev='{device}'/>"
        "<model type='virtio'/></interface>"
    )


def wait_ready(daemon: Daemon) -> None:
    wait_until(lambda: "ready: enforcing" in daemon.log, "it is ready")


@pytest.fixture
def device(host: PrivateHost) -> Iterator[str]:
    build(host)
    yield "guestnic"
    host.run(["ip", "link", "delete", BRIDGE])
    host.run(["ip", "link", "delete", "port0"])


def test_the_disks_of_what_is_off_are_locked_and_it_is_ready(
    host: PrivateHost, guest: Identity
) -> None:
    disk = host.images / f"{guest.name}.img"
    disk.write_bytes(bytes(1 << 20))
    hold = isolate(host, guest)
    with open_db(database(host)) as lock_db:
        disks.record(lock_db, guest.uuid, [disks.path_key(str(disk))], now=1)
    daemon = Daemon(host)
    with silent(host):
        began = time.monotonic()
        daemon.launch()
        wait_ready(daemon)
        # libvirt's own time limit, which it does not wait for.
        assert time.monotonic() - began < 10
        assert is_locked(disk)
        row = row_of(host, hold, "image-lock")
        assert row
        assert row.state is State.ENFORCED
        power = row_of(host, hold)
        assert power is None, "nothing is claimed that libvirt was not asked for"
        assert not daemon.status()["looked"]
    wait_until(lambda: daemon.status()["looked"], "libvirt answers")
    release(host, hold)
    daemon.wake()
    wait_until(lambda: not is_locked(disk), "it is let go")
    daemon.end("TERM")


def test_the_network_of_what_runs_is_cut(host: PrivateHost, guest: Identity, device: str) -> None:
    """The rules are gone and its link is up: nothing is left of what a daemon did before."""
    start_guest(host, guest.name, guest.uuid, devices=nic(device))
    hold = isolate(host, guest)
    with Daemon(host) as daemon:
        wait_until(lambda: is_cut(host, device), "it is cut")
        wait_until(lambda: _state(host, hold) is State.ENFORCED, "and that is recorded")
        daemon.end("KILL")
        flush(host)
        set_up(host, device)
        with silent(host):
            daemon.launch()
            wait_until(lambda: is_cut(host, device), "it is cut without libvirt")
            assert not daemon.status()["looked"]
        release(host, hold)


def test_what_libvirt_starts_before_it_answers_is_cut(
    host: PrivateHost, guest: Identity, device: str
) -> None:
    """A permit lets it start at a boot; it does not give it its network."""
    with closing(host.connect()) as opened:
        domain = opened.defineXML(domain_xml(guest.name, guest.uuid, devices=nic(device)))
        domain.setAutostart(True)
    hold = isolate(host, guest)
    now = int(time.time())
    with open_db(database(host)) as lock_db:
        permits.grant(
            lock_db, guest.uuid, Operation.START, until=now + 600, reason="r", by="t", now=now
        )
    hook = host.outside("/etc/libvirt/hooks/qemu.d/60-stay")
    stay = _stay(host, hook)
    host.stop_libvirtd()
    # Autostart is only for the first libvirtd after a boot.
    host.outside("/run/libvirt/qemu/autostarted").unlink()
    # No timer, no event of libvirt's: only the kernel tells of the guest.
    daemon = Daemon(host, settings=SETTINGS + "[daemon]\ninterval = 3600\n")
    try:
        daemon.launch()
        wait_ready(daemon)
        libvirtd = host.popen(["libvirtd", "-p", "/run/libvirtd.pid"])
        wait_until((host.root / "began").exists, "the guest begins to run")
        wait_until(lambda: is_cut(host, device), "its NIC is cut")
        assert not daemon.status()["libvirt"]["qemu:///system"], "libvirt has not answered"
        assert qemu_pid(host, guest.uuid)
        stay.unlink()
        wait_until(lambda: _state(host, hold) is State.ENFORCED, "it is recorded")
        assert libvirtd.poll() is None
    finally:
        stay.unlink(missing_ok=True)
        hook.unlink()
        daemon.end("KILL")
    release(host, hold)


def _stay(host: PrivateHost, hook: Path) -> Path:
    began, stay = host.root / "began", host.root / "stay"
    stay.touch()
    hook.write_text(_HOOK.format(began=began, stay=stay))
    hook.chmod(0o755)
    host.sighup()
    return stay


def _state(host: PrivateHost, hold: Hold) -> State | None:
    row = row_of(host, hold, "network")
    return row.state if row else None
