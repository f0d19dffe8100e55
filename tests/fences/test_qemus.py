"""What counts as a QEMU, and what is read of one: by its program's content and its arguments."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bootlockd.proc_events import Exec, filter_program, parse
from bootlockd.qemus import Program, Programs, file_id, printable, uuids_of

A = "aaaaaaaa-2222-4333-8444-555555555555"
B = "bbbbbbbb-2222-4333-8444-555555555555"


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        ("qemu-system-x86_64", Program.QEMU),
        ("qemu-img", Program.OTHER),
        ("virt-qemu-run", Program.OTHER),
        ("libvirtd", Program.OTHER),
        ("bash", Program.OTHER),
    ],
)
def test_installed_programs(program: str, kind: Program) -> None:
    path = shutil.which(program)
    assert path
    assert Programs().of(path) is kind


def test_the_dynamic_linker_is_known() -> None:
    assert Programs().of("/lib64/ld-linux-x86-64.so.2") is Program.LOADER


MARKS = b"QEMU emulator version 7.2\0 specify machine UUID"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x7fELF" + bytes(2 << 20) + MARKS, Program.QEMU),
        # The first mark lies across two of the pieces in which files are read.
        (b"\x7fELF" + bytes((1 << 20) - 14) + MARKS + bytes(1 << 20), Program.QEMU),
        (b"\x7fELF" + bytes(2 << 20) + MARKS[:30], Program.OTHER),
        (b"#!/b" + bytes(2 << 20) + MARKS, Program.OTHER),
        (b"\x7fELF" + MARKS, Program.OTHER),
        (b"", Program.OTHER),
    ],
)
def test_the_content_decides(tmp_path: Path, content: bytes, kind: Program) -> None:
    program = tmp_path / "x"
    program.write_bytes(content)
    assert Programs().of(os.fsencode(program)) is kind


def test_a_program_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    programs = Programs()
    program = tmp_path / "x"
    program.write_bytes(b"\x7fELF" + bytes(2 << 20))
    assert programs.of(str(program)) is Program.OTHER
    program.write_bytes(b"\x7fELF" + bytes(2 << 20) + MARKS)
    assert programs.of(str(program)) is Program.QEMU


@pytest.mark.parametrize(
    ("arguments", "uuids"),
    [
        (["qemu", "-uuid", A], {A}),
        (["qemu", "--uuid", A.upper(), "-uuid", B], {A, B}),
        (["qemu", "-smbios", f"type=1,manufacturer=x,uuid={A}"], {A}),
        (["qemu", "-name", A, "-drive", f"file=/images/{B}/disk"], set()),
        (["qemu", "-uuid"], set()),
        ([], set()),
    ],
)
def test_uuids_of_a_command_line(arguments: list[str], uuids: set[str]) -> None:
    assert uuids_of([argument.encode() for argument in arguments]) == uuids


def test_bytes_of_any_kind_are_one_line_of_text() -> None:
    assert printable(b"/a\nb\x1b[1m\xff\xe2\x80\xae") == "/a\\x0ab\\x1b[1m\\xff\\x202e"
    assert printable("/ä".encode()) == "/ä"


def test_only_files_and_block_devices_have_an_identity(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    assert file_id(file.stat()) == (file.stat().st_dev, file.stat().st_ino)
    assert file_id(tmp_path.stat()) is None
    assert file_id(os.stat("/dev/null")) is None


def test_an_exec_is_read_and_all_else_is_not() -> None:
    header = bytes(36)
    event = b"\2\0\0\0" + bytes(4) + (77).to_bytes(8, "little") + b"\5\0\0\0" + b"\6\0\0\0"
    assert parse(header + event) == Exec(pid=6, at=77)
    assert parse(header + b"\1" + event[1:]) is None
    assert parse(header) is None
    assert len(filter_program()) == 4 * 8
