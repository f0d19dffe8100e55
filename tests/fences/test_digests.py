"""Digests of preserved disks: put aside and gone on with, and of nothing that was written to."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootlockd import qcow2
from bootlockd.digests import PIECE, Digester
from bootlockd.resumable import Sha256
from lockdb import preserved
from lockdb.database import open_db
from lockdb.preserved import Preserved, Role, Stage

UUID = "5da5dc1c-b82d-46d6-adc1-e33e9c1636ea"


@given(st.lists(st.binary(max_size=300)))
def test_put_aside_anywhere_it_comes_to_the_same_digest(pieces: list[bytes]) -> None:
    digest = Sha256()
    for piece in pieces:
        digest.update(piece)
        aside = digest.aside()
        assert aside is not None, "this machine's Python is linked with OpenSSL"
        digest = Sha256(aside)
        assert digest.begun
    assert digest.hexdigest() == hashlib.sha256(b"".join(pieces)).hexdigest()


@pytest.mark.parametrize("state", [None, b"", b"another build\0" + bytes(112)])
def test_a_state_of_another_build_is_not_gone_on_from(state: bytes | None) -> None:
    digest = Sha256(state)
    assert not digest.begun
    digest.update(b"x")
    assert digest.hexdigest() == hashlib.sha256(b"x").hexdigest()


@pytest.fixture
def disk(tmp_path: Path, path: Path) -> Path:
    """A kept disk of several pieces."""
    disk = tmp_path / "disk"
    disk.write_bytes(random.Random(1).randbytes(3 * PIECE + 5))
    keep(path, disk)
    return disk


def keep(path: Path, disk: Path, role: Role = Role.DISK) -> None:
    row = Preserved(UUID, str(disk), role, disk.stat().st_ino, "", had_flag=False, size=1)
    with open_db(path) as lock_db:
        preserved.intend(lock_db, [row], now=1)
        preserved.confirm(lock_db, [row], now=1)


def row_of(path: Path) -> Preserved:
    with open_db(path, read_only=True) as lock_db:
        (row,) = preserved.of_instance(lock_db, UUID)
    return row


class Reading:
    """Counts what is read, and has the digester end, or the disk changed, in the middle."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.positions: list[int] = []
        self.during: Callable[[], None] = lambda: None
        read = os.pread

        def counted(descriptor: int, size: int, at: int) -> bytes:
            self.positions.append(at)
            if len(self.positions) == 2:
                self.during()
            return read(descriptor, size, at)

        patch.setattr(os, "pread", counted)


def test_it_is_taken_of_all_that_is_kept(path: Path, disk: Path) -> None:
    Digester(path, ()).look()
    row = row_of(path)
    assert row.sha256 == hashlib.sha256(disk.read_bytes()).hexdigest()
    assert (row.size, row.stage) == (disk.stat().st_size, Stage.KEPT)
    with open_db(path, read_only=True) as lock_db:
        (digest,) = preserved.digests(lock_db, UUID)
    assert (digest.path, digest.sha256) == (str(disk), row.sha256)


def test_after_a_restart_it_goes_on_where_it_was(
    path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Reading(monkeypatch)
    digester = Digester(path, ())
    reading.during = digester.stop
    digester.look()
    assert row_of(path).sha256 is None
    assert row_of(path).hashed == 2 * PIECE
    reading.positions.clear()
    reading.during = lambda: None
    Digester(path, ()).look()
    assert min(reading.positions) == 2 * PIECE
    assert row_of(path).sha256 == hashlib.sha256(disk.read_bytes()).hexdigest()


def test_what_was_written_to_since_is_begun_anew(
    path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Reading(monkeypatch)
    digester = Digester(path, ())
    reading.during = digester.stop
    digester.look()
    with disk.open("r+b") as file:
        file.write(b"changed")
    reading.positions.clear()
    Digester(path, ()).look()
    assert min(reading.positions) == 0
    assert row_of(path).sha256 == hashlib.sha256(disk.read_bytes()).hexdigest()


def test_no_digest_is_taken_of_what_is_written_to_meanwhile(
    path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Reading(monkeypatch)
    reading.during = lambda: os.truncate(disk, 4 * PIECE)
    Digester(path, ()).look()
    assert (row_of(path).sha256, row_of(path).hashed) == (None, 0)


def test_no_digest_is_recorded_of_what_is_kept_no_more(
    path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end() -> None:
        with open_db(path) as lock_db:
            preserved.end(lock_db, [row_of(path)], now=2)

    reading = Reading(monkeypatch)
    reading.during = end
    Digester(path, ()).look()
    assert row_of(path).sha256 is None


def test_a_file_of_that_name_that_is_another_is_not_read(path: Path, disk: Path) -> None:
    disk.rename(disk.with_name("moved"))
    disk.write_bytes(b"another")
    Digester(path, ()).look()
    assert row_of(path).sha256 is None


def test_whoever_waits_for_it_is_woken(path: Path, disk: Path) -> None:
    woken = threading.Event()
    digester = Digester(path, ())
    digester.start(lambda wake: woken.set() if wake.instance == UUID else None)
    digester.hurry()
    try:
        assert woken.wait(60)
    finally:
        digester.stop()


# -- the header of a qcow2 image ------------------------------------------------------------------


def header_of(path: Path) -> qcow2.Header | None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return qcow2.read(descriptor)
    finally:
        os.close(descriptor)


def create(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *arguments], check=True)


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_it_is_read_as_qemu_writes_it(tmp_path: Path, compat: str) -> None:
    base, top = tmp_path / "bäse 'x'", tmp_path / "top"
    create("-o", f"compat={compat}", base, "1M")
    assert header_of(base) == qcow2.Header()
    create("-o", f"compat={compat}", "-F", "qcow2", "-b", base.name, top)
    assert header_of(top) == qcow2.Header(base.name, "qcow2")
    data = tmp_path / "data"
    if compat == "1.1":
        create("-o", f"data_file={data}", top, "1M")
        assert header_of(top) == qcow2.Header(data_file=str(data))


@given(st.binary(max_size=400), st.booleans())
def test_whatever_stands_there_it_is_a_header_or_none(data: bytes, begins_well: bool) -> None:
    start = b"QFI\xfb\0\0\0\3" if begins_well else b""
    descriptor = os.memfd_create("image")
    try:
        os.write(descriptor, start + data)
        found = qcow2.read(descriptor)
    finally:
        os.close(descriptor)
    assert found is None or begins_well or data.startswith(b"QFI\xfb")
