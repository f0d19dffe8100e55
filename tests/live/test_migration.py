"""A guest migrates only to a host that doesn't hold it; refused, it goes on where it was."""

from collections.abc import Callable, Iterator

import libvirt
import pytest

from domainxml import domain_xml
from live.guests import place, refused, release, remove, remove_all, runs, somebody_new
from privatehost import PrivateHost

pytestmark = pytest.mark.live

Migrate = Callable[[libvirt.virDomain, PrivateHost], object]

LOOPBACK = {libvirt.VIR_MIGRATE_PARAM_URI: "tcp://127.0.0.1"}


@pytest.fixture(scope="module")
def destination(host: PrivateHost) -> Iterator[PrivateHost]:
    with PrivateHost(name="destination", network_of=host) as destination:
        destination.install_bootlock()
        yield destination


@pytest.fixture
def domain(qemu: libvirt.virConnect, destination: PrivateHost) -> Iterator[libvirt.virDomain]:
    """A guest, defined and off, on the host to migrate from."""
    guest = somebody_new()
    yield qemu.defineXML(domain_xml(guest.name, guest.uuid))
    remove_all(destination)


def direct(domain: libvirt.virDomain, destination: PrivateHost) -> None:
    """The client talks to both hosts."""
    connection = destination.connect()
    domain.migrate3(connection, LOOPBACK, libvirt.VIR_MIGRATE_LIVE)
    connection.close()


def peer_to_peer(domain: libvirt.virDomain, destination: PrivateHost) -> None:
    """The source's libvirtd talks to the destination's, as OpenStack has it."""
    flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER
    domain.migrateToURI3(destination.uri, LOOPBACK, flags)


def tunnelled(domain: libvirt.virDomain, destination: PrivateHost) -> None:
    """The guest's memory goes through both libvirtds too."""
    flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_TUNNELLED
    domain.migrateToURI3(destination.uri, {}, flags)


@pytest.mark.parametrize("migrate", [direct, peer_to_peer, tunnelled])
def test_live_migration_to_a_host_that_holds_the_guest(
    host: PrivateHost, destination: PrivateHost, domain: libvirt.virDomain, migrate: Migrate
) -> None:
    uuid = domain.UUIDString()
    domain.create()
    migrate(domain, destination)
    assert where(host, destination, uuid) == [destination]

    remove_all(destination)
    domain.create()
    refusal = place(destination, uuid)
    with refused(refusal, "migrate"):
        migrate(domain, destination)
    assert where(host, destination, uuid) == [host]
    assert domain.state() == [libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED]

    release(destination, uuid)
    migrate(domain, destination)
    assert where(host, destination, uuid) == [destination]


def test_offline_migration_to_a_host_that_holds_the_guest(
    destination: PrivateHost, domain: libvirt.virDomain
) -> None:
    """Nothing would start yet, but the definition would be where its disk may be, too."""
    there = destination.connect()

    def migrate() -> None:
        flags = libvirt.VIR_MIGRATE_OFFLINE | libvirt.VIR_MIGRATE_PERSIST_DEST
        domain.migrate3(there, LOOPBACK, flags).name()

    def defined_there() -> list[str]:
        return [domain.UUIDString() for domain in there.listAllDomains()]

    uuid = domain.UUIDString()
    migrate()
    assert defined_there() == [uuid]

    remove(there.lookupByUUIDString(uuid))
    refusal = place(destination, uuid)
    with refused(refusal, "migrate"):
        migrate()
    assert defined_there() == []

    release(destination, uuid)
    migrate()
    assert defined_there() == [uuid]
    there.close()


def where(host: PrivateHost, destination: PrivateHost, uuid: str) -> list[PrivateHost]:
    return [at for at in (host, destination) if runs(at, uuid)]
