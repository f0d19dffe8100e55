"""A kept definition as libvirt takes it again, and libvirt's own."""

import json
import sys
from pathlib import Path
from shlex import quote

import libvirt
import pytest

from bootlockd import keptdefinition
from bootlockd.keptdefinition import KeptDefinition, Snapshot
from live.guests import Identity, somebody_new
from privatehost import PrivateHost, domain_xml, file_disk

pytestmark = pytest.mark.live

CUSTODY = "/var/lib/libvirt/bootlock-custody"
PASSWORD = "c0rrect"
GRAPHICS = f"<graphics type='vnc' port='-1' autoport='yes' passwd='{PASSWORD}'/>"
#: What begins a sequence on a terminal that is no control character to XML.
METADATA = "<title>Grüße &lt;&amp;'\" &#x9b;2J</title>"
STORED = libvirt.VIR_DOMAIN_XML_INACTIVE
WHOLE = STORED | libvirt.VIR_DOMAIN_XML_SECURE
#: The command, for a shell.
PROGRAM = Path(sys.executable).with_name("bootlock")
GONE = libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA


@pytest.fixture
def guest() -> Identity:
    return somebody_new()


@pytest.fixture
def domain(host: PrivateHost, qemu: libvirt.virConnect, guest: Identity) -> libvirt.virDomain:
    """The guest, off, with a password and a snapshot."""
    image = host.images / f"{guest.name}.qcow2"
    host.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "4M"])
    disks = [file_disk(image, image="qcow2")]
    xml = domain_xml(guest.name, guest.uuid, disks=disks, devices=GRAPHICS, metadata=METADATA)
    domain = qemu.defineXML(xml)
    domain.snapshotCreateXML("<domainsnapshot><name>before</name></domainsnapshot>")
    return domain


def keep(host: PrivateHost, domain: libvirt.virDomain) -> KeptDefinition:
    """Keep it as libvirt shows it to root."""
    whole = libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE
    kept = KeptDefinition(
        instance=domain.UUIDString(),
        uri="qemu:///system",
        name=domain.name(),
        document=domain.XMLDesc(WHOLE),
        shown=domain.XMLDesc(STORED),
        autostart=bool(domain.autostart()),
        snapshots=tuple(
            Snapshot(snapshot.getName(), snapshot.getXMLDesc(whole))
            for snapshot in domain.listAllSnapshots()
        ),
        current_snapshot="before",
        nvram=None,
        kept_at=1_700_000_000,
    )
    directory = host.outside(CUSTODY)
    directory.mkdir(mode=0o700, exist_ok=True)
    keptdefinition.write(keptdefinition.path_for(directory, kept.instance), kept)
    return kept


def shown(host: PrivateHost, guest: Identity, *options: str) -> Path:
    """A file with what ``show --xml`` writes into a pipe."""
    file = host.images / f"{guest.name}.xml"
    into = f'exec "$0" "$@" >{quote(str(file))}'
    host.run(["sh", "-c", into, PROGRAM, "show", guest.uuid, "--xml", *options])
    return file


def test_an_undefined_guest_is_defined_from_what_show_prints(
    host: PrivateHost, qemu: libvirt.virConnect, domain: libvirt.virDomain, guest: Identity
) -> None:
    before = domain.XMLDesc(WHOLE)
    assert (PASSWORD in before, "\x9b" in before) == (True, True)
    assert shown(host, guest, "--secrets").read_text("utf-8") == before
    assert shown(host, guest).read_text("utf-8") == domain.XMLDesc(STORED)
    keep(host, domain)
    domain.undefineFlags(GONE)
    assert PASSWORD not in shown(host, guest).read_text("utf-8")
    host.virsh("define", shown(host, guest, "--secrets"))
    assert qemu.lookupByUUIDString(guest.uuid).XMLDesc(WHOLE) == before


def test_libvirts_own_says_whether_it_autostarts_and_names_its_snapshots(
    host: PrivateHost, domain: libvirt.virDomain, guest: Identity
) -> None:
    domain.setAutostart(True)
    said = json.loads(host.bootlock("show", guest.uuid, "--xml", "--json").stdout)
    assert (said["origin"], said["autostart"], said["snapshots"]) == ("libvirt", True, ["before"])
    assert said["xml"] == domain.XMLDesc(STORED)
