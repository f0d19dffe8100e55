"""What docs/operations.md says to do with a broken database works: its own commands are run."""

from __future__ import annotations

import json
import re
import sys
import uuid as uuids
from collections.abc import Iterator
from pathlib import Path

import pytest

from installing import define, is_refused
from privatehost import PrivateHost

pytestmark = pytest.mark.live

PAGE = Path(__file__).resolve().parents[2] / "docs/operations.md"
DATABASE = "/var/lib/bootlock/lock.db"
HELD_LATER = str(uuids.uuid4())
FROM_A_FILE, GONE_FROM_THE_FILE = str(uuids.uuid4()), str(uuids.uuid4())


@pytest.fixture
def host() -> Iterator[PrivateHost]:
    """With the command where it is installed, and a systemctl that has nothing to do."""
    with PrivateHost(scratch=("/usr", "/root")) as host:
        host.install_bootlock()
        host.run(["groupadd", "-f", "bootlock"])
        host.run(["mkdir", "/run/bootlock"])
        program = Path(sys.executable).parent / "bootlock"
        for name, script in (("bootlock", f'exec {program} "$@"'), ("systemctl", "exit 0")):
            put = (
                f"printf '%s\\n' '#!/bin/sh' '{script}' >/usr/bin/{name}; chmod 755 /usr/bin/{name}"
            )
            host.run(["sh", "-c", f"rm -f /usr/bin/{name}; {put}"])
        yield host


def said(heading: str) -> list[str]:
    """The blocks of commands below a heading of the page."""
    (section,) = re.findall(rf"^#+ {heading}\n([\s\S]*?)(?=^#)", PAGE.read_text("utf-8"), re.M)
    return re.findall(r"(?:^    .*\n)+", section, re.MULTILINE)


def do(host: PrivateHost, commands: str) -> str:
    # The canary of a driver that this host lacks is none of the page's business.
    return host.run(["sh", "-eu", "-c", commands.replace("bootlock doctor", "true")]).stdout


def place(host: PrivateHost, instance: str) -> str:
    placed = host.bootlock("place", instance, "--reason", "unpaid", "--json").stdout
    return str(json.loads(placed)["id"])


def held(host: PrivateHost) -> set[str]:
    return {hold["instance"] for hold in json.loads(host.bootlock("list", "--json").stdout)}


def write_holds(host: PrivateHost, *instances: str) -> None:
    directory = host.outside("/etc/bootlock") / "holds.d"
    directory.mkdir(exist_ok=True)
    entries = [{"instance": instance, "reason": "billing"} for instance in instances]
    (directory / ".new").write_text(json.dumps({"hold": entries}), "utf-8")
    (directory / ".new").rename(directory / "billing.json")
    settings = host.outside("/etc/bootlock/bootlock.toml")
    settings.write_text('[sources.file]\ndirectory = "/etc/bootlock/holds.d"\n', "utf-8")


def break_it(host: PrivateHost) -> None:
    """A page that every decision reads is not what it was, as on a disk that goes bad."""
    query = (
        "PRAGMA wal_checkpoint(TRUNCATE); SELECT rootpage FROM sqlite_master WHERE name = 'meta'"
    )
    page = int(host.run(["sqlite3", DATABASE, query]).stdout.splitlines()[-1])
    with host.outside(DATABASE).open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)


def test_break_glass_lets_undecided_starts_through_until_it_is_ended(host: PrivateHost) -> None:
    begin, end = said("Break-glass")
    name, uuid = define(host)
    place(host, uuid)
    do(host, begin)
    assert is_refused(host, name), "a hold that can be read still refuses"
    break_it(host)
    assert not is_refused(host, name)
    do(host, end)
    assert is_refused(host, name)


def test_a_restored_backup_is_the_host_of_then(host: PrivateHost) -> None:
    write_holds(host, GONE_FROM_THE_FILE)
    host.bootlock("sync")
    name, then = define(host)
    released = place(host, then)
    backup, _ = said("Backup")
    do(host, backup)
    assert host.run(["stat", "-c", "%a", "/root/lock.db.backup"]).stdout == "600\n"

    later = place(host, HELD_LATER)
    write_holds(host, FROM_A_FILE)
    host.bootlock("sync")
    host.bootlock("release", released, "--reason", "paid")
    noted = json.loads(host.bootlock("journal", "verify", "--json").stdout)["head"]
    # The hook can't decide, and the journal can still be read.
    host.run(["sqlite3", DATABASE, "DROP TABLE permit"])
    assert is_refused(host, name)

    (restore,) = said("Restoring a backup")
    do(host, restore)
    mode = host.run(["stat", "-c", "%a %U:%G", DATABASE]).stdout
    assert mode == "640 root:bootlock\n"
    assert held(host) == {then, GONE_FROM_THE_FILE}
    assert is_refused(host, name), "released since then, it is in force again"

    (difference,) = said("What a restored database means")
    missing = [json.loads(line) for line in do(host, difference).splitlines()]
    by_hand = [
        (entry["event"], entry["id"]) for entry in missing if entry["id"] in (later, released)
    ]
    assert by_hand == [("placed", later), ("released", released)]
    host.bootlock("sync")
    assert held(host) == {then, FROM_A_FILE}
    host.bootlock("journal", "verify")
    assert host.bootlock("journal", "verify", "--head", noted, check=False).returncode == 1


def test_holds_can_be_read_in_a_file_that_the_command_can_not_use(host: PrivateHost) -> None:
    hold = place(host, HELD_LATER)
    break_it(host)
    host.run(["sh", "-c", "cd /var/lib/bootlock; mkdir broken; mv lock.db* broken/"])
    host.bootlock("init")
    (dump,) = re.findall(r"`(sqlite3 broken/[^`]+)`", PAGE.read_text("utf-8"))
    found = do(host, f"cd /var/lib/bootlock; {dump}")
    assert hold in found
    assert HELD_LATER in found
