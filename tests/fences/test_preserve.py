"""preserve: what is done to an instance's disks, what can't be, and that its undo is exact.

On real file systems, with libvirt's own word on what the disks are.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bootlockd.digests import Digester
from domainxml import disk_xml, domain_xml, file_disk
from fences.preservescene import Scene, is_immutable, make_immutable, overlay
from lockdb.enforcements import State
from lockdb.preserved import Role, Stage
from lockdb.values import Hold
from privatehost import PrivateHost

pytestmark = pytest.mark.live


@pytest.fixture
def scenes(host: PrivateHost, tmp_path: Path) -> Iterator[list[Scene]]:
    """Two instances beside each other, the second with no domain yet."""
    made = [Scene(host, tmp_path) for _ in range(2)]
    made[0].define()
    yield made
    # What a failed test left must not outlast it.
    subprocess.run(["chattr", "-R", "-f", "-i", tmp_path], check=False)
    for domain in host.virsh("list", "--all", "--uuid").stdout.split():
        host.virsh("undefine", domain)


@pytest.fixture
def scene(scenes: list[Scene]) -> Scene:
    return scenes[0]


def tree(scene: Scene) -> dict[str, tuple[int, int, int, bool]]:
    """Every name there, with what it is: inode, links, mode, and whether it is immutable."""
    found = {}
    for path in sorted(scene.directory.parent.rglob("*")):
        status = path.lstat()
        facts = (status.st_ino, status.st_nlink if path.is_file() else 0, status.st_mode)
        found[str(path)] = (*facts, is_immutable(path))
    return found


def kept(scene: Scene, state: State = State.ENFORCED) -> Hold:
    hold = scene.place()
    scene.treat()
    outcome = scene.outcome(hold)
    assert outcome.state is state, outcome.detail
    return hold


def released(scene: Scene, hold: Hold, *, discard: bool = False) -> str:
    scene.release(hold, discard=discard)
    scene.treat()
    outcome = scene.outcome(hold)
    assert outcome.state is State.LIFTED, outcome.detail
    return outcome.detail


def test_what_was_there_before_is_there_after(scene: Scene) -> None:
    config = scene.directory / "disk.config"
    config.write_bytes(b"config")
    make_immutable(config)
    scene.define(scene.disk, file_disk(config, target="vdb"))
    before = tree(scene)
    hold = kept(scene)
    assert is_immutable(scene.disk)
    assert is_immutable(scene.directory)
    (link,) = scene.links.iterdir()
    assert link.samefile(scene.disk)
    assert scene.links.stat().st_mode & 0o777 == 0o700
    assert released(scene, hold) == ""
    assert tree(scene) == before
    assert is_immutable(config), "it was, before us"


@pytest.mark.parametrize("first", [0, 1])
def test_a_disk_of_two_preserved_instances_is_kept_until_the_last_is_released(
    scenes: list[Scene], first: int
) -> None:
    disk = scenes[0].directory.parent / "shared.img"
    disk.write_bytes(b"both")
    for scene in scenes:
        scene.define(disk)
    held = [kept(scene) for scene in scenes]
    released(scenes[first], held[first])
    assert is_immutable(disk)
    scenes[1 - first].treat()
    assert scenes[1 - first].outcome(held[1 - first]).state is State.ENFORCED
    released(scenes[1 - first], held[1 - first])
    assert not is_immutable(disk)
    assert disk.stat().st_nlink == 1


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("last", [0, 1])
def test_a_disk_that_is_anothers_backing_file_is_immutable_as_long_as_it_is_a_disk(
    scenes: list[Scene], first: int, last: int
) -> None:
    overlay(scenes[1].disk, scenes[0].disk)
    scenes[1].define(file_disk(scenes[1].disk, image="qcow2"))
    held = {number: kept(scenes[number]) for number in (first, 1 - first)}
    assert is_immutable(scenes[0].disk)
    released(scenes[1 - last], held[1 - last])
    assert is_immutable(scenes[0].disk) == (last == 0)
    scenes[last].treat()
    assert scenes[last].outcome(held[last]).state is State.ENFORCED
    released(scenes[last], held[last])
    assert not is_immutable(scenes[0].disk)
    assert not scenes[0].links.exists()


def test_a_second_hold_keeps_what_the_first_had_kept(scene: Scene) -> None:
    first, second = kept(scene), scene.place()
    scene.treat()
    scene.release(first)
    scene.treat()
    assert scene.outcome(first).state is State.LIFTED
    assert is_immutable(scene.disk)
    released(scene, second)
    assert not is_immutable(scene.disk)


def test_a_directory_that_others_share_is_left_as_it_is(scenes: list[Scene]) -> None:
    foreign = scenes[0].directory / "foreign"
    foreign.write_bytes(b"of another")
    scenes[1].define(foreign)
    hold = kept(scenes[0])
    assert is_immutable(scenes[0].disk)
    assert not is_immutable(scenes[0].directory)
    foreign.unlink()
    released(scenes[0], hold)


def test_a_directory_by_another_name_is_never_immutable(scene: Scene) -> None:
    pool = scene.directory.parent / "pool"
    pool.mkdir()
    disk = pool / "-rf 'x' $(id)"
    disk.write_bytes(b"x")
    scene.define(disk)
    hold = kept(scene)
    assert is_immutable(disk)
    assert not is_immutable(pool)
    assert [path.name for path in pool.iterdir()].count(".bootlock") == 1
    released(scene, hold)
    assert list(pool.iterdir()) == [disk]


def test_a_backing_file_is_linked_never_immutable_and_put_back(scene: Scene) -> None:
    base = scene.directory.parent / "base.img"
    base.write_bytes(bytes(1 << 16))
    middle = overlay(scene.directory.parent / "middle.qcow2", base)
    top = overlay(scene.directory / "top.qcow2", middle, "qcow2")
    scene.define(file_disk(top, image="qcow2"))
    hold = kept(scene)
    roles = {row.path: row.role for row in scene.rows()}
    assert roles == {
        str(top): Role.DISK,
        str(scene.directory): Role.DIRECTORY,
        str(middle): Role.BACKING,
        str(base): Role.BACKING,
    }
    assert is_immutable(top)
    assert not is_immutable(base)
    inode = base.stat().st_ino
    base.unlink()
    scene.treat()
    assert base.stat().st_ino == inode
    assert scene.outcome(hold).state is State.ENFORCED
    # Undefined, as by Nova at a refused start, it keeps what it was known to have.
    scene.undefine()
    scene.treat()
    assert scene.outcome(hold).state is State.ENFORCED
    scene.define(file_disk(top, image="qcow2"))
    released(scene, hold)
    assert not scene.links.exists()
    assert base.stat().st_nlink == 1


def test_what_an_overlay_is_on_outlives_an_rm_of_the_directory_of_both(scene: Scene) -> None:
    """As an external snapshot leaves it: no flag on the lower one, both beside each other."""
    pool = scene.directory.parent / "web"
    pool.mkdir()
    lower = pool / "disk.img"
    lower.write_bytes(b"the customer's" * 5000)
    top = overlay(pool / "disk.snapshot", lower)
    scene.define(file_disk(top, image="qcow2"))
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in (lower, top)}
    hold = kept(scene)
    done = subprocess.run(["rm", "-rf", pool], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert not lower.exists(), "it is anybody's to remove"
    scene.treat()
    assert {path: (path.stat().st_ino, path.read_bytes()) for path in before} == before
    assert scene.outcome(hold).state is State.ENFORCED
    with pytest.raises(PermissionError):
        (pool / ".bootlock").rename(pool / "aside")
    released(scene, hold)
    assert sorted(pool.iterdir()) == [lower, top]


def test_what_was_left_is_anybodys_to_remove_once_nothing_beside_it_is_kept(
    scenes: list[Scene],
) -> None:
    gone, other = scenes
    other.define()
    holds = [kept(gone), kept(other)]
    gone.undefine()
    released(gone, holds[0])
    (left,) = [Path(row.link) for row in gone.rows() if row.stage is Stage.LEFT]
    with pytest.raises(PermissionError):
        left.unlink()
    released(other, holds[1])
    left.unlink()
    left.parent.rmdir()


def test_a_raw_disk_that_its_guest_made_look_like_an_overlay_leads_nowhere(scene: Scene) -> None:
    secret = scene.directory.parent / "secret"
    secret.write_bytes(b"of the host's")
    overlay(scene.disk, secret)
    hold = kept(scene)
    assert str(secret) not in {row.path for row in scene.rows()}
    assert secret.stat().st_nlink == 1
    released(scene, hold)


def test_what_can_not_be_preserved_is_said_and_the_rest_is(scene: Scene) -> None:
    lost = [
        disk_xml(
            "network",
            "<source protocol='rbd' name='vms/one'><host name='ceph'/></source>",
            target="vdb",
        ),
        disk_xml("volume", "<source pool='none' volume='two'/>", target="vdc"),
        file_disk(scene.directory / "absent", target="vdd"),
        # A file system without the flag; as NFS is one.
        file_disk(Path("/proc/version"), target="vde"),
    ]
    scene.define(scene.disk, *lost)
    hold = scene.place()
    scene.treat()
    outcome = scene.outcome(hold)
    assert outcome.state is State.FAILED
    for name in ("net:rbd:vms/one", "volume:none/two", f"{scene.directory}/absent"):
        assert f"NOT PRESERVED: '{name}'" in outcome.detail
    assert "NOT PRESERVED: '/proc/version': its file system has no immutable" in outcome.detail
    assert "preserved: 1 disk, 1 directory" in outcome.detail
    assert is_immutable(scene.disk)
    released(scene, hold)


SHARED = """
  <devices>
    <filesystem type='mount'>
      <driver type='virtiofs'/><source dir='/srv/share'/><target dir='share'/>
    </filesystem>
    <filesystem type='mount'>
      <source dir='/srv/media'/><target dir='media'/><readonly/>
    </filesystem>
    <hostdev mode='subsystem' type='scsi'>
      <source><adapter name='scsi_host0'/><address bus='0' target='0' unit='0'/></source>
    </hostdev>
    <disk type='nvme' device='disk'>
      <source type='pci' managed='no' namespace='1'>
        <address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
      </source>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='vhostuser' device='disk'>
      <source type='unix' path='/run/spdk.sock'/><target dev='vdc' bus='virtio'/>
    </disk>
    <disk type='network' device='disk'>
      <source protocol='iscsi' name='iqn.2026-01.com.example:one/1'><host name='san'/></source>
      <target dev='vdd' bus='virtio'/>
    </disk>
"""


def test_what_is_no_disk_here_and_is_written_to_is_said_as_well(
    scene: Scene, host: PrivateHost
) -> None:
    """As libvirt takes it: shared directories, devices that were handed through, sockets."""
    document = domain_xml(scene.uuid, scene.uuid, disks=[scene.disk])
    assert document.count("<devices>") == 1
    # libvirt has virtiofs share the guest's memory.
    memory = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
    document = document.replace("<devices>", memory + SHARED)
    with closing(host.connect()) as connection:
        connection.defineXML(document)
    hold = scene.place()
    scene.treat()
    outcome = scene.outcome(hold)
    assert outcome.state is State.FAILED
    for why in (
        "'/srv/share' is a file system that it shares with this host",
        "a SCSI device was handed to it whole",
        "its disk 'vdb' is no file, device or volume",
        "its disk 'vdc' is no file, device or volume",
        "'net:iscsi:iqn.2026-01.com.example:one/1' is not on this host",
    ):
        assert f"NOT PRESERVED: {why}" in outcome.detail
    assert outcome.detail.count("NOT PRESERVED") == 5
    assert "preserved: 1 disk" in outcome.detail
    # It is not forgotten at the next look.
    scene.treat()
    assert scene.outcome(hold).detail == outcome.detail
    released(scene, hold)


def test_a_flag_that_somebody_took_off_is_set_again_and_a_lost_name_put_back(scene: Scene) -> None:
    hold = kept(scene)
    inode = scene.disk.stat().st_ino
    subprocess.run(["chattr", "-R", "-i", scene.directory], check=True)
    scene.disk.unlink()
    scene.treat()
    assert scene.outcome(hold).state is State.ENFORCED
    assert scene.disk.stat().st_ino == inode
    assert is_immutable(scene.disk)
    assert is_immutable(scene.directory)
    assert ["it was removed"] in [entry["found"] for entry in scene.mended()]
    subprocess.run(["chattr", "-i", scene.disk], check=True)
    scene.treat()
    assert is_immutable(scene.disk)
    assert scene.mended()[-1]["found"] == [f"{str(scene.disk)!r} can be written to"]
    subprocess.run(["chattr", "-i", scene.disk, scene.links], check=True)
    next(scene.links.iterdir()).unlink()
    scene.treat()
    assert scene.outcome(hold).state is State.ENFORCED
    (link,) = scene.links.iterdir()
    assert link.samefile(scene.disk)
    assert is_immutable(scene.links)
    subprocess.run(["chattr", "-i", scene.links], check=True)
    scene.treat()
    assert is_immutable(scene.links)
    released(scene, hold)


def test_a_name_that_was_lost_is_put_back_into_a_directory_that_is_immutable_again(
    scene: Scene,
) -> None:
    """It went while the flags were being set."""
    hold = kept(scene)
    inode = scene.disk.stat().st_ino
    subprocess.run(["chattr", "-R", "-i", scene.directory], check=True)
    scene.disk.unlink()
    make_immutable(scene.directory)
    scene.treat()
    assert scene.outcome(hold).state is State.ENFORCED
    assert scene.disk.stat().st_ino == inode
    assert is_immutable(scene.directory)
    released(scene, hold)


def test_a_file_that_was_put_in_its_place_is_not_taken_for_it(scene: Scene) -> None:
    hold = kept(scene)
    content = scene.disk.read_bytes()
    subprocess.run(["chattr", "-R", "-i", scene.directory], check=True)
    scene.disk.unlink()
    scene.disk.write_bytes(b"another")
    scene.treat()
    assert scene.outcome(hold).state is State.FAILED
    assert "was replaced by another file" in scene.outcome(hold).detail
    assert not is_immutable(scene.disk)
    detail = released(scene, hold)
    (link,) = scene.links.iterdir()
    assert str(link) in detail
    assert link.read_bytes() == content


def test_the_data_of_a_deleted_instance_outlives_its_release(scene: Scene) -> None:
    content = scene.disk.read_bytes()
    hold = kept(scene)
    scene.undefine()
    (link,) = scene.links.iterdir()
    assert str(link) in released(scene, hold)
    # The cloud's clean-up tries again.
    subprocess.run(["rm", "-rf", scene.directory], check=True)
    assert link.read_bytes() == content
    assert not is_immutable(link)
    (row,) = [row for row in scene.rows() if row.role is Role.DISK]
    assert row.stage is Stage.LEFT


def test_an_instance_that_is_back_after_its_release_leaves_no_link(
    scene: Scene, host: PrivateHost
) -> None:
    """As Nova undefines it at each refused start, and defines it at the next."""
    hold = kept(scene)
    scene.undefine()
    released(scene, hold)
    digester = Digester(scene.database, (host.uri,))
    digester.look()
    assert scene.links.exists()
    scene.define()
    digester.look()
    assert not scene.links.exists()
    assert {row.stage for row in scene.rows()} == {Stage.ENDED}


def test_nothing_is_left_of_a_deleted_instance_that_is_discarded(scene: Scene) -> None:
    hold = kept(scene)
    scene.undefine()
    assert released(scene, hold, discard=True) == ""
    assert not scene.links.exists()


def test_preserved_again_it_is_kept_as_the_first_time(scene: Scene) -> None:
    hold = kept(scene)
    scene.undefine()
    released(scene, hold)
    scene.define()
    again = kept(scene)
    assert is_immutable(scene.disk)
    released(scene, again)
    assert not is_immutable(scene.disk)
    assert not scene.links.exists()


def test_a_file_system_that_is_not_there_at_the_release_is_waited_for(scene: Scene) -> None:
    """Ended without it, its disks would be immutable for ever."""
    hold = kept(scene)
    elsewhere = scene.directory.parent.with_name("not mounted")
    scene.directory.parent.rename(elsewhere)
    scene.release(hold)
    scene.treat()
    assert scene.outcome(hold).state is State.FAILED
    assert "mount its file system" in scene.outcome(hold).detail
    elsewhere.rename(scene.directory.parent)
    scene.treat()
    assert scene.outcome(hold).state is State.LIFTED
    assert not is_immutable(scene.disk)


def test_without_a_database_nothing_is_done_and_nothing_undone(scene: Scene) -> None:
    hold = kept(scene)
    away = scene.database.with_name("away")
    scene.database.rename(away)
    scene.treat()
    assert is_immutable(scene.disk)
    away.rename(scene.database)
    released(scene, hold)


def written(device: str) -> None:
    descriptor = os.open(device, os.O_WRONLY)
    try:
        os.write(descriptor, bytes(512))
    finally:
        os.close(descriptor)


def test_a_block_device_is_read_only_while_it_is_held(scene: Scene, tmp_path: Path) -> None:
    image = tmp_path / "device.img"
    image.write_bytes(bytes(1 << 20))
    device = subprocess.check_output(["losetup", "--find", "--show", image], text=True).strip()
    try:
        scene.define(disk_xml("block", f"<source dev='{device}'/>"))
        hold = kept(scene)
        with pytest.raises(PermissionError):
            written(device)
        assert [row.role for row in scene.rows()] == [Role.DEVICE]
        # As after a boot, before libvirt answers.
        subprocess.run(["blockdev", "--setrw", device], check=True)
        scene.treat(looks=False)
        with pytest.raises(PermissionError):
            written(device)
        assert scene.mended()[-1]["found"] == [f"{device!r} can be written to"]
        released(scene, hold)
        written(device)
        # One that is in use is left alone.
        used = os.open(device, os.O_RDONLY | os.O_EXCL)
        hold = kept(scene, State.PENDING)
        assert f"in use: '{device}'" in scene.outcome(hold).detail
        os.close(used)
        scene.treat()
        assert scene.outcome(hold).state is State.ENFORCED
        released(scene, hold)
    finally:
        # The kernel keeps it for the next user of the same number.
        subprocess.run(["blockdev", "--setrw", device], check=True)
        subprocess.run(["losetup", "--detach", device], check=True)


def test_a_custody_directory_that_is_not_roots_own_is_not_used(scene: Scene) -> None:
    scene.links.mkdir(mode=0o755)
    hold = scene.place()
    scene.treat()
    assert scene.outcome(hold).state is State.FAILED
    assert "not a directory of root's own" in scene.outcome(hold).detail
    assert is_immutable(scene.disk), "the flag is worth more than the link"
    scene.links.chmod(0o700)
    scene.treat()
    assert scene.outcome(hold).state is State.ENFORCED
    released(scene, hold)
