"""The disks of a held instance that is off: nobody else opens them, past the hook either."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import libvirt
import pytest

from bootlockd.errors import Unreachable
from daemon_live import bootsectors
from daemon_live.runner import (
    Daemon,
    database,
    place,
    power,
    release,
    row_of,
    start_guest,
    wait_enforced,
    wait_power,
)
from daemonhost import SETTINGS
from domainxml import domain_xml, file_disk
from live.guests import Identity, runs, somebody_new
from lockdb import journal
from lockdb.database import open_db
from lockdb.enforcements import State
from lockdb.values import Hold, OnRunning
from privatehost import PrivateHost
from waiting import wait_until

pytestmark = pytest.mark.live

HOOK = "/etc/libvirt/hooks/qemu.d/50-bootlock"
LOCKED = 'Failed to get "consistent read" lock'


@pytest.fixture
def disk(host: PrivateHost, guest: Identity) -> Path:
    """The disk of a defined guest that is off."""
    image = host.images / f"{guest.name}.qcow2"
    host.run(["qemu-img", "create", "-f", "qcow2", image, "4M"])
    define(host, guest, image)
    return image


@pytest.fixture
def unhooked(host: PrivateHost, daemon: Daemon, guest: Identity) -> Iterator[None]:
    """libvirt skips a hook that can't be executed, in silence."""
    hook = host.outside(HOOK)
    hook.chmod(0o644)
    yield
    daemon.end("KILL")
    hook.chmod(0o755)
    # The daemon noticed, and tried whether a start is refused. It was not.
    wait_until(lambda: not canaries(host), "libvirt has ended the canaries")


def canaries(host: PrivateHost) -> list[str]:
    names = host.virsh("list", "--all", "--name").stdout.split()
    return [name for name in names if name.startswith("bootlock-canary-")]


def define(host: PrivateHost, guest: Identity, image: Path) -> None:
    with closing(host.connect()) as opened:
        disks = [file_disk(image, image="qcow2")]
        opened.defineXML(domain_xml(guest.name, guest.uuid, disks=disks))


def state(host: PrivateHost, hold: Hold) -> State | None:
    row = row_of(host, hold, "image-lock")
    return row.state if row else None


def hold_off(host: PrivateHost, daemon: Daemon, guest: Identity) -> Hold:
    hold = place(host, guest.uuid)
    daemon.wake()
    wait_until(lambda: state(host, hold) is State.ENFORCED, "its disks are locked")
    return hold


def qemu_on(host: PrivateHost, image: Path, *, image_format: str = "qcow2") -> str:
    """What a QEMU run by hand says that opens this image; nothing, if it comes up."""
    drive = f"if=virtio,format={image_format},file={image}"
    script = (
        'echo \'{"execute":"qmp_capabilities"}{"execute":"quit"}\' | '
        'qemu-system-x86_64 -S -display none -nodefaults -qmp stdio -drive "$1"'
    )
    done = host.run(["sh", "-c", script, "sh", drive], check=False)
    assert (done.returncode == 0) == (not done.stderr), done
    return done.stderr


def test_a_clone_is_refused_past_the_hook(
    host: PrivateHost, daemon: Daemon, guest: Identity, disk: Path, unhooked: None
) -> None:
    hold_off(host, daemon, guest)
    clone = somebody_new()
    define(host, clone, disk)
    with pytest.raises(libvirt.libvirtError, match=LOCKED):
        start_guest(host, clone.name, clone.uuid)
    assert power(host, clone.uuid) == "off"


def test_its_own_start_past_the_hook_is_refused(
    host: PrivateHost, daemon: Daemon, guest: Identity, disk: Path, unhooked: None
) -> None:
    hold_off(host, daemon, guest)
    with pytest.raises(libvirt.libvirtError, match=LOCKED):
        start_guest(host, guest.name, guest.uuid)
    assert power(host, guest.uuid) == "off"


def test_a_qemu_by_hand_is_refused_until_the_hold_is_released(
    host: PrivateHost, daemon: Daemon, guest: Identity, disk: Path
) -> None:
    overlay = host.images / f"{guest.name}-overlay.qcow2"
    host.run(["qemu-img", "create", "-f", "qcow2", "-b", disk, "-F", "qcow2", overlay])
    hold = hold_off(host, daemon, guest)
    assert LOCKED in qemu_on(host, disk)
    assert LOCKED in qemu_on(host, disk, image_format="raw")
    assert LOCKED in qemu_on(host, overlay), "the guest would start from its disk"
    converted = host.run(["qemu-img", "convert", disk, f"{disk}.copy"], check=False)
    assert "lock" in converted.stderr
    host.run(["qemu-img", "info", disk])
    host.bootlock("release", hold.id, "--reason", "paid")
    assert state(host, hold) is State.LIFTED
    assert qemu_on(host, disk) == ""


def test_an_offline_snapshot_revert_is_refused(
    host: PrivateHost, daemon: Daemon, guest: Identity, disk: Path
) -> None:
    """No hook sees it: it would put back older disk content, and start nothing."""
    host.virsh("snapshot-create-as", guest.name, "before")
    hold_off(host, daemon, guest)
    reverted = host.virsh("snapshot-revert", guest.name, "before", check=False)
    assert reverted.returncode
    assert "lock" in reverted.stderr


def test_others_start_from_the_same_base_image(
    host: PrivateHost, daemon: Daemon, guest: Identity
) -> None:
    base = host.images / "base.qcow2"
    host.run(["qemu-img", "create", "-f", "qcow2", base, "4M"])
    other = somebody_new()
    for each in (guest, other):
        image = host.images / f"{each.name}.qcow2"
        host.run(["qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "qcow2", image])
        define(host, each, image)
    hold_off(host, daemon, guest)
    start_guest(host, other.name, other.uuid)
    assert runs(host, other.uuid)
    assert LOCKED in qemu_on(host, host.images / f"{guest.name}.qcow2")


def test_a_permitted_start_works_end_to_end_and_is_journalled(
    host: PrivateHost, daemon: Daemon, guest: Identity, disk: Path
) -> None:
    hold = hold_off(host, daemon, guest)
    refused = host.virsh("start", guest.name, check=False)
    assert f"[hold {hold.id}]" in refused.stderr
    words = ["--op", "start", "--for", "1h", "--reason", "imaging", "--json"]
    permit = json.loads(host.bootlock("permit", guest.uuid, *words).stdout)
    host.virsh("start", guest.name)
    assert runs(host, guest.uuid)
    host.virsh("destroy", guest.name)
    assert state(host, hold) is State.LIFTED
    host.bootlock("permit", "--revoke", permit["id"], "--reason", "done")
    wait_until(lambda: state(host, hold) is State.ENFORCED, "its disks are locked again")
    assert LOCKED in qemu_on(host, disk)
    told = [
        (entry["event"], entry.get("fence"), entry.get("state"))
        for entry in journal_of(host, guest.uuid)
    ]
    steps = [
        ("enforcement", "image-lock", "enforced"),
        ("permitted", None, None),
        ("enforcement", "image-lock", "lifted"),
        ("permit_revoked", None, None),
        ("enforcement", "image-lock", "enforced"),
    ]
    remaining = iter(told)
    assert all(step in remaining for step in steps), told


def journal_of(host: PrivateHost, uuid: str) -> list[dict[str, Any]]:
    with open_db(database(host), read_only=True) as lock_db:
        return [json.loads(entry) for entry in journal.entries(lock_db.db, instance=uuid)]


def test_a_guest_that_is_stopped_by_its_hold_is_locked_then(
    host: PrivateHost, daemon: Daemon, guest: Identity, disk: Path
) -> None:
    start_guest(host, guest.name, guest.uuid)
    hold = place(host, guest.uuid, OnRunning.DESTROY)
    daemon.wake()
    wait_enforced(host, hold, "off")
    wait_until(lambda: state(host, hold) is State.ENFORCED, "its disks are locked")
    assert LOCKED in qemu_on(host, disk)


def test_a_guest_that_is_left_running_is_not_disturbed_and_locked_when_it_ends(
    host: PrivateHost, daemon: Daemon, guest: Identity
) -> None:
    disk = bootsectors.write(host.images / f"{guest.name}.img", bootsectors.TALKATIVE)
    start_guest(host, guest.name, guest.uuid, disks=[disk])
    hold = place(host, guest.uuid, OnRunning.LEAVE)
    daemon.wake()
    wait_until(lambda: state(host, hold) is State.NOT_HERE, "it is told that it runs on")
    host.virsh("suspend", guest.name)
    host.virsh("resume", guest.name)
    wait_power(host, guest.uuid, "running")
    host.virsh("destroy", guest.name)
    wait_until(lambda: state(host, hold) is State.ENFORCED, "its disks are locked")
    assert LOCKED in qemu_on(host, disk, image_format="raw")


@pytest.mark.parametrize("how", ["KILL", "TERM", "HUP"])
def test_after_a_restart_the_disks_are_locked_again(
    host: PrivateHost, daemon: Daemon, guest: Identity, disk: Path, how: str
) -> None:
    """Without systemd nobody keeps them in between; reading the settings again loses nothing."""
    hold = hold_off(host, daemon, guest)
    if how == "HUP":
        daemon.signal(how)
        wait_until(lambda: "settings read again" in daemon.log, "the settings are read")
        assert LOCKED in qemu_on(host, disk)
        wait_until(lambda: answers(daemon), "bootlockd answers again")
    else:
        daemon.end(how)
        assert qemu_on(host, disk) == ""
        daemon.start()
    wait_until(lambda: LOCKED in qemu_on(host, disk), "its disks are locked")
    assert state(host, hold) is State.ENFORCED


def test_killed_at_any_moment_it_ends_locked_and_released_while_it_was_down_free(
    host: PrivateHost, daemon: Daemon, guest: Identity, disk: Path
) -> None:
    for moment in range(8):
        hold = place(host, guest.uuid)
        daemon.wake()
        time.sleep(moment * 0.2)
        daemon.end("KILL")
        if moment % 2:
            daemon.start()
            wait_until(lambda: LOCKED in qemu_on(host, disk), "its disks are locked")
            daemon.end("KILL")
        release(host, hold)
        daemon.start()
        wait_until(lambda h=hold: state(host, h) in {None, State.LIFTED}, "let go")  # type: ignore[misc]
        assert qemu_on(host, disk) == ""


def answers(daemon: Daemon) -> bool:
    try:
        daemon.wake()
    except Unreachable:
        return False
    return True


def test_switched_off_it_lets_go(
    host: PrivateHost, daemon: Daemon, guest: Identity, disk: Path
) -> None:
    hold = hold_off(host, daemon, guest)
    daemon.end("KILL")
    with Daemon(host, settings=f"{SETTINGS}\n[image_lock]\nenabled = false\n"):
        wait_until(lambda: state(host, hold) is State.LIFTED, "it has let go")
        assert qemu_on(host, disk) == ""


def test_a_block_device_is_locked(host: PrivateHost, daemon: Daemon, guest: Identity) -> None:
    backing = host.images / "device.img"
    bootsectors.write(backing, bootsectors.TALKATIVE)
    device = Path(
        subprocess.run(
            ["losetup", "--find", "--show", backing], check=True, capture_output=True, text=True
        ).stdout.strip()
    )
    try:
        source = f"<source dev='{device}'/><target dev='vda' bus='virtio'/>"
        drive = f"<disk type='block' device='disk'><driver name='qemu' type='raw'/>{source}</disk>"
        with closing(host.connect()) as opened:
            opened.defineXML(domain_xml(guest.name, guest.uuid, disks=[drive]))
        hold = hold_off(host, daemon, guest)
        assert LOCKED in qemu_on(host, device, image_format="raw")
        release(host, hold)
        daemon.wake()
        wait_until(lambda: state(host, hold) is State.LIFTED, "it has let go")
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
