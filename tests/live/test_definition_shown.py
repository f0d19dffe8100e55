"""A kept definition as libvirt takes it again, and as it is in an archive: without passwords."""

import json
import subprocess
import sys
from pathlib import Path
from shlex import quote

import libvirt
import pytest

from bootlockd import keptdefinition
from bootlockd.keptdefinition import KeptDefinition, Snapshot
from domainxml import domain_xml, file_disk
from live.guests import Identity, place, somebody_new
from privatehost import PrivateHost

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
        versions="libvirt 9000000, QEMU 7002000",
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


def test_no_password_comes_into_an_archive_by_the_snapshots_either(
    host: PrivateHost, domain: libvirt.virDomain, guest: Identity
) -> None:
    place(host, guest.uuid)
    kept = keep(host, domain)
    assert all(PASSWORD in text for text in (kept.document, kept.snapshots[0].document))
    directory, listed = exported(host, guest)
    assert listed == [{"name": "before", "kept": True, "file": "snapshots/1.xml"}]
    assert (directory / "definition.xml").read_text("utf-8") == kept.shown
    snapshot = (directory / "snapshots/1.xml").read_text("utf-8")
    assert snapshot == domain.snapshotLookupByName("before").getXMLDesc(0)
    assert "<graphics type='vnc'" in snapshot
    assert not has_password(directory)
    domain.undefineFlags(GONE)
    directory, listed = exported(host, guest)
    assert listed == [{"name": "before", "kept": True, "file": None}]
    assert (directory / "definition.xml").read_text("utf-8") == kept.shown
    assert not has_password(directory)


def test_what_is_kept_of_a_guest_that_runs_on_without_a_definition(
    host: PrivateHost, domain: libvirt.virDomain, guest: Identity
) -> None:
    kept = keep(host, domain)
    domain.create()
    domain.undefineFlags(GONE)
    place(host, guest.uuid)
    directory, _ = exported(host, guest)
    assert (directory / "definition.xml").read_text("utf-8") == kept.shown
    now = json.loads((directory / "about.json").read_text("utf-8"))["definition"]["now"]
    assert (now["state"], now["power"]) == ("transient", "running")


def exported(host: PrivateHost, guest: Identity) -> tuple[Path, object]:
    """The archive, unpacked, and what it says of snapshots."""
    file = host.images / f"{guest.name}.tar"
    file.unlink(missing_ok=True)
    host.bootlock("export", guest.uuid, "--output", file)
    into = host.images / f"{guest.name}.unpacked"
    host.run(["sh", "-c", 'rm -rf "$1" && mkdir "$1" && tar -xf "$2" -C "$1"', "sh", into, file])
    (directory,) = into.iterdir()
    about = json.loads((directory / "about.json").read_text("utf-8"))
    return directory, about["definition"]["snapshots"]


def has_password(directory: Path) -> bool:
    found = subprocess.run(["grep", "-rqF", PASSWORD, directory], check=False)
    assert found.returncode < 2
    return found.returncode == 0
