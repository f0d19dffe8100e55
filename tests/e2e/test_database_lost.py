"""A database that is gone or broken: nothing starts, every line says so, and the way out works."""

from __future__ import annotations

import json

import pytest

from e2e.conftest import DATABASE
from e2e.guests import define, is_held, place, start
from e2e.machine import Machine

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

UNITS = "bootlockd bootlock-sync bootlock-metrics"
BREAK_GLASS = "/run/bootlock/break-glass"
BACKUP = "/root/lock.db.backup"


@pytest.fixture
def guests(host: Machine) -> None:
    define(host, "held", "free")
    place(host, "held")
    host.run(f"sqlite3 {DATABASE} \".backup '{BACKUP}'\"")


@pytest.mark.usefixtures("guests")
def test_deleted_and_restored_from_a_backup(host: Machine) -> None:
    host.run(f"rm {DATABASE}*")
    _nothing_starts(host, "missing or out of reach")
    _replace(host, f"install -o root -g bootlock -m 640 {BACKUP} lock.db; bootlock init")
    _is_mended(host)
    assert is_held(host, "held")


@pytest.mark.usefixtures("guests")
def test_corrupted_and_given_up(host: Machine) -> None:
    """Without a backup: it is made anew, and holds are placed again."""
    host.run(f"rm -f {DATABASE}-wal; yes garbage | head -c 65536 >{DATABASE}; sync")
    _nothing_starts(host, "file is not a database")
    _replace(host, "bootlock init")
    place(host, "held")
    _is_mended(host)
    assert is_held(host, "held")


def _nothing_starts(host: Machine, why: str) -> None:
    """Until the file that the line names is there: then all do, each noted in the system's log."""
    for name in ("held", "free"):
        said = start(host, name)
        assert "bootlock: start refused: cannot decide: " in said
        assert why in said
        assert f"touch {BREAK_GLASS}" in said
    assert why in _faults(host)
    host.run(f"touch {BREAK_GLASS}")
    assert start(host, "free") == ""
    logged = host.run("journalctl -b -o cat --no-pager -t bootlock -p crit").stdout
    assert f"start let through undecided, {BREAK_GLASS} exists: " in logged
    assert BREAK_GLASS in _faults(host)


def _replace(host: Machine, by: str) -> None:
    """In the steps of docs/operations.md."""
    away = "cd /var/lib/bootlock; rm -rf broken; mkdir -m 700 broken; mv lock.db* broken/"
    host.run(f"systemctl stop {UNITS}; {away}; {by}; systemctl start {UNITS}")


def _is_mended(host: Machine) -> None:
    host.run(f"rm {BREAK_GLASS}")
    host.run("bootlock doctor")


def _faults(host: Machine) -> str:
    """What doctor calls a fault."""
    done = host.run("bootlock doctor --json", check=False)
    assert done.returncode == 1
    findings = json.loads(done.stdout)["findings"]
    return "\n".join(finding["detail"] for finding in findings if finding["level"] == "fault")
