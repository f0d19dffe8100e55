"""Beside the hooks of other software: a held guest is refused, others start, and theirs are called.

The scripts here do what those products' do with their input, their output and their exit codes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import libvirt
import pytest

from domainxml import domain_xml
from live.guests import Identity, place, refused, release, remove_all, runs, somebody_new
from privatehost import PrivateHost

pytestmark = pytest.mark.live

HOOKS = "/etc/libvirt/hooks"
# No cgroups here, without which libvirt refuses containers before it asks the hook.
QEMU_ONLY = {"BOOTLOCK_CONNECT": "qemu:///system"}
LOOPBACK = {libvirt.VIR_MIGRATE_PARAM_URI: "tcp://127.0.0.1"}

CALLED = '#!/bin/sh\necho "$1 $2" >>/run/called\n'

# As the agent's: it rewrites arriving migrations, and runs what is in custom/, come of it what may.
CLOUDSTACK = """#!/usr/bin/python3
import os, subprocess, sys
from xml.dom.minidom import parse
custom = "/etc/libvirt/hooks/custom"
operation = sys.argv[2]
if sys.argv[2:4] == ["migrate", "begin"]:
    print(parse(sys.stdin).toxml())
for name in sorted(os.listdir(custom)):
    if name.startswith((operation + "_", "all_")):
        subprocess.run([custom + "/" + name, *sys.argv[1:]], capture_output=True)
"""
# As vdsm's: it says nothing but to migrations and restores, and those it rewrites.
OVIRT = """#!/bin/sh
echo "$1 $2" >>/run/called
case $2 in migrate | restore) ;; *) exit 0 ;; esac
exec /usr/bin/python3 -c 'if "vm_migrate_hook":
    import sys, xml.etree.ElementTree as tree
    print(tree.tostring(tree.fromstring(sys.stdin.read()), encoding="unicode"))'
"""
# As that of VFIO-Tools: all of stdin is read first, and a script that fails ends it.
DISPATCHER = """#!/bin/bash
GUEST_NAME=$1
place="$(dirname "$0")/qemu.d/$GUEST_NAME/$2/$3"
input=$(cat)
set -e
if [ -d "$place" ]; then
    for script in "$place"/*; do "$script" "$@" <<<"$input"; done
fi
"""
# As NVIDIA's for shared NVSwitch: it parses the XML at prepare and release.
NVIDIA = """#!/usr/bin/env python3
import sys, xml.etree.ElementTree as tree
fmpm = "/usr/bin/fmpm"
if sys.argv[2] in ("prepare", "release"):
    assert tree.fromstring(sys.stdin.read()).findtext("name") == sys.argv[1]
with open("/run/called", "a") as called:
    print(*sys.argv[1:3], file=called)
"""
PRODUCTS = {
    "CloudStack": (
        {"qemu": CLOUDSTACK, "custom/all_log": CALLED},
        "is of CloudStack's agent, and runs before ours",
    ),
    "oVirt": ({"qemu": OVIRT}, "is of oVirt's vdsm, and runs before ours"),
    "dispatcher": (
        {
            "qemu": DISPATCHER,
            "qemu.d/{guest}/prepare/begin/bind": CALLED,
            "qemu.d/{guest}/release/end/unbind": CALLED,
        },
        "libvirt runs nothing in them",
    ),
    "NVIDIA": ({"qemu": NVIDIA}, "is of NVIDIA's for shared NVSwitch"),
    "wants no input": ({"qemu.d/10-first": CALLED + "exec 0<&-"}, ""),
    "reads all input": (
        {"qemu.d/10-first": CALLED + "cat >/dev/null", "qemu.d/90-last": "#!/bin/sh\ncat"},
        "90-last runs after ours",
    ),
}


@pytest.fixture(scope="module")
def machine(host: PrivateHost) -> Iterator[PrivateHost]:
    """A host that doctor finds healthy; the guests migrate there from ``host``."""
    sources = Path(__file__).resolve().parents[2]
    with PrivateHost(name="beside", network_of=host) as machine:
        machine.install_bootlock()
        shutil.copy(sources / "hooks/50-bootlock", machine.outside("/usr/share/bootlock"))
        machine.outside("/run/bootlock").mkdir(exist_ok=True)
        machine.outside("/var/lib/bootlock").chmod(0o750)
        yield machine


@pytest.fixture
def beside(machine: PrivateHost) -> Iterator[PrivateHost]:
    """That host without hooks of others."""
    yield machine
    remove_all(machine)
    hooks = machine.outside(HOOKS)
    for place_ in [*hooks.iterdir(), *hooks.glob("qemu.d/*")]:
        if place_.name in {"50-bootlock", "daemon.d"} or place_.suffix == ".d":
            continue
        shutil.rmtree(place_) if place_.is_dir() else place_.unlink()
    machine.outside("/run/called").unlink(missing_ok=True)


@pytest.fixture
def guest(beside: PrivateHost) -> Identity:
    guest = somebody_new()
    with closing(beside.connect()) as connection:
        connection.defineXML(domain_xml(guest.name, guest.uuid))
    return guest


def put(host: PrivateHost, scripts: dict[str, str], guest: str = "") -> None:
    for name, text in scripts.items():
        path = host.outside(f"{HOOKS}/{name.replace('{guest}', guest)}")
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        path.chmod(0o755)


def start(host: PrivateHost, guest: Identity) -> None:
    with closing(host.connect()) as connection:
        connection.lookupByUUIDString(guest.uuid).create()


def stop(host: PrivateHost, guest: Identity) -> None:
    with closing(host.connect()) as connection:
        connection.lookupByUUIDString(guest.uuid).destroy()


def called(host: PrivateHost) -> set[str]:
    """The guests and operations for which a script of theirs was called."""
    record = host.outside("/run/called")
    lines = record.read_text("utf-8").splitlines() if record.exists() else []
    record.unlink(missing_ok=True)
    return set(lines)


def doctor(host: PrivateHost) -> Any:
    said = host.bootlock("doctor", "--json", check=False, env=QEMU_ONLY).stdout
    return json.loads(said)


def details(report: Any, level: str) -> list[str]:
    return [
        f"{finding['check']}: {finding['detail']} -> {finding['mend']}"
        for finding in report["findings"]
        if finding["level"] == level
    ]


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_held_guest_is_refused_and_a_free_one_starts(
    beside: PrivateHost, guest: Identity, product: str
) -> None:
    scripts, noted = PRODUCTS[product]
    put(beside, scripts, guest.name)
    beside.sighup()
    start(beside, guest)
    assert runs(beside, guest.uuid)
    assert f"{guest.name} prepare" in called(beside)
    stop(beside, guest)
    called(beside)

    refusal = place(beside, guest.uuid)
    with refused(refusal):
        start(beside, guest)
    # What it did at prepare it can undo: libvirt tells it that the guest is gone.
    assert {f"{guest.name} prepare", f"{guest.name} release"} <= called(beside)
    release(beside, guest.uuid)
    start(beside, guest)

    report = doctor(beside)
    assert report["healthy"], details(report, "fault")
    notes = details(report, "note")
    assert not noted or any(noted in note for note in notes), notes


@pytest.mark.parametrize("product", ["CloudStack", "oVirt"])
def test_a_migration_whose_xml_another_hook_rewrote(
    host: PrivateHost, beside: PrivateHost, product: str
) -> None:
    """libvirt hands ours what theirs printed."""
    put(beside, PRODUCTS[product][0])
    beside.sighup()
    guest = somebody_new()
    with closing(host.connect()) as here, closing(beside.connect()) as there:
        domain = here.defineXML(domain_xml(guest.name, guest.uuid))
        domain.create()
        refusal = place(beside, guest.uuid)
        with refused(refusal, "migrate"):
            domain.migrate3(there, LOOPBACK, libvirt.VIR_MIGRATE_LIVE)
        assert runs(host, guest.uuid)
        release(beside, guest.uuid)
        domain.migrate3(there, LOOPBACK, libvirt.VIR_MIGRATE_LIVE)
        domain.undefine()
    assert runs(beside, guest.uuid)
    assert not runs(host, guest.uuid)


def test_a_hook_that_turns_a_migration_into_one_of_a_held_disk(
    host: PrivateHost, beside: PrivateHost
) -> None:
    """After ours it can write what it likes: libvirt asks again about what it made of that."""
    mine, theirs = (beside.images / name for name in ("mine", "theirs"))
    for image in (mine, theirs):
        image.write_bytes(b"")
        image.chmod(0o666)
    put(beside, {"qemu.d/90-swap": f"#!/bin/sh\n[ $2 != migrate ] || sed 's#{mine}#{theirs}#'"})
    beside.sighup()
    held, guest = somebody_new(), somebody_new()
    with closing(host.connect()) as here, closing(beside.connect()) as there:
        there.defineXML(domain_xml(held.name, held.uuid, disks=[theirs]))
        domain = here.defineXML(domain_xml(guest.name, guest.uuid, disks=[mine]))
        domain.create()
        with refused(place(beside, held.uuid)):
            domain.migrate3(there, LOOPBACK, libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_UNSAFE)
        domain.destroy()
        domain.undefine()
    release(beside, held.uuid)


def test_a_hook_that_fails_before_ours_hides_nothing(beside: PrivateHost, guest: Identity) -> None:
    put(beside, {"qemu": "#!/bin/sh\nexit 3", "qemu.d/10-first": "#!/bin/sh\nexit 4"})
    beside.sighup()
    with refused(place(beside, guest.uuid)):
        start(beside, guest)
    assert details(doctor(beside), "fault") == []
    release(beside, guest.uuid)
    with pytest.raises(libvirt.libvirtError, match="10-first"):
        start(beside, guest)


def test_a_hook_that_fails_after_ours_is_named(beside: PrivateHost, guest: Identity) -> None:
    put(beside, {"qemu.d/90-last": "#!/bin/sh\necho theirs >&2; exit 3"})
    place(beside, guest.uuid)
    with pytest.raises(libvirt.libvirtError, match="theirs"):
        start(beside, guest)
    (fault,) = details(doctor(beside), "fault")
    assert f"-> {HOOKS}/qemu.d/90-last refuses every start, and its message hides ours" in fault
    release(beside, guest.uuid)


BROKEN = {
    "empty": ("", "is empty: libvirt can't run it, and refuses every start"),
    "no interpreter": ("#!/opt/gone/python3\n", "wants /opt/gone/python3, which is not there"),
    "ours": (
        (Path(__file__).resolve().parents[2] / "hooks/50-bootlock").read_text("utf-8") + "\nexit 1",
        "is a copy of our hook, which libvirt runs too",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_script_that_refuses_every_start_is_found(
    beside: PrivateHost, guest: Identity, what: str
) -> None:
    text, said = BROKEN[what]
    put(beside, {"qemu.d/50-bootlock.bak": text})
    if what != "ours":
        with pytest.raises(libvirt.libvirtError, match=r"50-bootlock\.bak"):
            start(beside, guest)
    faults = details(doctor(beside), "fault")
    assert any(said in fault for fault in faults), faults


def test_a_file_in_place_of_the_directory_is_found(beside: PrivateHost, guest: Identity) -> None:
    directory = beside.outside(f"{HOOKS}/qemu.d")
    directory.rename(beside.outside(f"{HOOKS}/away"))
    try:
        directory.write_text("#!/bin/sh\n", "utf-8")
        with pytest.raises(libvirt.libvirtError):
            start(beside, guest)
        faults = details(doctor(beside), "fault")
    finally:
        directory.unlink()
        beside.outside(f"{HOOKS}/away").rename(directory)
    assert any("is not a directory: libvirt refuses every start" in fault for fault in faults)
