"""Every mistake has a one-line error, a next step, its exit code, and changes nothing."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from clirunner import Cli, nobody
from lockdb import database

UNKNOWN = "33333333-3333-4333-8333-333333333333"
WHY = ["--reason", "r"]

MISTAKES = {
    "a malformed UUID": (["place", UNKNOWN[:-1] + "z", *WHY], 2, "is not a UUID"),
    "a UUID that is too short": (["place", UNKNOWN[:-1], *WHY], 2, "is not a UUID"),
    "a canary's UUID": (["place", "b00710c4-0000-4000-8000-000000000001", *WHY], 2, "reserved"),
    "an unknown name": (["place", "nobody", *WHY], 3, "no domain 'nobody'"),
    "a name that is an option": (["place", *WHY, "--", "-rf"], 3, "no domain '-rf'"),
    "a name with a quote": (["check", "'; DROP TABLE hold"], 3, "no domain"),
    "an empty name": (["check", " "], 2, "must be a UUID or a domain name"),
    "no reason": (["place", UNKNOWN], 2, "--reason"),
    "an empty reason": (["place", UNKNOWN, "--reason", "  "], 2, "reason: must not be empty"),
    "a reason of 10 kB": (["place", UNKNOWN, "--reason", "x" * 10240], 2, "at most 2000"),
    "a newline in the notice": (
        ["place", UNKNOWN, *WHY, "--notice", "a\nb"],
        2,
        "notice: unprintable character U+000A",
    ),
    "an escape in the reason": (["place", UNKNOWN, "--reason", "\x1b[2J"], 2, "U+001B"),
    "a right-to-left override": (["place", UNKNOWN, "--reason", "a\u202eb"], 2, "U+202E"),
    "bytes that are no UTF-8": (["place", UNKNOWN, "--reason", "a\udcff"], 2, "U+DCFF"),
    "a long notice": (["place", UNKNOWN, *WHY, "--notice", "x" * 201], 2, "at most 200"),
    "an expiry in the past": (
        ["place", UNKNOWN, *WHY, "--until", "2001-01-01"],
        2,
        "is not in the future; now is",
    ),
    "an expiry of no time": (["place", UNKNOWN, *WHY, "--until", "0s"], 2, "not in the future"),
    "an expiry that is no time": (["place", UNKNOWN, *WHY, "--until", "soon"], 2, "write a"),
    "an expiry beyond all calendars": (
        ["place", UNKNOWN, *WHY, "--until", "999999999w"],
        2,
        "too far away",
    ),
    "an unknown kind": (["place", UNKNOWN, *WHY, "--kind", "x"], 2, "boot-lock"),
    "an unknown order": (["place", UNKNOWN, *WHY, "--on-running", "x"], 2, "managed-save"),
    "a negative grace": (["place", UNKNOWN, *WHY, "--grace", "-1"], 2, "--grace"),
    "an unknown hold": (["release", "abcdef", *WHY], 3, "no hold 'abcdef'"),
    "a hold that is no id": (["release", "%", *WHY], 3, "no hold '%'"),
    "a release of nothing": (["release", *WHY], 2, "give a HOLD"),
    "a release of all of everything": (["release", "--all", *WHY], 2, "give a HOLD"),
    "an instance without --all": (
        ["release", "--instance", UNKNOWN, *WHY],
        2,
        "together with --all",
    ),
    "an instance without holds": (
        ["release", "--instance", UNKNOWN, "--all", *WHY],
        3,
        "no hold on",
    ),
    "a permit for nothing": (["permit", UNKNOWN, *WHY], 2, "give INSTANCE, --op and --for"),
    "a permit for ever": (
        ["permit", UNKNOWN, "--op", "start", "--for", "8d", *WHY],
        2,
        "7 days at most",
    ),
    "an unknown permit": (["permit", "--revoke", "abc", *WHY], 3, "no permit 'abc'"),
    "an unknown operation": (["permit", UNKNOWN, "--op", "fly", "--for", "1h", *WHY], 2, "start"),
    "an instance never held": (["show", UNKNOWN], 3, "nothing is known"),
    "a head that is none": (["journal", "verify", "--head", "1:x"], 2, "must be SEQ:HASH"),
    "an unknown command": (["plcae"], 2, "No such command"),
    "an unknown option": (["list", "--jsno"], 2, "No such option"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_in_one_line_and_changes_nothing(cli: Cli, mistake: str) -> None:
    arguments, code, says = MISTAKES[mistake]
    before = cli.head()
    result = cli(*arguments)
    assert (result.exit, result.out) == (code, ""), result
    assert result.err.startswith("bootlock: ")
    assert result.err.count("\n") == 1
    assert says in result.err
    assert cli.head() == before


def test_a_second_release_says_when_and_by_whom_the_first_was(cli: Cli) -> None:
    hold = cli.place(UNKNOWN)
    cli.ok("release", hold, *WHY)
    again = cli("release", hold, *WHY)
    assert again.exit == 3
    assert f"hold {hold} was released at" in again.err


def test_an_ambiguous_prefix_is_refused(cli: Cli) -> None:
    ids = [cli.place(UNKNOWN) for _ in range(17)]
    first = [hold[0] for hold in ids]
    prefix = next(digit for digit in first if first.count(digit) > 1)
    before = cli.head()
    result = cli("release", prefix, *WHY)
    assert result.exit == 2
    assert f"hold '{prefix}' is ambiguous" in result.err
    assert cli.head() == before


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "there is no lock database"), (b"", "is empty"), (b"x" * 4096, "not a database")],
)
@pytest.mark.parametrize(
    "command",
    [["place", UNKNOWN, *WHY], ["list"], ["check", UNKNOWN], ["journal", "verify"]],
    ids=lambda command: command[0],
)
def test_a_database_that_cannot_be_used_is_exit_code_5(
    cli: Cli, content: bytes | None, says: str, command: list[str]
) -> None:
    cli.path.unlink()
    if content is not None:
        cli.path.write_bytes(content)
    result = cli(*command)
    assert result.exit == 5
    assert says in result.err
    assert result.err.count("\n") == 1
    assert (cli.path.read_bytes() if cli.path.exists() else None) == content


def test_a_database_of_a_newer_bootlock_is_left_alone(cli: Cli) -> None:
    with database.open_db(cli.path) as lock_db, lock_db.write() as db:
        db.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
            " VALUES ('lockdb', 'm9999_from_the_future', '')"
        )
    for command in (["list"], ["place", UNKNOWN, *WHY], ["init"]):
        result = cli(*command)
        assert result.exit == 5
        assert "newer bootlock (m9999_from_the_future); upgrade bootlock" in result.err


def test_a_journal_without_its_head_is_exit_code_5_and_names_a_way_out(cli: Cli) -> None:
    hold = cli.place(UNKNOWN)
    with closing(sqlite3.connect(cli.path)) as other, other:
        other.execute("DELETE FROM meta WHERE key = 'journal_head'")
    for command in (["place", UNKNOWN, *WHY], ["release", hold, *WHY]):
        result = cli(*command)
        assert result.exit == 5
        assert "the journal ends at 2, and meta has none as its head" in result.err
        assert "restore a backup" in result.err
        assert result.err.count("\n") == 1
    assert hold in cli.ok("list").out


def test_one_who_may_not_is_told_so(cli: Cli) -> None:
    cli.ok("list")
    with nobody():
        result = cli("place", UNKNOWN, *WHY)
    assert result.exit == 5
    assert "may not be read; run as root" in result.err


def test_one_who_may_only_read_reads_and_may_not_write(cli: Cli) -> None:
    # Not in tmp_path: pytest keeps others out of it.
    with TemporaryDirectory() as directory:
        open_cli = Cli(Path(directory) / "lock.db", cli.uri, cli.read)
        open_cli.ok("init")
        hold = open_cli.place(UNKNOWN)
        open_cli.path.chmod(0o644)
        open_cli.path.parent.chmod(0o755)
        with nobody():
            listed, placed = open_cli("list"), open_cli("place", UNKNOWN, *WHY)
    assert (listed.exit, hold in listed.out) == (0, True), listed
    assert placed.exit == 5
    assert "run as root" in placed.err


def test_libvirt_out_of_reach_matters_for_a_name_and_never_for_a_uuid(
    cli: Cli, tmp_path: Path
) -> None:
    gone = Cli(cli.path, f"qemu+unix:///system?socket={tmp_path}/none", cli.read)
    by_name = gone("place", "web", *WHY)
    assert (by_name.exit, by_name.err.count("\n")) == (6, 1)
    by_uuid = gone.ok("place", UNKNOWN, *WHY)
    assert "the disks of" in by_uuid.err


def test_a_libvirt_that_hangs_does_not_keep_a_hold_from_being_placed(
    cli: Cli, tmp_path: Path
) -> None:
    path = tmp_path / "deaf"
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(path))
        deaf.listen()
        hung = Cli(cli.path, f"qemu+unix:///system?socket={path}", cli.read)
        result = _run(_bootlock(hung, "place", UNKNOWN, *WHY))
    assert result.returncode == 0, result
    assert "libvirt did not answer within 10 s" in result.stderr
    assert cli("check", UNKNOWN).exit == 1


def test_a_reader_that_stops_reading_ends_the_command_quietly(cli: Cli) -> None:
    for _ in range(3):
        cli.place(UNKNOWN)
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        _bootlock(cli, "list"), stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, "")


def _bootlock(cli: Cli, *arguments: str) -> list[str]:
    options = ["--database", str(cli.path), "--connect", cli.uri]
    return [sys.executable, "-m", "bootlock.main", *options, *arguments]


def _run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
