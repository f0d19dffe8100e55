"""The same guest under another name, and the same disk under another guest, are refused too.

A disk is known from the moment a hold is placed on a host that knows the guest. Each disk test has
an owner, which is held, and a second guest with a UUID of its own that wants the owner's disk.
"""

from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from domainxml import disk_xml, domain_xml, file_disk
from live.guests import place, refused, runs, somebody_new, starts_only_when_not_held
from privatehost import PrivateHost

pytestmark = pytest.mark.live


def test_renamed_guest(host: PrivateHost, qemu: libvirt.virConnect) -> None:
    guest = somebody_new()
    domain = qemu.defineXML(domain_xml(guest.name, guest.uuid))
    domain.rename(f"{guest.name}-renamed")
    starts_only_when_not_held(host, guest.uuid, domain.create, off=domain.destroy)


def test_transient_guest_with_the_uuid_under_another_name(
    host: PrivateHost, qemu: libvirt.virConnect
) -> None:
    guest = somebody_new()
    qemu.defineXML(domain_xml(guest.name, guest.uuid)).undefine()

    def create() -> None:
        qemu.createXML(domain_xml(f"{guest.name}-again", guest.uuid))

    def destroy() -> None:
        qemu.lookupByUUIDString(guest.uuid).destroy()

    starts_only_when_not_held(host, guest.uuid, create, off=destroy)


@pytest.fixture
def image(host: PrivateHost) -> Path:
    return raw_image(host)


def test_same_file(host: PrivateHost, qemu: libvirt.virConnect, image: Path) -> None:
    disk = file_disk(image)
    second_guest_starts_only_when_owner_is_not_held(host, qemu, disk, disk)


def test_same_file_with_characters_that_xml_escapes(
    host: PrivateHost, qemu: libvirt.virConnect, image: Path
) -> None:
    odd = image.rename(image.with_name(f"{image.name} o'neil's \"<&;>\""))
    disk = file_disk(odd)
    second_guest_starts_only_when_owner_is_not_held(host, qemu, disk, disk)


@pytest.fixture
def loop_device(host: PrivateHost, image: Path) -> Iterator[str]:
    device = host.run(["losetup", "--find", "--show", image]).stdout.strip()
    yield device
    host.run(["losetup", "--detach", device])


def test_same_block_device(host: PrivateHost, qemu: libvirt.virConnect, loop_device: str) -> None:
    disk = disk_xml("block", f"<source dev='{loop_device}'/>")
    second_guest_starts_only_when_owner_is_not_held(host, qemu, disk, disk)


def test_same_file_by_way_of_a_link(
    host: PrivateHost, qemu: libvirt.virConnect, image: Path
) -> None:
    """The link is the owner's, and known therefore; any other link would not be: see the limits."""
    link = image.with_suffix(".link")
    link.symlink_to(image)
    second_guest_starts_only_when_owner_is_not_held(host, qemu, file_disk(link), file_disk(image))


@pytest.fixture
def volume(host: PrivateHost, qemu: libvirt.virConnect) -> Iterator[libvirt.virStorageVol]:
    directory = host.images / somebody_new().name
    directory.mkdir()
    pool = qemu.storagePoolCreateXML(
        f"<pool type='dir'><name>a pool</name><target><path>{directory}</path></target></pool>"
    )
    yield pool.createXML("<volume><name>root</name><capacity unit='MiB'>1</capacity></volume>")
    pool.destroy()


VOLUME_DISK = disk_xml("volume", "<source pool='a pool' volume='root'/>")


@pytest.mark.usefixtures("volume")
def test_same_volume(host: PrivateHost, qemu: libvirt.virConnect) -> None:
    second_guest_starts_only_when_owner_is_not_held(host, qemu, VOLUME_DISK, VOLUME_DISK)


def test_file_of_the_same_volume(
    host: PrivateHost, qemu: libvirt.virConnect, volume: libvirt.virStorageVol
) -> None:
    disk = file_disk(Path(volume.path()))
    second_guest_starts_only_when_owner_is_not_held(host, qemu, VOLUME_DISK, disk)


def test_volume_of_the_same_file(
    host: PrivateHost, qemu: libvirt.virConnect, volume: libvirt.virStorageVol
) -> None:
    disk = file_disk(Path(volume.path()))
    second_guest_starts_only_when_owner_is_not_held(host, qemu, disk, VOLUME_DISK)


def test_same_network_disk(host: PrivateHost, qemu: libvirt.virConnect, image: Path) -> None:
    export = [f"--export-name={image.stem}", "--bind=127.0.0.1", "--port=10809"]
    host.run(["qemu-nbd", "--fork", "--persistent", "--format=raw", *export, image])
    server = "<host name='127.0.0.1' port='10809'/>"
    disk = disk_xml("network", f"<source protocol='nbd' name='{image.stem}'>{server}</source>")
    second_guest_starts_only_when_owner_is_not_held(host, qemu, disk, disk)


def test_overlay_whose_xml_names_the_disk_as_its_backing_file(
    host: PrivateHost, qemu: libvirt.virConnect, image: Path
) -> None:
    overlay = overlay_on(host, image)
    second_guest_starts_only_when_owner_is_not_held(
        host, qemu, file_disk(image), file_disk(overlay, image="qcow2", extra=backing(image))
    )


def test_overlay_that_alone_knows_its_backing_file(
    host: PrivateHost, qemu: libvirt.virConnect, image: Path
) -> None:
    overlay = file_disk(overlay_on(host, image), image="qcow2")
    second_guest_starts_only_when_owner_is_not_held(host, qemu, file_disk(image), overlay)


def test_base_image_of_a_held_guest_is_free_for_others(
    host: PrivateHost, qemu: libvirt.virConnect, image: Path
) -> None:
    """A held guest owns its overlay, never the image that a thousand guests share."""
    held, other = somebody_new(), somebody_new()
    for guest in (held, other):
        disk = file_disk(overlay_on(host, image), image="qcow2", extra=backing(image))
        qemu.defineXML(domain_xml(guest.name, guest.uuid, disks=[disk]))
    refusal = place(host, held.uuid)
    with refused(refusal):
        qemu.lookupByUUIDString(held.uuid).create()
    qemu.lookupByUUIDString(other.uuid).create()
    assert runs(host, other.uuid)


@pytest.mark.parametrize("mark", ["<readonly/>", "<shareable/>"])
def test_disk_that_the_held_guest_only_shares_is_free_for_others(
    host: PrivateHost, qemu: libvirt.virConnect, image: Path, mark: str
) -> None:
    held, other = somebody_new(), somebody_new()
    disk = file_disk(image, extra=mark)
    for guest in (held, other):
        qemu.defineXML(domain_xml(guest.name, guest.uuid, disks=[disk]))
    place(host, held.uuid)
    qemu.lookupByUUIDString(other.uuid).create()
    assert runs(host, other.uuid)


def second_guest_starts_only_when_owner_is_not_held(
    host: PrivateHost, qemu: libvirt.virConnect, owners: str, wanted: str
) -> None:
    owner, second = somebody_new(), somebody_new()
    qemu.defineXML(domain_xml(owner.name, owner.uuid, disks=[owners]))
    domain = qemu.defineXML(domain_xml(second.name, second.uuid, disks=[wanted]))
    starts_only_when_not_held(host, second.uuid, domain.create, off=domain.destroy, held=owner.uuid)


def raw_image(host: PrivateHost) -> Path:
    image = host.images / f"{somebody_new().name}.img"
    host.run(["qemu-img", "create", "-q", "-f", "raw", image, "1M"])
    return image


def overlay_on(host: PrivateHost, image: Path) -> Path:
    overlay = host.images / f"{somebody_new().name}.qcow2"
    host.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image, overlay])
    return overlay


def backing(image: Path) -> str:
    return (
        "<backingStore type='file'><format type='raw'/>"
        f"<source file='{image}'/><backingStore/></backingStore>"
    )
