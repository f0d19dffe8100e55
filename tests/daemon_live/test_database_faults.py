"""The database locked, put back to an older copy, lost, or out of room: nothing held runs on."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from daemon_live.runner import (
    Daemon,
    database,
    is_enforced,
    place,
    start_guest,
    wait_enforced,
    wait_power,
)
from live.guests import Identity, somebody_new
from lockdb.values import Hold, OnRunning
from privatehost import PrivateHost
from waiting import wait_until

pytestmark = pytest.mark.live


@contextmanager
def locked(host: PrivateHost) -> Iterator[None]:
    """Another writer has begun, and does not end."""
    with closing(sqlite3.connect(database(host), isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def test_locked(host: PrivateHost, daemon: Daemon, guest: Identity) -> None:
    """Holds come true while nothing can be written, and are reported when it can."""
    start_guest(host, guest.name, guest.uuid)
    hold = place(host, guest.uuid, OnRunning.DESTROY)
    with locked(host):
        # Started anew, so that nothing is known from before; and it only reads to enforce.
        daemon.end("KILL")
        daemon.launch()
        wait_power(host, guest.uuid, "off")
        assert not is_enforced(host, hold)
    wait_enforced(host, hold, "off")


def test_an_older_copy_in_its_place(host: PrivateHost, daemon: Daemon, guest: Identity) -> None:
    """A hold that is gone without a release goes on holding, loudly; the next one too."""
    backup = host.root / "lock.db.backup"
    with (
        closing(sqlite3.connect(database(host))) as source,
        closing(sqlite3.connect(backup)) as target,
    ):
        source.backup(target)
    start_guest(host, guest.name, guest.uuid)
    hold = place(host, guest.uuid, OnRunning.PAUSE)
    daemon.wake()
    wait_enforced(host, hold, "paused")

    replace(host, backup)
    daemon.wake()
    wait_until(lambda: daemon.status()["vanished"] == [hold.id], "it is missed")
    assert f"hold={hold.id} instance={guest.uuid} vanished, still enforced" in daemon.log
    host.virsh("resume", guest.name)
    wait_power(host, guest.uuid, "paused")

    other = somebody_new()
    start_guest(host, other.name, other.uuid)
    wait_enforced(host, place_and_wake(host, daemon, other), "off")


def place_and_wake(host: PrivateHost, daemon: Daemon, guest: Identity) -> Hold:
    hold = place(host, guest.uuid, OnRunning.DESTROY)
    daemon.wake()
    return hold


def replace(host: PrivateHost, backup: Path) -> None:
    """What restores a backup does, with the old file's log."""
    for suffix in ("-wal", "-shm"):
        database(host).with_name(f"lock.db{suffix}").unlink(missing_ok=True)
    shutil.copy(backup, database(host).with_name("lock.db.new"))
    database(host).with_name("lock.db.new").rename(database(host))


def test_lost(host: PrivateHost, guest: Identity) -> None:
    """Nothing can start, by the hook; what is paused stays so, by the daemon."""
    with Daemon(host) as daemon:
        start_guest(host, guest.name, guest.uuid)
        hold = place(host, guest.uuid, OnRunning.PAUSE)
        daemon.wake()
        wait_enforced(host, hold, "paused")
        kept = {path: path.read_bytes() for path in database(host).parent.glob("lock.db*")}
        for path in kept:
            path.unlink()
        try:
            daemon.wake()
            wait_until(lambda: daemon.status()["database_error"], "it is missed")
            assert "the holds last read stay in force" in daemon.log
            host.virsh("resume", guest.name)
            wait_power(host, guest.uuid, "paused")
        finally:
            database(host).write_bytes(kept[database(host)])
        daemon.wake()
        wait_until(lambda: not daemon.status()["database_error"], "it is found again")
        # Without its log the copy may lack the hold: then it has vanished, and holds.
        host.virsh("resume", guest.name)
        wait_power(host, guest.uuid, "paused")


def test_no_room(guest: Identity) -> None:
    """What was placed is kept up although nothing can be written; what can't be placed, fails."""
    with PrivateHost(name="full") as host:
        host.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", "/var/lib/bootlock"])
        host.install_bootlock()
        start_guest(host, guest.name, guest.uuid)
        host.bootlock("place", guest.uuid, "--reason", "r", "--on-running", "pause", "--no-wait")
        with Daemon(host) as daemon:
            wait_until(lambda: shown(host, "state") == {"enforced"}, "it is paused")
            host.run(["sh", "-c", "cat /dev/zero >/var/lib/bootlock/ballast || :"])
            refused = host.bootlock("place", somebody_new().uuid, "--reason", "r", check=False)
            assert refused.returncode == 5
            host.virsh("resume", guest.name)
            wait_power(host, guest.uuid, "paused")
            host.virsh("destroy", guest.name)
            wait_until(lambda: "enforcement is not recorded" in daemon.log, "it is said")
            host.run(["rm", "/var/lib/bootlock/ballast"])
            wait_until(
                lambda: shown(host, "detail") == {"off"}, "it is reported once there is room"
            )


def test_no_room_at_its_start(guest: Identity) -> None:
    """As after a boot: SQLite finds no room for what it shares between processes."""
    with PrivateHost(name="full") as host:
        host.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", "/var/lib/bootlock"])
        host.install_bootlock()
        start_guest(host, guest.name, guest.uuid)
        host.bootlock("place", guest.uuid, "--reason", "r", "--on-running", "pause", "--no-wait")
        directory = host.run(["ls", "/var/lib/bootlock"]).stdout.split()
        assert "lock.db-shm" not in directory
        host.run(["touch", "-d", "1 minute ago", "/var/lib/bootlock/lock.db"])
        host.run(["sh", "-c", "cat /dev/zero >/var/lib/bootlock/ballast || :"])
        with Daemon(host) as daemon:
            wait_power(host, guest.uuid, "paused")
            assert "disk I/O error" in daemon.status()["database_error"]
            assert "the holds are read from a copy" in daemon.log
            host.run(["rm", "/var/lib/bootlock/ballast"])
            wait_until(lambda: shown(host, "state") == {"enforced"}, "it is recorded")
            daemon.wake()
            assert daemon.status()["database_error"] == ""


def shown(host: PrivateHost, column: str) -> set[str]:
    """A column of the power fence's rows, read inside: the tmpfs is only there."""
    query = f"SELECT DISTINCT {column} FROM enforcement WHERE fence = 'power'"
    return set(host.run(["sqlite3", "/var/lib/bootlock/lock.db", query]).stdout.split())
