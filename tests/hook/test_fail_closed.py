"""What keeps the hook from deciding refuses the start, and nothing but a start."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from hook.faults import FAULTS, Broken, program
from hook.wrappers import AS_NOBODY, full_disk, instead_of, read_only
from hookrunner import Answer, Hook, domain_xml
from samples import FREE, HELD, place

DECIDING = ("prepare", "start", "migrate")
OTHERS = (
    "reconnect",
    "started",
    "stopped",
    "release",
    "restore",
    "attach",
    "unknown",
    "",
    " start",
)
SILENCE = Answer(0, b"", b"")

_REFUSAL = re.compile(
    r"bootlock: (?P<asked>start|migrate) refused: cannot decide: (?P<why>.+);"
    r" see 'bootlock doctor', or let undecided starts through with 'touch (?P<way_out>/.+)'"
    r" \[undecided\]"
)


@pytest.fixture(params=FAULTS)
def broken(request: pytest.FixtureRequest, hook: Hook) -> Iterator[Broken]:
    with contextmanager(FAULTS[request.param])(hook) as broken:
        yield broken


@pytest.fixture
def everyones() -> Iterator[Hook]:
    """A hook that any user may run, on a database that only root's group may read."""
    with TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        hook = Hook.install(Path(directory))
        place(hook.database)
        yield hook


def test_every_start_is_refused_soon_and_says_why_and_the_way_out(broken: Broken) -> None:
    start = time.monotonic()
    with ThreadPoolExecutor(len(DECIDING)) as pool:
        answers = dict(zip(DECIDING, pool.map(broken.run, DECIDING), strict=True))
    assert time.monotonic() - start < 5
    for operation, answer in answers.items():
        assert (answer.status, answer.stdout) == (1, b"")
        refusal = _REFUSAL.fullmatch(answer.line)
        assert refusal, answer.line
        assert refusal["asked"] == ("migrate" if operation == "migrate" else "start")
        assert broken.why in refusal["why"]
        assert refusal["way_out"] == str(broken.hook.break_glass)


def test_every_other_operation_passes_in_silence(broken: Broken) -> None:
    for operation in OTHERS:
        assert broken.run(operation) == SILENCE, operation
    for arguments in ([], ["guest"]):
        assert broken.hook.call(arguments, broken.document, wrapper=broken.wrapper) == SILENCE


def test_the_break_glass_file_lets_it_through_and_that_is_logged(
    broken: Broken, tmp_path: Path
) -> None:
    broken.hook.break_glass.touch()
    log = tmp_path / "log"
    logger = program(tmp_path / "logger", f"printf '%s\\n' \"$@\" >>{log}")
    wrapper = (*instead_of("/usr/bin/logger", logger), *broken.wrapper)
    answer = broken.hook.run(broken.document, wrapper=wrapper)
    assert answer == SILENCE
    *options, text = log.read_text().splitlines()
    assert options == ["-t", "bootlock", "-p", "daemon.crit", "--"]
    assert text.startswith(f"start let through undecided, {broken.hook.break_glass} exists: ")
    assert broken.why in text


def test_break_glass_does_not_let_a_held_guest_through(hook: Hook) -> None:
    hook.break_glass.touch()
    assert hook.run(domain_xml(HELD)).status == 1


def test_a_break_glass_directory_is_not_the_file(hook: Hook) -> None:
    hook.break_glass.mkdir()
    assert hook.run(b"").status == 1


def test_a_session_guest_of_a_user_who_cannot_read_the_database_starts(everyones: Hook) -> None:
    """It is not ours; its libvirtd runs the hook as that user."""
    assert everyones.run(domain_xml(HELD)).status == 1
    assert everyones.run(domain_xml(HELD), wrapper=AS_NOBODY) == SILENCE
    assert everyones.run(b"", wrapper=AS_NOBODY) == SILENCE


def test_a_writer_that_sleeps_in_its_transaction_delays_nothing(hook: Hook) -> None:
    """Readers of a write-ahead log see the last commit."""
    with closing(sqlite3.connect(hook.database, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE hold SET released_at = 1, instance = ?", [FREE])
        start = time.monotonic()
        assert hook.run(domain_xml(FREE)).status == 0
        assert hook.run(domain_xml(HELD)).status == 1
        # Two seconds is what the hook would wait for a lock.
        assert time.monotonic() - start < 2


@pytest.mark.parametrize("disk", [full_disk, read_only])
def test_once_the_database_was_opened_a_disk_without_room_changes_no_verdict(
    hook: Hook, disk: Callable[[Path], tuple[str, ...]]
) -> None:
    """SQLite's shared memory file is there then; only the refusal can't be recorded."""
    assert hook.run(domain_xml(FREE)).status == 0
    wrapper = disk(hook.database.parent)
    assert hook.run(domain_xml(FREE), wrapper=wrapper) == SILENCE
    assert "[hold " in hook.run(domain_xml(HELD), wrapper=wrapper).line
