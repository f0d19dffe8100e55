"""Every way to start a guest on one host: works un-held, is refused held, works after release.

Migration, other names for the same guest or disk, containers and restarts of libvirtd have files
of their own beside this one.
"""

import hashlib
from pathlib import Path

import libvirt
import pytest

from domainxml import domain_xml, file_disk
from live.guests import (
    Identity,
    place,
    refused,
    release,
    runs,
    somebody_new,
    starts_only_when_not_held,
)
from privatehost import PrivateHost

pytestmark = pytest.mark.live


@pytest.fixture
def guest() -> Identity:
    return somebody_new()


@pytest.fixture
def domain(qemu: libvirt.virConnect, guest: Identity) -> libvirt.virDomain:
    """The guest, defined and off."""
    return qemu.defineXML(domain_xml(guest.name, guest.uuid))


@pytest.fixture
def domain_with_disk(
    host: PrivateHost, qemu: libvirt.virConnect, guest: Identity
) -> libvirt.virDomain:
    """The guest with a qcow2 disk, which can hold snapshots."""
    image = host.images / f"{guest.name}.qcow2"
    host.run(["qemu-img", "create", "-f", "qcow2", image, "4M"])
    return qemu.defineXML(
        domain_xml(guest.name, guest.uuid, disks=[file_disk(image, image="qcow2")])
    )


def test_start(host: PrivateHost, domain: libvirt.virDomain) -> None:
    starts_only_when_not_held(host, domain.UUIDString(), domain.create, off=domain.destroy)


def test_start_paused(host: PrivateHost, domain: libvirt.virDomain) -> None:
    def start_paused() -> None:
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)

    starts_only_when_not_held(host, domain.UUIDString(), start_paused, off=domain.destroy)


def test_create_transient(host: PrivateHost, qemu: libvirt.virConnect, guest: Identity) -> None:
    def create() -> None:
        qemu.createXML(domain_xml(guest.name, guest.uuid))

    def destroy() -> None:
        qemu.lookupByUUIDString(guest.uuid).destroy()

    starts_only_when_not_held(host, guest.uuid, create, off=destroy)


def test_refused_transient_guest_is_unknown_afterwards(
    host: PrivateHost, qemu: libvirt.virConnect, guest: Identity
) -> None:
    with refused(place(host, guest.uuid)):
        qemu.createXML(domain_xml(guest.name, guest.uuid))
    assert qemu.listAllDomains() == []


def test_create_over_a_persistent_definition(
    host: PrivateHost, qemu: libvirt.virConnect, domain: libvirt.virDomain
) -> None:
    def create() -> None:
        qemu.createXML(domain_xml(domain.name(), domain.UUIDString()))

    starts_only_when_not_held(host, domain.UUIDString(), create, off=domain.destroy)


def test_autostart_at_boot(host: PrivateHost, domain: libvirt.virDomain) -> None:
    """Nobody asks and nobody is told: the refusal is in libvirtd's log, and the guest is off."""
    uuid = domain.UUIDString()
    log = host.outside("/var/log/libvirt/libvirtd.log")
    domain.setAutostart(True)
    host.reboot()
    assert runs(host, uuid)

    refusal = place(host, uuid)
    assert refusal.line() not in log.read_text()
    host.reboot()
    assert not runs(host, uuid)
    assert refusal.line() in log.read_text()

    release(host, uuid)
    host.reboot()
    assert runs(host, uuid)


def test_restore_from_a_file(
    host: PrivateHost, qemu: libvirt.virConnect, domain: libvirt.virDomain
) -> None:
    image = host.images / f"{domain.name()}.saved"
    domain.create()
    domain.save(str(image))

    def restore() -> None:
        qemu.restore(str(image))

    starts_only_when_not_held(host, domain.UUIDString(), restore, off=domain.destroy)


def test_restore_with_client_xml_that_fakes_another_uuid(
    host: PrivateHost, qemu: libvirt.virConnect, domain: libvirt.virDomain
) -> None:
    """libvirt hands the hook the client's raw text first: a `<uuid>` in a comment is no UUID."""
    image = host.images / f"{domain.name()}.saved"
    domain.create()
    domain.save(str(image))
    free = somebody_new().uuid

    def restore() -> None:
        xml = qemu.saveImageGetXMLDesc(str(image))
        qemu.restoreFlags(str(image), f"<!-- <domain><uuid>{free}</uuid> -->{xml}")

    starts_only_when_not_held(host, domain.UUIDString(), restore, off=domain.destroy)


def test_restore_of_a_free_guest_with_xml_that_names_a_held_one_in_a_comment(
    host: PrivateHost, qemu: libvirt.virConnect, domain: libvirt.virDomain
) -> None:
    image = host.images / f"{domain.name()}.saved"
    domain.create()
    domain.save(str(image))
    held = somebody_new().uuid
    place(host, held)
    xml = qemu.saveImageGetXMLDesc(str(image))
    qemu.restoreFlags(str(image), f"<!-- <domain><uuid>{held}</uuid> -->{xml}")
    assert runs(host, domain.UUIDString())


def test_start_from_managed_save_leaves_the_image_intact(
    host: PrivateHost, domain: libvirt.virDomain
) -> None:
    uuid = domain.UUIDString()
    image = host.outside(f"/var/lib/libvirt/qemu/save/{domain.name()}.save")
    domain.create()
    domain.managedSave()
    domain.create()
    assert runs(host, uuid)

    domain.managedSave()
    refusal = place(host, uuid)
    saved = sha256(image)
    with refused(refusal):
        domain.create()
    assert not runs(host, uuid)
    assert domain.hasManagedSaveImage()
    assert sha256(image) == saved

    release(host, uuid)
    domain.create()
    assert runs(host, uuid)
    assert domain.state() == [libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_RESTORED]


def test_force_boot_despite_managed_save(host: PrivateHost, domain: libvirt.virDomain) -> None:
    """Refused, but libvirt has removed the saved image before it asks: see the limits."""

    def force_boot() -> None:
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_FORCE_BOOT)

    domain.create()
    domain.managedSave()
    starts_only_when_not_held(host, domain.UUIDString(), force_boot, off=domain.managedSave)


def test_revert_to_an_online_snapshot(
    host: PrivateHost, domain_with_disk: libvirt.virDomain
) -> None:
    domain = domain_with_disk
    domain.create()
    snapshot = domain.snapshotCreateXML("<domainsnapshot/>")
    domain.destroy()

    def revert() -> None:
        domain.revertToSnapshot(snapshot)

    starts_only_when_not_held(host, domain.UUIDString(), revert, off=domain.destroy)


def test_revert_to_an_offline_snapshot_that_is_to_run(
    host: PrivateHost, domain_with_disk: libvirt.virDomain
) -> None:
    domain = domain_with_disk
    snapshot = domain.snapshotCreateXML("<domainsnapshot/>")

    def revert_and_run() -> None:
        domain.revertToSnapshot(snapshot, libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING)

    starts_only_when_not_held(host, domain.UUIDString(), revert_and_run, off=domain.destroy)


def test_revert_of_a_running_guest(host: PrivateHost, domain_with_disk: libvirt.virDomain) -> None:
    """Refused, but libvirt has ended the running guest before it asks: see the limits."""
    domain = domain_with_disk
    domain.create()
    snapshot = domain.snapshotCreateXML("<domainsnapshot/>")
    refusal = place(host, domain.UUIDString())
    assert runs(host, domain.UUIDString())
    with refused(refusal):
        domain.revertToSnapshot(snapshot, libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_FORCE)
    assert not runs(host, domain.UUIDString())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
