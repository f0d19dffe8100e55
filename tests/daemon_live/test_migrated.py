"""A hold that arrives while a guest's memory is copied: all hooks have been asked by then.

The guest writes to its memory faster than the migration may copy it, so that the copy goes on
until the test lets it finish.
"""

from collections.abc import Iterator

import pytest

from daemon_live import bootsectors
from daemon_live.copying import Migration
from daemon_live.runner import (
    Daemon,
    place,
    power,
    remove_guests,
    start_guest,
    wait_enforced,
    wait_power,
)
from live.guests import Identity
from lockdb.values import OnRunning
from privatehost import PrivateHost
from waiting import wait_until

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def destination(host: PrivateHost) -> Iterator[PrivateHost]:
    with PrivateHost(name="destination", network_of=host) as destination:
        destination.install_bootlock()
        yield destination


@pytest.fixture(scope="module")
def daemons(host: PrivateHost, destination: PrivateHost) -> Iterator[list[Daemon]]:
    with Daemon(host) as here, Daemon(destination) as there:
        yield [here, there]


@pytest.fixture
def migration(
    host: PrivateHost, destination: PrivateHost, daemons: list[Daemon], guest: Identity
) -> Iterator[Migration]:
    # The same path on both hosts: it lies below /tmp.
    disk = bootsectors.write(host.images / f"{guest.name}.img", bootsectors.BUSY)
    booted = host.images / f"{guest.name}.log"
    serial = f"<serial type='file'><source path='{booted}'/></serial>"
    start_guest(host, guest.name, guest.uuid, disks=[disk], devices=serial)
    wait_until(lambda: booted.exists() and booted.stat().st_size, "the guest is busy")
    migration = Migration(host, destination, guest.uuid)
    assert migration.goes_on
    yield migration
    remove_guests(host)
    migration.close()
    remove_guests(destination)


@pytest.mark.parametrize("order", list(OnRunning))
def test_held_here_and_there(
    host: PrivateHost,
    destination: PrivateHost,
    daemons: list[Daemon],
    guest: Identity,
    migration: Migration,
    order: OnRunning,
) -> None:
    """Wherever the guest ends up, it is as ordered there, and it is nowhere else."""
    placed = [place(at, guest.uuid, order, grace=1) for at in (host, destination)]
    assert migration.goes_on
    for daemon in daemons:
        daemon.wake()
    if order is not OnRunning.DESTROY:
        # That one ends the copy itself; libvirt 9.0.0 can crash when asked for more just then.
        migration.finish()
    expected = {OnRunning.PAUSE: "paused", OnRunning.LEAVE: "running"}.get(order, "off")

    def states() -> list[str]:
        return [power(at, guest.uuid) for at in (host, destination)]

    wait_until(lambda: set(states()) <= {expected, "gone", "off"}, f"it is {expected}")
    for at, hold in zip((host, destination), placed, strict=True):
        if power(at, guest.uuid) != "gone":
            wait_enforced(at, hold)
    assert states().count(expected) == 1
    print(f"{order}: {states()}")


def test_held_there_only_pauses_what_arrives(
    destination: PrivateHost, daemons: list[Daemon], guest: Identity, migration: Migration
) -> None:
    hold = place(destination, guest.uuid, OnRunning.PAUSE)
    daemons[1].wake()
    assert migration.goes_on
    assert migration.finish()
    wait_power(destination, guest.uuid, "paused")
    wait_enforced(destination, hold, "paused")


def test_held_there_only_stops_what_arrives(
    destination: PrivateHost, daemons: list[Daemon], guest: Identity, migration: Migration
) -> None:
    hold = place(destination, guest.uuid, OnRunning.SHUTDOWN, grace=1)
    daemons[1].wake()
    assert migration.goes_on
    migration.finish()
    wait_until(lambda: power(destination, guest.uuid) in {"off", "gone"}, "it is off")
    wait_enforced(destination, hold, "off")
