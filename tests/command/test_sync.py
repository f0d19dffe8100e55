"""bootlock sync, and what the other commands make of holds that a source decided."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bootlock.doctor.finding import Level, Patient
from bootlock.doctor.sources import sources as check
from bootlockd.config import Config, load
from clirunner import Cli, Result
from lockdb import database, sources
from lockdb.when import iso

Sync = Callable[..., Result]


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "holds.d"
    path.mkdir()
    return path


@pytest.fixture
def config(tmp_path: Path, directory: Path) -> Path:
    path = tmp_path / "bootlock.toml"
    path.write_text(f'[sources.file]\ndirectory = "{directory}"\n', "utf-8")
    return path


@pytest.fixture
def sync(cli: Cli, config: Path) -> Sync:
    return lambda *arguments: cli("sync", "--config", str(config), *arguments)


def write(directory: Path, *numbers: int, more: str = "") -> None:
    text = "".join(
        f'[[hold]]\ninstance = "{uuid(number)}"\nreason = "unpaid"\n{more}' for number in numbers
    )
    (directory / "a.toml").write_text(text or "hold = []\n", "utf-8")


def held(cli: Cli) -> list[dict[str, Any]]:
    found = cli.ok("list", "--source", "file", "--json").json
    assert isinstance(found, list)
    return found


def test_it_says_what_was_added_changed_released_and_kept(
    cli: Cli, sync: Sync, directory: Path
) -> None:
    write(directory, 1, 2)
    done = sync()
    assert done.exit == 0
    assert done.out.splitlines() == [
        "file: 0 unchanged, 2 added",
        f"  added {uuid(1)}: unpaid (a.toml:{uuid(1)}:boot_lock)",
        f"  added {uuid(2)}: unpaid (a.toml:{uuid(2)}:boot_lock)",
    ]
    by_instance = {hold["instance"]: hold["id"] for hold in held(cli)}
    write(directory, 2, more="grace = 5\n")
    assert sync().out.splitlines() == [
        "file: 0 unchanged, 1 changed, 1 released",
        f"  changed {by_instance[uuid(2)]} on {uuid(2)}: grace 60 -> 5",
        f"  released {by_instance[uuid(1)]} on {uuid(1)}: {directory}/a.toml does not have it any "
        "more; 1 files there are sound",
    ]
    (directory / "a.toml").unlink()
    assert sync("file").out.splitlines() == [
        "file: 0 unchanged, 1 kept though not shown, 1 faults",
        f"  kept a.toml:{uuid(2)}:boot_lock: not shown any more, and nobody said that it is "
        "released",
        f"  fault: {directory}: no files: that releases nothing",
    ]


def test_a_dry_run_changes_nothing(cli: Cli, sync: Sync, directory: Path) -> None:
    write(directory, 1)
    head = cli.head()
    assert sync("--dry-run").out.startswith("file: 0 unchanged, 1 would be added\n")
    (result,) = sync("--dry-run", "--json").json
    assert [one["instance"] for one in result["added"]] == [uuid(1)]
    directory.rename(directory.with_name("gone"))
    assert sync("--dry-run").exit == 6
    assert cli.head() == head


def test_what_would_end_too_much_waits_until_exactly_that_is_accepted(
    cli: Cli, sync: Sync, directory: Path
) -> None:
    write(directory, *range(9))
    sync()
    write(directory, *range(6))
    stopped = sync()
    assert stopped.exit == 4
    assert "3 of 9 holds would end, where 1 may within 3600 s" in stopped.err
    assert len(held(cli)) == 9
    (result,) = sync("--json").json
    token = result["token"]
    assert token in stopped.err
    assert {one["instance"] for one in result["waiting"]} == {uuid(6), uuid(7), uuid(8)}
    assert sync("file", "--accept-release").exit == 2, "not without a token and a terminal"
    write(directory, *range(5))
    refused = sync("file", f"--accept-release={token}")
    assert refused.exit == 4
    assert "any more" in refused.err
    assert len(held(cli)) == 9
    token = sync("--json").json[0]["token"]
    accepted = sync("file", "--accept-release", token)
    assert accepted.exit == 0
    assert accepted.out.count("released ") == 4
    assert len(held(cli)) == 5
    assert sync("file", "--accept-release", token).err == "bootlock: nothing of file waits\n"
    entries = cli.ok("journal", "show", "--json").json
    assert [entry["token"] for entry in entries if entry["event"] == "release_accepted"] == [token]


def test_a_source_that_can_not_be_read_is_exit_code_6_and_keeps_all(
    cli: Cli, sync: Sync, directory: Path
) -> None:
    write(directory, 1)
    sync()
    directory.rename(directory.with_name("gone"))
    failed = sync()
    assert failed.exit == 6
    assert failed.err.startswith(f"bootlock: file can't be read, its holds stay: {directory}: No ")
    assert sync("--json").json[0]["error"].startswith(f"{directory}: No such file")
    assert len(held(cli)) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nova"], 2, "no source 'nova' is configured; there are: file"),
        (["file", "--dry-run", "--accept-release=x"], 2, "is for one SOURCE, and not for --dry"),
    ],
)
def test_wrong_usage_is_named(sync: Sync, arguments: list[str], code: int, said: str) -> None:
    done = sync(*arguments)
    assert done.exit == code
    assert said in done.err


def test_without_sources_there_is_nothing_to_do(cli: Cli, tmp_path: Path) -> None:
    done = cli("--config", str(tmp_path / "none.toml"), "sync")
    assert done.exit == 0
    assert "none.toml" in done.err
    done = cli("sync", "--config", str(tmp_path / "none.toml"))
    assert (done.exit, done.out) == (0, "")
    assert "no source is configured" in done.err
    (tmp_path / "bad.toml").write_text("[sources]\nfiel = 1\n")
    assert cli("sync", "--config", str(tmp_path / "bad.toml")).exit == 2


def test_a_hold_of_a_source_is_not_released_here_by_mistake(
    cli: Cli, sync: Sync, directory: Path
) -> None:
    write(directory, 1)
    sync()
    (hold,) = held(cli)
    local = cli.place(uuid(1))
    for arguments in ([hold["id"]], ["--instance", uuid(1), "--all"]):
        refused = cli("release", *arguments, "--reason", "r")
        assert refused.exit == 4
        assert f"is decided by the source file, as {hold['ref']}; release it there" in refused.err
    assert len(cli.ok("list", "--json").json) == 2
    cli.ok("release", local, "--reason", "r")
    done = cli.ok("release", hold["id"], "--reason", "r", "--override-source")
    assert "the source file was not told" in done.err
    assert held(cli) == []
    sync()
    (again,) = held(cli)
    assert again["id"] != hold["id"]


def test_status_shows_the_sources(cli: Cli, sync: Sync, directory: Path) -> None:
    write(directory, 1, 2)
    sync()
    (found,) = cli("status", "--json").json["sources"]
    assert (found["source"], found["holds"], found["error"]) == ("file", 2, None)
    assert found["read_at"].endswith("Z")


def test_a_source_that_is_gone_is_forgotten_and_its_holds_stay(
    cli: Cli, sync: Sync, directory: Path, config: Path
) -> None:
    write(directory, 1, 2, 3)
    sync()
    write(directory, 1)
    assert sync().exit == 4, "two wait"
    before = held(cli)
    refused = sync("--forget", "file")
    assert (refused.exit, "is configured" in refused.err) == (4, True)
    config.write_text("", "utf-8")
    (level, detail) = findings(cli, load(config))[0]
    assert (level, detail) == (Level.NOTE, "it is not configured any more; 3 of its holds stay")
    assert sync("--forget", "file", "--dry-run").exit == 2
    assert sync("--forget", "file", "--json").json == {"source": "file", "holds": 3, "waiting": 2}
    assert held(cli) == before
    assert findings(cli, load(config)) == []
    assert cli("status", "--json").json["sources"] == []
    last = cli.ok("journal", "show", "--last", "1", "--json").json[-1]
    assert (last["event"], last["source"], last["holds"]) == ("source_forgotten", "file", 3)
    assert sync("--forget", "file").exit == 3
    # There again, it has what it left: nothing is placed twice, nothing ends.
    config.write_text(f'[sources.file]\ndirectory = "{directory}"\n', "utf-8")
    sync()
    assert held(cli) == before
    with database.open_db(cli.path) as lock_db:
        assert sources.waiting_ids(lock_db, "file", limit=9) == sorted(
            hold["id"] for hold in before if hold["instance"] != uuid(1)
        )


def findings(cli: Cli, config: Config, **changes: Any) -> list[tuple[str, str]]:
    with database.open_db(cli.path) as lock_db:
        states = sources.all_stored(lock_db)
    now = states[0].read_at if states and states[0].read_at else 0
    patient = Patient([], now, database=cli.path, config=config)
    found = list(check(replace(patient, **changes)))
    assert all(finding.check == "source file" for finding in found)
    return [(finding.level.value, finding.detail) for finding in found]


def test_what_is_wrong_with_a_source_is_a_fault(
    cli: Cli, sync: Sync, directory: Path, config: Path
) -> None:
    settings = load(config)
    assert findings(cli, settings) == [(Level.NOTE, "it was never read")]
    write(directory, 1, 2, 3)
    sync()
    with database.open_db(cli.path) as lock_db:
        read_at = sources.stored(lock_db, "file").read_at
    assert read_at is not None
    assert findings(cli, settings) == [(Level.OK, f"3 holds, read at {iso(read_at)}")]
    ((level, detail),) = findings(cli, settings, now=read_at + 901)
    assert (level, detail[:12]) == (Level.FAULT, "silent since")
    assert findings(cli, Config()) == [
        (Level.NOTE, "it is not configured any more; 3 of its holds stay")
    ]
    write(directory, 1)
    sync()
    ((level, detail),) = findings(cli, settings)
    assert (level, detail[:13]) == (Level.FAULT, "2 holds would")
    (directory / "a.toml").unlink()
    sync()
    assert [detail.split(": ")[0] for _, detail in findings(cli, settings)][1:] == [
        "1 holds are not shown any more, and stay",
        "1 faults",
    ]
    directory.rmdir()
    sync()
    assert findings(cli, settings)[0][1].startswith("can't be read since ")
    os.truncate(cli.path, 0)
    assert list(check(Patient([], 1, database=cli.path, config=settings))) == []


def test_what_it_shows_can_not_drive_a_terminal(cli: Cli, sync: Sync, directory: Path) -> None:
    (directory / "a.toml").write_text('"\\u001b[31m" = 1\n', "utf-8")
    done = sync()
    assert "\x1b" not in done.out + done.err


def test_status_looks_at_the_settings_that_are_named(cli: Cli, tmp_path: Path) -> None:
    settings = tmp_path / "mine.toml"
    settings.write_text(f'[sources.file]\ndirectory = "{tmp_path}/holds"\n')
    named = cli("--config", str(settings), "status", "--json").json["findings"]
    assert "source file" in [finding["check"] for finding in named]
    others = cli("--config", str(tmp_path / "none.toml"), "status", "--json").json["findings"]
    assert "source file" not in [finding["check"] for finding in others]
