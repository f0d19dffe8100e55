"""Custody's decisions, on image files made here; putting back is in the live tests."""

import os
import struct
import uuid as uuids
from dataclasses import replace
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from bootlockd import savedimage
from bootlockd.errors import FenceError
from bootlockd.fences.custody import FAREWELL, CustodyFence, Finding
from bootlockd.values import Power
from fences.heldcases import NAME, NOW, PERMIT, UUID, case, guest, hold, row
from lockdb.enforcements import State
from lockdb.values import Kind


def image(
    path: Path, uuid: str = UUID, name: str = NAME, magic: bytes = b"LibvirtQemudSave"
) -> None:
    """A managed save as libvirt 9.0 writes it, with other RAM."""
    document = f"<domain><name>{escape(name)}</name><uuid>{uuid}</uuid></domain>".encode()
    data = document + b"\0<cookie/>\0" + bytes(100)
    path.write_bytes(struct.pack("=16sII17I", magic, 2, len(data), *[0] * 17) + data + b"RAM")


@pytest.fixture
def saves(tmp_path: Path) -> Path:
    path = tmp_path / "save"
    path.mkdir()
    return path


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "custody"


@pytest.fixture
def fence(saves: Path, kept: Path) -> CustodyFence:
    return CustodyFence(kept, ["qemu:///system"], saves)


@pytest.fixture
def saved(saves: Path) -> Path:
    path = saves / f"{NAME}.save"
    image(path)
    return path


def test_an_image_of_a_hostile_name_is_kept_under_its_uuid(
    fence: CustodyFence, saved: Path, kept: Path
) -> None:
    assert fence.reaches(case())
    assert fence.verify(case()).state is State.FAILED
    assert not kept.exists(), "verify changes nothing"
    assert fence.apply(case()).state is State.ENFORCED
    assert [path.name for path in kept.iterdir()] == [f"{UUID}.save"]
    assert os.path.samefile(saved, kept / f"{UUID}.save")
    assert kept.stat().st_mode & 0o777 == 0o700


def test_without_an_image_there_is_nothing_to_keep(fence: CustodyFence, kept: Path) -> None:
    assert not fence.reaches(case())
    assert fence.apply(case()).state is State.NOT_HERE
    assert fence.apply(case(None)).state is State.NOT_HERE
    assert fence.lift(case(None, holds=[])).state is State.LIFTED
    assert not kept.exists()


def test_only_boot_locks_ask_for_it_and_a_permit_does_not_end_it(fence: CustodyFence) -> None:
    assert fence.asks(hold())
    assert not fence.asks(hold(Kind.STATE_LOCK))
    assert fence.wanted(case(permits=[PERMIT]))
    assert not fence.wanted(case(holds=[hold(Kind.STATE_LOCK)]))


@pytest.mark.parametrize("left", [".new", "an older image", "both"])
def test_interrupted_anywhere_it_ends_right(
    fence: CustodyFence, saved: Path, kept: Path, left: str
) -> None:
    kept.mkdir(0o700)
    if left != "an older image":
        os.link(saved, kept / f".{UUID}.new")
    if left != ".new":
        image(kept / f"{UUID}.save")
    assert fence.apply(case()).state is State.ENFORCED
    assert [path.name for path in kept.iterdir()] == [f"{UUID}.save"]
    assert os.path.samefile(saved, kept / f"{UUID}.save")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"LibvirtQemudSave",
        struct.pack("=16sII17I", b"LibvirtQemudSave", 2, 2**32 - 1, *[0] * 17) + b"<",
        struct.pack("=16sII17I", b"LibvirtQemudSave", 2, 9, *[0] * 17) + b"<domain>\0",
    ],
)
def test_what_is_no_image_is_not_kept(
    fence: CustodyFence, saves: Path, kept: Path, content: bytes
) -> None:
    place = saves / f"{NAME}.save"
    place.write_bytes(content)
    outcome = fence.apply(case())
    assert outcome.state is State.FAILED
    assert outcome.detail.startswith(Finding.UNREADABLE)
    assert "\n" not in outcome.detail
    assert not kept.exists()
    assert fence.apply(case(Power.PAUSED)).state is State.NOT_HERE, "it is being written"


def test_an_incomplete_or_foreign_image_is_not_kept(fence: CustodyFence, saves: Path) -> None:
    place = saves / f"{NAME}.save"
    image(place, magic=b"LibvirtQemudPart")
    assert fence.apply(case(Power.PAUSED)).state is State.NOT_HERE
    image(place, uuid=str(uuids.uuid4()))
    assert fence.apply(case()).state is State.FAILED


def test_links_and_pipes_planted_in_the_save_directory_are_not_followed(
    fence: CustodyFence, saves: Path, kept: Path, tmp_path: Path
) -> None:
    image(tmp_path / "elsewhere")
    place = saves / f"{NAME}.save"
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FenceError):
        fence.apply(case())
    place.unlink()
    os.mkfifo(place)
    assert fence.apply(case()).state is State.FAILED
    assert not kept.exists()


@pytest.mark.parametrize("name", ["a/../b", "", "nul\0"])
def test_a_name_that_no_file_can_have_is_no_path(fence: CustodyFence, name: str) -> None:
    assert savedimage.path_of(Path("/save"), name) is None
    assert fence.apply(case(guest=guest(name=name))).state is State.NOT_HERE


def test_a_custody_directory_that_others_may_use_is_refused(
    fence: CustodyFence, saved: Path, kept: Path, tmp_path: Path
) -> None:
    kept.mkdir(0o755)
    kept.chmod(0o755)
    with pytest.raises(FenceError, match="open to others"):
        fence.apply(case())
    kept.rmdir()
    (tmp_path / "theirs").mkdir(0o700)
    kept.symlink_to(tmp_path / "theirs")
    with pytest.raises(FenceError, match="not a directory of root's own"):
        fence.apply(case())


class TestWithoutItsManagedSave:
    """The image is in custody, and gone from its place."""

    @pytest.fixture(autouse=True)
    def _taken(self, fence: CustodyFence, saved: Path) -> None:
        fence.apply(case())
        saved.unlink()

    def test_it_is_to_be_put_back(self, fence: CustodyFence) -> None:
        assert fence.verify(case()).detail == Finding.TAKEN

    def test_an_undefined_domain_leaves_it_in_custody(self, fence: CustodyFence) -> None:
        assert fence.apply(case(None)).state is State.ENFORCED

    def test_a_beginning_or_running_guest_on_files_is_asked_when_it_is_off(
        self, fence: CustodyFence, tmp_path: Path
    ) -> None:
        disk = tmp_path / "disk"
        disk.touch()
        os.utime(disk, (0, 0))
        keys = [f"path:{disk}", "path:/gone"]
        assert fence.apply(case(Power.PAUSED, disks=["net:rbd:x"])).state is State.ENFORCED
        assert fence.apply(case(Power.RUNNING, disks=keys)).state is State.ENFORCED
        assert fence.verify(case(disks=keys)).detail == Finding.TAKEN
        disk.write_bytes(b"written")
        assert fence.verify(case(disks=keys)).detail == Finding.RAN

    @pytest.mark.parametrize("disk", ["net:rbd:pool/x", "volume:pool/x", "path:/dev/null"])
    def test_a_run_on_disks_that_do_not_tell_sets_it_aside(
        self, fence: CustodyFence, kept: Path, disk: str
    ) -> None:
        assert fence.apply(case(Power.RUNNING, disks=[disk])).state is State.FAILED
        assert [path.name for path in kept.iterdir()] == [f"{UUID}.ran"]
        again = fence.apply(case(disks=[disk]))
        assert again.state is State.FAILED
        assert again.detail.startswith(Finding.SPENT)
        assert fence.lift(case(holds=[])).state is State.LIFTED
        assert not list(kept.iterdir())

    def test_a_permitted_run_uses_it_up(self, fence: CustodyFence, kept: Path) -> None:
        permitted = case(Power.RUNNING, permits=[PERMIT])
        assert fence.apply(permitted).state is State.NOT_HERE
        assert not list(kept.iterdir())

    def test_a_new_name_is_told_and_the_ram_stays(self, fence: CustodyFence, kept: Path) -> None:
        renamed = case(guest=guest(name="new"))
        assert fence.apply(renamed).detail.startswith(Finding.RENAMED)
        assert fence.lift(replace(renamed, holds=[])).state is State.FAILED
        assert list(kept.iterdir())

    def test_gone_from_custody_too_it_is_reported_as_lost(
        self, fence: CustodyFence, kept: Path
    ) -> None:
        (kept / f"{UUID}.save").unlink()
        known = case(rows=row("custody", State.ENFORCED, Finding.KEPT))
        assert fence.apply(known).detail == Finding.LOST
        assert fence.apply(case()).state is State.NOT_HERE

    def test_released_while_undefined_it_has_time_to_come_back(
        self, fence: CustodyFence, kept: Path
    ) -> None:
        gone = case(None, holds=[])
        first = fence.lift(gone)
        assert (first.state, first.next_try) == (State.PENDING, NOW + FAREWELL)
        early = replace(gone, rows=row("custody", State.PENDING, first.detail, NOW - FAREWELL + 1))
        assert fence.lift(early).state is State.PENDING
        assert list(kept.iterdir())


def test_lifting_leaves_the_managed_save(fence: CustodyFence, saved: Path, kept: Path) -> None:
    fence.apply(case())
    assert fence.lift(case(holds=[])).state is State.LIFTED
    assert fence.lift(case(holds=[])).state is State.LIFTED
    assert saved.exists()
    assert not list(kept.iterdir())


def test_a_managed_save_of_another_driver_is_no_success(fence: CustodyFence) -> None:
    xen = replace(guest(), uri="xen:///system", has_managed_save=True)
    assert fence.apply(case(guest=xen)).state is State.FAILED
