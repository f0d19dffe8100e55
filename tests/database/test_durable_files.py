"""Files of ours beside the database: replaced whole, or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from lockdb import durable


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_text("before")
    return file


def replace(file: Path, content: bytes, mode: int = 0o600) -> os.stat_result:
    return durable.replace_file(file, content, mode, draft=file.with_name("draft"))


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755])
def test_a_file_is_replaced_with_its_mode_whatever_the_mask(file: Path, mode: int) -> None:
    mask = os.umask(0o077)
    try:
        status = replace(file, b"after", mode)
    finally:
        os.umask(mask)
    assert file.read_bytes() == b"after"
    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert (status.st_ino, status.st_mode, status.st_size) == (
        file.stat().st_ino,
        file.stat().st_mode,
        len(b"after"),
    )
    assert os.listdir(file.parent) == ["file"]


def test_what_stands_in_the_drafts_place_leads_nowhere(file: Path) -> None:
    file.with_name("victim").write_text("precious")
    file.with_name("draft").symlink_to("victim")
    replace(file, b"after")
    assert not file.is_symlink()
    assert file.read_bytes() == b"after"
    assert file.with_name("victim").read_text() == "precious"


def test_a_file_that_can_not_be_written_whole_stays_as_it_was(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace(file, b"after")
    assert file.read_text() == "before"
    assert os.listdir(file.parent) == ["file"]
