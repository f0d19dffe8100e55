"""Metrics: the numbers, what is missing when something fails, and who may ask."""

from __future__ import annotations

import re
import socket
import sqlite3
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bootlockd.config import parse_listen
from bootlockd.errors import BootlockdError
from bootlockd.metrics import MetricsServer
from daemon.fakes import place, release, uuid
from lockdb import database, enforcements, refusals
from lockdb.enforcements import Enforcement, State
from lockdb.values import Kind

PAGE = Path(__file__).resolve().parents[2] / "docs/daemon.md"

STATUS = {
    "started": 11,
    "looked": 22,
    "stuck": ["a", "b"],
    "vanished": ["h"],
    "database_error": "",
    "libvirt_error": "gone",
    "break_glass": True,
    "libvirt": {"qemu:///system": True, "lxc:///system": False},
    "armed": [{"uri": "qemu:///system", "armed": False, "proven": 33}],
}


@contextmanager
def served(path: Path, status: Any = lambda: STATUS) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = MetricsServer(f"127.0.0.1:{port}", path, status)
    server.start()
    try:
        yield f"http://127.0.0.1:{port}/metrics"
    finally:
        server.stop()


def numbers(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[0] != "#"
    }


def test_what_is_in_force_and_how_the_daemon_is(lock_db: Path) -> None:
    place(lock_db, uuid(1))
    place(lock_db, uuid(2), Kind.STATE_LOCK)
    release(lock_db, place(lock_db, uuid(3)))
    place(lock_db, uuid(4), until=5)
    with database.open_db(lock_db) as opened:
        for hold, state in (("a", State.ENFORCED), ("b", State.FAILED), ("c", State.LIFTED)):
            enforcements.record(opened, [Enforcement(hold, "power", uuid(1), state, "", 1, 1)])
    with served(lock_db) as url:
        found = numbers(url)
    expected = {
        "bootlock_up": 1,
        "bootlock_start_time_seconds": 11,
        "bootlock_last_look_timestamp_seconds": 22,
        "bootlock_stuck_jobs": 2,
        "bootlock_vanished_holds": 1,
        "bootlock_database_error": 0,
        "bootlock_libvirt_error": 1,
        "bootlock_break_glass": 1,
        'bootlock_libvirt_connected{uri="qemu:///system"}': 1,
        'bootlock_libvirt_connected{uri="lxc:///system"}': 0,
        'bootlock_armed{uri="qemu:///system"}': 0,
        'bootlock_armed_proof_timestamp_seconds{uri="qemu:///system"}': 33,
        'bootlock_holds{kind="boot_lock",source="local"}': 1,
        'bootlock_holds{kind="state_lock",source="local"}': 1,
        'bootlock_enforcements{fence="power",state="enforced"}': 1,
        'bootlock_enforcements{fence="power",state="failed"}': 1,
        "bootlock_refusals_total": 0,
    }
    assert {name: value for name, value in found.items() if name[:8] == "bootlock"} == expected
    assert found["process_resident_memory_bytes"] > 1e6


def test_refusals_are_counted_once_on_their_way_into_the_journal(lock_db: Path) -> None:
    def refuse(count: int) -> None:
        with closing(sqlite3.connect(lock_db)) as db, db:
            spool = ["i", "start", f"h{count}", "n", 1, 1, count]
            db.execute("INSERT INTO refusal VALUES (?, ?, ?, ?, ?, ?, ?)", spool)

    with served(lock_db) as url:
        for count, total in ((3, 3), (4, 7)):
            refuse(count)
            assert numbers(url)["bootlock_refusals_total"] == total
            with database.open_db(lock_db) as opened:
                refusals.drain(opened, now=1)
            assert numbers(url)["bootlock_refusals_total"] == total


def test_what_fails_is_missing_rather_than_old(lock_db: Path) -> None:
    def stuck() -> Any:
        raise OSError("the cycle does not turn")

    with served(lock_db, stuck) as url:
        found = numbers(url)
        assert found["bootlock_up"] == 0
        assert "bootlock_stuck_jobs" not in found
        lock_db.unlink()
        assert "bootlock_refusals_total" not in numbers(url)


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "192.0.2.1:1", "[::]:1", ":1", "*:1", "x"])
def test_no_other_address_than_loopback_is_served(lock_db: Path, listen: str) -> None:
    with pytest.raises(ValueError, match="listen: must be"):
        MetricsServer(listen, lock_db, lambda: STATUS)


def test_loopback_is_understood_in_both_families() -> None:
    assert parse_listen("127.0.0.1:9644") == ("127.0.0.1", 9644)
    assert parse_listen("[::1]:1") == ("::1", 1)


def test_a_port_in_use_is_said(lock_db: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = MetricsServer(f"127.0.0.1:{taken.getsockname()[1]}", lock_db, lambda: STATUS)
        with pytest.raises(BootlockdError, match=r"metrics\.listen: 127\.0\.0\.1 port"):
            server.start()


def test_each_metric_is_documented(lock_db: Path) -> None:
    place(lock_db, uuid(1))
    with database.open_db(lock_db) as opened:
        row = Enforcement("a", "power", uuid(1), State.ENFORCED, "", 1, 1)
        enforcements.record(opened, [row])
    with served(lock_db) as url:
        served_names = {re.split("[{]", name)[0] for name in numbers(url)}
    ours = {name for name in served_names if name.startswith("bootlock_")}
    documented = set(re.findall(r"^\| `(bootlock_\w+)`", PAGE.read_text("utf-8"), re.MULTILINE))
    assert documented == ours
