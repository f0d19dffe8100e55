"""A migration takes a definition along: there must not be two of one instance afterwards."""

from collections.abc import Iterator
from contextlib import closing

import libvirt
import pytest

from daemon_live.runner import (
    Daemon,
    database,
    power,
    release,
    remove_guests,
    row_of,
    start_guest,
)
from daemonhost import SETTINGS
from live.guests import Identity
from lockdb import holds, journal
from lockdb.database import open_db
from lockdb.enforcements import State
from lockdb.values import Hold, Kind, NewHold
from privatehost import PrivateHost
from samples import NOW
from waiting import wait_until

pytestmark = pytest.mark.live

KEEPING = SETTINGS.replace('restore = "off"', 'restore = "at_once"')

TAKING_ALONG = libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE


@pytest.fixture(scope="module")
def destination(host: PrivateHost) -> Iterator[PrivateHost]:
    with PrivateHost(name="destination", network_of=host) as destination:
        destination.install_bootlock()
        yield destination


@pytest.fixture
def daemons(host: PrivateHost, destination: PrivateHost) -> Iterator[list[Daemon]]:
    with Daemon(host, settings=KEEPING) as here, Daemon(destination, settings=KEEPING) as there:
        yield [here, there]


@pytest.fixture
def held(
    host: PrivateHost, destination: PrivateHost, daemons: list[Daemon], guest: Identity
) -> Iterator[list[Hold]]:
    """State locks, which leave migrations open, on a guest that runs here; there, on nothing."""
    wait_until(lambda: all(map(hears, daemons)), "events are heard")
    start_guest(host, guest.name, guest.uuid)
    placed = []
    for at in (host, destination):
        with open_db(database(at)) as lock_db:
            new = NewHold(guest.uuid, "production", "a test", kind=Kind.STATE_LOCK)
            placed.append(holds.place(lock_db, new, now=NOW))
    wait_until(lambda: detail(host, placed[0]).endswith("active"), "it was seen to run")
    yield placed
    for at, hold, daemon in zip((host, destination), placed, daemons, strict=True):
        release(at, hold)
        daemon.settle(guest.uuid)
        remove_guests(at)


def hears(daemon: Daemon) -> bool:
    """It would be told of a migration."""
    return all(daemon.status()["libvirt"].values())


def detail(host: PrivateHost, hold: Hold) -> str:
    row = row_of(host, hold, "definition")
    return row.detail if row else ""


def migrate(host: PrivateHost, destination: PrivateHost, guest: Identity, flags: int) -> None:
    parameters = {libvirt.VIR_MIGRATE_PARAM_URI: "tcp://127.0.0.1"}
    with closing(host.connect()) as here, closing(destination.connect()) as there:
        here.lookupByUUIDString(guest.uuid).migrate3(there, parameters, flags)


def has_left(host: PrivateHost, guest: Identity) -> bool:
    """The journal says that it went, and how. A row says so until the next look."""
    with open_db(database(host), read_only=True) as lock_db, lock_db.read() as db:
        entries = journal.entries(db, instance=guest.uuid, event="definition_ended")
        return any("it migrated" in entry for entry in entries)


def is_kept(host: PrivateHost, hold: Hold) -> bool:
    row = row_of(host, hold, "definition")
    return row is not None and row.state is State.ENFORCED


def test_what_migrated_alive_is_kept_there_and_left_alone_here(
    host: PrivateHost,
    destination: PrivateHost,
    daemons: list[Daemon],
    guest: Identity,
    held: list[Hold],
) -> None:
    migrate(host, destination, guest, libvirt.VIR_MIGRATE_LIVE | TAKING_ALONG)
    wait_until(lambda: is_kept(destination, held[1]), "it is kept where it is now")
    wait_until(lambda: has_left(host, guest), "that is seen where it was")
    daemons[0].settle(guest.uuid)
    assert power(host, guest.uuid) == "gone"
    assert power(destination, guest.uuid) == "running"

    migrate(destination, host, guest, libvirt.VIR_MIGRATE_LIVE | TAKING_ALONG)
    wait_until(lambda: is_kept(host, held[0]), "it is kept where it came back to")
    wait_until(lambda: has_left(destination, guest), "that is seen there")
    assert power(destination, guest.uuid) == "gone"


def test_one_that_migrated_while_no_daemon_ran_is_not_defined_again(
    host: PrivateHost,
    destination: PrivateHost,
    daemons: list[Daemon],
    guest: Identity,
    held: list[Hold],
) -> None:
    daemons[0].end("KILL")
    migrate(host, destination, guest, libvirt.VIR_MIGRATE_LIVE | TAKING_ALONG)
    daemons[0].start()
    wait_until(lambda: "may have migrated" in detail(host, held[0]), "it says so")
    assert power(host, guest.uuid) == "gone"
    assert power(destination, guest.uuid) == "running"
