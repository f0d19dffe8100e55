"""image-lock on real files and the kernel's own locks; with QEMU in the live tests."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bootlockd import imagelocks
from bootlockd.descriptors import Descriptors
from bootlockd.errors import FenceError
from bootlockd.fences.image_lock import ABOUT_TO, NO_DISK, RUNS_ON, ImageLockFence
from bootlockd.values import Power
from fences.heldcases import PERMIT, UUID, hold, row
from fences.lockedfiles import NAME, announced, is_locked, lock_on
from lockdb.enforcements import State
from lockdb.values import Kind, OnRunning


def use(path: Path) -> int:
    """Lock a byte as a QEMU does that reads from the image; the descriptor that holds it."""
    descriptor = os.open(path, os.O_RDONLY)
    lock = struct.pack("@hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
    return descriptor


@pytest.fixture
def descriptors() -> Iterator[Descriptors]:
    kept = Descriptors({})
    yield kept
    kept.replace(f"{NAME}.{UUID}", [])


@pytest.fixture
def fence(descriptors: Descriptors) -> ImageLockFence:
    return ImageLockFence(descriptors)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(512))
    return path


def test_it_is_announced_before_anything_is_locked(fence: ImageLockFence, disk: Path) -> None:
    """Killed in between, and its hold released then, nothing may stay locked unseen."""
    first = fence.apply(replace(announced(disk), rows={}))
    assert (first.state, first.detail) == (State.PENDING, ABOUT_TO)
    assert not is_locked(disk)
    lifted = replace(announced(disk), rows=row(NAME, State.LIFTED))
    assert fence.apply(lifted).state is State.PENDING
    assert fence.apply(announced(disk)).state is State.ENFORCED
    assert is_locked(disk)
    assert fence.apply(replace(announced(disk), rows={})).state is State.ENFORCED


def test_before_libvirt_answers_what_is_free_is_locked_and_no_more_is_said(
    fence: ImageLockFence, disk: Path
) -> None:
    unseen = announced(disk, guest=None)
    user = use(disk)
    assert fence.prepare(unseen) is None
    assert fence.prepare(announced(disk.with_name("elsewhere"), guest=None)) is None
    os.close(user)
    about_to = fence.prepare(replace(unseen, rows={}))
    assert about_to
    assert about_to.detail == ABOUT_TO
    assert not is_locked(disk)
    locked = fence.prepare(unseen)
    assert locked
    assert locked.state is State.ENFORCED
    assert is_locked(disk)


def test_only_the_bytes_are_locked_that_stop_openers(fence: ImageLockFence, disk: Path) -> None:
    fence.apply(announced(disk))
    assert lock_on(disk, 100) is None
    assert lock_on(disk, 204) is None


def test_lifting_frees_the_disk_whoever_has_it_open(
    fence: ImageLockFence, descriptors: Descriptors, disk: Path
) -> None:
    fence.apply(announced(disk))
    (held,) = descriptors.of(f"{NAME}.{UUID}")
    other = os.dup(held)
    try:
        assert fence.lift(announced(disk, holds=[])).state is State.LIFTED
        assert not is_locked(disk), "as in systemd's store"
    finally:
        os.close(other)
    assert fence.lift(announced(disk, holds=[])).state is State.LIFTED


def test_a_lock_that_is_gone_is_noticed_and_taken_again(
    fence: ImageLockFence, descriptors: Descriptors, disk: Path
) -> None:
    fence.apply(announced(disk))
    imagelocks.let_go(*descriptors.of(f"{NAME}.{UUID}"))
    assert fence.verify(announced(disk)).state is State.FAILED
    assert fence.apply(announced(disk)).state is State.ENFORCED
    assert is_locked(disk)


def test_a_file_that_was_replaced_is_locked_and_so_is_the_old_one(
    fence: ImageLockFence, disk: Path
) -> None:
    fence.apply(announced(disk))
    moved = disk.with_name("moved")
    disk.rename(moved)
    disk.write_bytes(bytes(512))
    assert fence.verify(announced(disk)).state is State.FAILED
    assert not is_locked(disk)
    assert fence.apply(announced(disk)).state is State.ENFORCED
    assert is_locked(disk)
    assert is_locked(moved)
    fence.lift(announced(disk, holds=[]))
    assert not is_locked(disk)
    assert not is_locked(moved)


def test_a_deleted_file_is_not_kept_from_being_freed(
    fence: ImageLockFence, descriptors: Descriptors, disk: Path
) -> None:
    fence.apply(announced(disk))
    disk.unlink()
    gone = fence.apply(announced(disk))
    assert (gone.state, gone.detail) == (State.NOT_HERE, NO_DISK)
    assert descriptors.of(f"{NAME}.{UUID}") == []


def test_one_disk_under_several_names_is_locked_once(
    fence: ImageLockFence, descriptors: Descriptors, disk: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(disk)
    (tmp_path / "hard").hardlink_to(disk)
    names = (disk, tmp_path / "link", tmp_path / "hard", "volume:pool/disk")
    assert fence.apply(announced(*names)).state is State.ENFORCED
    assert len(descriptors.of(f"{NAME}.{UUID}")) == 1


def test_what_cannot_be_locked_is_told(fence: ImageLockFence, disk: Path) -> None:
    outcome = fence.apply(announced(disk, "net:rbd:pool/x", "path:/no\nwhere", "path:/dev/null"))
    assert outcome.state is State.ENFORCED
    assert outcome.detail == (
        "1 locked; not on this host: 'net:rbd:pool/x'; no such file: '/dev/null', '/no\\nwhere'"
    )


def test_an_instance_without_local_disks_is_not_claimed_to_be_locked(
    fence: ImageLockFence,
) -> None:
    remote = fence.apply(announced("net:rbd:pool/x"))
    assert (remote.state, remote.detail) == (State.NOT_HERE, NO_DISK)


def test_a_disk_in_use_is_left_alone_and_tried_again(
    fence: ImageLockFence, disk: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.touch()
    used = use(disk)
    try:
        outcome = fence.apply(announced(disk, other))
        assert outcome.state is State.PENDING
        assert str(disk) in outcome.detail
        assert outcome.next_try
        assert lock_on(disk, 200) is None
        assert is_locked(other)
    finally:
        os.close(used)
    assert fence.apply(announced(disk, other)).state is State.ENFORCED
    assert is_locked(disk)


@pytest.mark.parametrize(
    ("order", "state"),
    [
        (OnRunning.LEAVE, State.NOT_HERE),
        (OnRunning.PAUSE, State.NOT_HERE),
        (OnRunning.SHUTDOWN, State.PENDING),
        (OnRunning.DESTROY, State.PENDING),
    ],
)
def test_only_a_guest_that_may_run_on_is_not_waited_for(
    fence: ImageLockFence, disk: Path, order: OnRunning, state: State
) -> None:
    used = use(disk)
    try:
        outcome = fence.apply(announced(disk, power=Power.RUNNING, holds=[hold(order=order)]))
    finally:
        os.close(used)
    assert outcome.state is state
    assert (outcome.detail == RUNS_ON) is (state is State.NOT_HERE)


def test_a_writers_lock_in_the_way_is_a_failure(fence: ImageLockFence, disk: Path) -> None:
    with disk.open("r+b") as other:
        lock = struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 201, 1, 0)
        fcntl.fcntl(other.fileno(), fcntl.F_OFD_SETLK, lock)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(FenceError, match="can't be locked"):
            fence.apply(announced(disk))
        assert len(os.listdir("/proc/self/fd")) == before


def test_it_is_wanted_for_boot_locks_without_a_permit_and_if_enabled(
    fence: ImageLockFence, descriptors: Descriptors, disk: Path
) -> None:
    off = ImageLockFence(descriptors, enabled=False)
    known = announced(disk)
    assert fence.wanted(known)
    assert fence.reaches(known)
    assert fence.asks(hold())
    assert not fence.wanted(replace(known, permits=[PERMIT]))
    assert not fence.wanted(replace(known, holds=[hold(Kind.STATE_LOCK)]))
    assert not fence.asks(hold(Kind.STATE_LOCK))
    assert not off.wanted(known)
    assert not off.asks(hold())
    assert not fence.reaches(announced("net:rbd:x"))
    assert not fence.reaches(announced(disk, power=None))
