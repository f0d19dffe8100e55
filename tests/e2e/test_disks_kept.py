"""Disks are kept from root by the real service: on each file system, through a reboot, stopped too.

The file systems are those that the machine's kernel has, and a namespace's has not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from e2e.conftest import DATABASE
from e2e.guests import define, place, release, start, uuid
from e2e.machine import SPARE, Machine
from waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

INSTANCES = "/srv/instances"

POOL = "/var/lib/libvirt/images"
VOLUME = f"{POOL}/kept.img"
#: Its digest takes long enough for a reboot to come before the end of it. It is all zeros.
SIZE = 640 << 20
DEVICE = "/dev/spare/kept"

NOT_PERMITTED = "Operation not permitted"


@pytest.fixture(params=["xfs", "btrfs"])
def instances(host: Machine, request: pytest.FixtureRequest) -> Iterator[str]:
    """A directory on a file system of this kind, as Nova has it: of directories of one instance."""
    image = "/root/instances.img"
    host.run(f"truncate -s 300M {image}; mkfs.{request.param} -q {image}; mkdir {INSTANCES}")
    host.run(f"mount -o loop {image} {INSTANCES}")
    yield INSTANCES
    host.run(f"umount {INSTANCES} && rmdir {INSTANCES} && rm {image}")


def test_an_instances_directory_is_kept_from_root_and_given_back(
    host: Machine, instances: str
) -> None:
    directory = f"{instances}/{uuid('kept')}"
    disk = f"{directory}/disk"
    host.run(f"mkdir {directory}; head -c 1000000 /dev/urandom >{disk}")
    define(host, "kept")
    host.run(f"virsh attach-disk kept {disk} vda --config")
    before = _as_it_is(host, instances)

    assert "preserve: 1 disk, 1 directory" in place(host, "kept", "--preserve")
    try:
        for order in (
            f"rm -rf {directory}",
            f"mv {directory} {instances}/gone",
            f"touch {directory}/new",
            f"mv {disk} /root/",
            f"qemu-img resize -f raw {disk} 2M",
            f"dd if=/dev/zero of={disk} bs=1 count=1 conv=notrunc",
        ):
            assert NOT_PERMITTED in host.run(order, check=False).stderr
        assert host.run(f"find {instances}/.bootlock -samefile {disk}").stdout.count("\n") == 1
        verify = f"bootlock verify {uuid('kept')}"
        wait_until(lambda: host.run(verify, check=False).returncode == 0, "it has a digest", 300)
        assert host.run(f"sha256sum <{disk}").stdout.split()[0] in host.run(verify).stdout
    finally:
        release(host, "kept")
    assert _as_it_is(host, instances) == before


@pytest.fixture
def disks(host: Machine) -> Iterator[None]:
    """A guest's: a volume of a pool, and a logical volume."""
    host.run(f"virsh pool-define-as images dir --target {POOL}; virsh pool-autostart images")
    host.run(f"truncate -s {SIZE} {VOLUME}; virsh pool-start images")
    host.run(f"vgcreate -q spare {SPARE}; lvcreate -q -n kept -L 4M spare")
    host.run(f"head -c {4 << 20} /dev/urandom >{DEVICE}")
    define(host, "kept")
    host.run(f"virsh attach-disk kept {VOLUME} vda --config")
    host.run(f"virsh attach-disk kept {DEVICE} vdb --sourcetype block --config")
    yield
    host.run("systemctl start bootlock-preserve")
    host.run(f"bootlock release --instance {uuid('kept')} --all --reason end", check=False)
    host.run("virsh pool-destroy images; virsh pool-undefine images")
    host.run(f"rm {VOLUME}; lvremove -qy {DEVICE}; vgremove -q spare; pvremove -q {SPARE}")


@pytest.mark.usefixtures("disks")
def test_a_volume_and_a_device_are_kept_through_a_reboot_and_while_the_service_is_stopped(
    host: Machine,
) -> None:
    before = _as_it_is(host, POOL)
    content = host.run(f"sha256sum <{DEVICE}").stdout
    assert "preserve: 1 disk, 1 device" in place(host, "kept", "--preserve")
    _are_kept(host)

    wait_until(lambda: _hashed(host) > 0, "its digest is under way", 300)
    hashed = _hashed(host)
    host.reboot()
    # Until it is read-only again nothing of ours would write to it: the hook refuses the start.
    wait_until(lambda: _is_read_only(host), "the device is read-only again", 300)
    _are_kept(host)
    assert "bootlock: start refused: " in start(host, "kept")
    progress = [hashed]

    def is_taken() -> bool:
        progress.append(_hashed(host))
        return progress[-1] == SIZE

    wait_until(is_taken, "the digest is taken", 600)
    assert progress == sorted(progress), "it went on where it was"
    wait_until(lambda: _digest(host) == _digest_of_zeros(SIZE), "it is right", 60)
    assert host.run(f"sha256sum <{DEVICE}").stdout == content

    host.run("systemctl stop bootlock-preserve")
    done = host.run(f"bootlock release --instance {uuid('kept')} --all --reason paid", check=False)
    assert done.returncode == 6
    assert "its disks stay as they are: bootlock-preserve.service does not run" in done.stderr
    _are_kept(host, held=False)
    assert NOT_PERMITTED in start(host, "kept")
    host.run("systemctl start bootlock-preserve")
    wait_until(lambda: not _is_read_only(host), "the device is given back", 300)
    wait_until(lambda: _as_it_is(host, POOL) == before, "the volume is given back", 300)
    assert host.run(f"sha256sum <{DEVICE}").stdout == content


def _are_kept(host: Machine, held: bool = True) -> None:
    for order in (
        f"rm -f {VOLUME}",
        f"mv {VOLUME} /root/",
        f"truncate -s 0 {VOLUME}",
        "virsh vol-delete kept.img --pool images",
        "virsh vol-wipe kept.img --pool images",
        f"dd if=/dev/zero of={DEVICE} bs=512 count=1 conv=fsync",
    ):
        assert NOT_PERMITTED in host.run(order, check=False).stderr, order
    if held:
        # bootlockd has it open, for the lock on its image.
        assert "in use" in host.run(f"lvremove -y {DEVICE}", check=False).stderr


def _is_read_only(host: Machine) -> bool:
    return host.run(f"blockdev --getro {DEVICE}").stdout == "1\n"


def _as_it_is(host: Machine, directory: str) -> str:
    """All names in it, with what each leads to, and its flags; what the files have in them."""
    listed = host.run(
        f"cd {directory} && find . -mindepth 1 -printf '%p %i %n %u %g %m %s %T@\\n' | sort"
        f" && lsattr -Ra && find . -type f -size -2M -exec sha256sum {{}} +"
    )
    return listed.stdout


def _hashed(host: Machine) -> int:
    """Bytes of the volume that its digest has seen."""
    return int(_asked(host, "hashed"))


def _digest(host: Machine) -> str:
    return _asked(host, "sha256")


def _asked(host: Machine, column: str) -> str:
    query = f"SELECT {column} FROM preserved WHERE path='{VOLUME}'"
    shell = "sqlite3 -readonly -cmd '.timeout 10000'"
    return host.run(f'{shell} {DATABASE} "{query}"').stdout.strip()


def _digest_of_zeros(size: int) -> str:
    digest = hashlib.sha256()
    for _ in range(size >> 20):
        digest.update(bytes(1 << 20))
    return digest.hexdigest()
