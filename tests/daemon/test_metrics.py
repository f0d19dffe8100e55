"""Metrics: the numbers, what is missing when something fails, and who may ask."""

from __future__ import annotations

import re
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bootlockd import __version__, relaystate
from bootlockd.config import parse_listen
from bootlockd.durations import Durations
from bootlockd.errors import BootlockdError, Unreachable
from bootlockd.fleet.relays import RelayReport
from bootlockd.metrics import ACTIONS, MetricsServer
from daemon.fakes import place, release, uuid
from lockdb import database, enforcements, journal, permits, proofs, refusals, sources
from lockdb.enforcements import Enforcement, State
from lockdb.values import Kind, Operation
from waiting import PATIENCE

PAGE = Path(__file__).resolve().parents[2] / "docs/metrics.md"

STATUS = {
    "version": "7.8",
    "started": 11,
    "looked": 22,
    "turns": {"buckets": [["0.001", 1], ["+Inf", 2]], "sum": 0.5},
    "jobs": {"buckets": [["+Inf", 0]], "sum": 0.0},
    "stuck": ["a", "b"],
    "vanished": ["h"],
    "database_error": "",
    "libvirt_error": "gone",
    "libvirt": {"qemu:///system": True, "lxc:///system": False},
    "armed": [{"uri": "qemu:///system", "armed": False, "proven": 33}],
}

#: Name and type of each metric, in the text format.
TYPE = re.compile(r"^# TYPE (\w+) (\w+)$", re.MULTILINE)


@contextmanager
def served(
    path: Path,
    status: Any = lambda: STATUS,
    break_glass: str = "/none",
    relay: tuple[str, str] = ("/none", "/none"),
) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings, state = map(Path, relay)
    server = MetricsServer(f"127.0.0.1:{port}", path, status, Path(break_glass), (settings, state))
    server.start()
    try:
        yield f"http://127.0.0.1:{port}/metrics"
    finally:
        server.stop()


def text(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def numbers(url: str) -> dict[str, float]:
    """What is ours, by name and labels."""
    lines = [line for line in text(url).splitlines() if line.startswith("bootlock_")]
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


def test_how_the_daemon_is_and_what_is_in_force(lock_db: Path, tmp_path: Path) -> None:
    place(lock_db, uuid(1))
    place(lock_db, uuid(2), Kind.STATE_LOCK)
    release(lock_db, place(lock_db, uuid(3)))
    place(lock_db, uuid(4), until=5)
    now = int(time.time())
    with database.open_db(lock_db) as opened:
        for hold, state in (("a", State.ENFORCED), ("b", State.FAILED), ("c", State.LIFTED)):
            enforcements.record(opened, [Enforcement(hold, "power", uuid(1), state, "", 1, 1)])
        start, forever = Operation.START, 2**40
        permits.grant(opened, uuid(1), start, until=forever, reason="r", by="t", now=now)
        permits.grant(opened, uuid(2), start, until=now, reason="r", by="t", now=1)
        proofs.record(opened, "qemu:///system", armed=True, answer="", now=now - 100)
        proofs.record(opened, "lxc:///system", armed=False, answer="", now=now - 100)
        with opened.read() as db:
            last = journal.head(db).seq
    (tmp_path / "break-glass").touch()
    with served(lock_db, break_glass=str(tmp_path / "break-glass")) as url:
        found = numbers(url)
    age = found.pop('bootlock_armed_proof_age_seconds{uri="qemu:///system"}')
    assert 100 <= age < 100 + PATIENCE
    assert found == {
        "bootlock_daemon_up": 1,
        'bootlock_daemon_info{version="7.8"}': 1,
        f'bootlock_build_info{{version="{__version__}"}}': 1,
        "bootlock_daemon_start_time_seconds": 11,
        "bootlock_last_look_timestamp_seconds": 22,
        'bootlock_cycle_duration_seconds_bucket{le="0.001"}': 1,
        'bootlock_cycle_duration_seconds_bucket{le="+Inf"}': 2,
        "bootlock_cycle_duration_seconds_count": 2,
        "bootlock_cycle_duration_seconds_sum": 0.5,
        'bootlock_job_duration_seconds_bucket{le="+Inf"}': 0,
        "bootlock_job_duration_seconds_count": 0,
        "bootlock_job_duration_seconds_sum": 0,
        "bootlock_stuck_instances": 2,
        "bootlock_vanished_holds": 1,
        "bootlock_daemon_database_error": 0,
        "bootlock_daemon_libvirt_error": 1,
        "bootlock_break_glass": 1,
        'bootlock_libvirt_connected{uri="qemu:///system"}': 1,
        'bootlock_libvirt_connected{uri="lxc:///system"}': 0,
        'bootlock_armed{uri="qemu:///system"}': 0,
        'bootlock_armed_proof_timestamp_seconds{uri="qemu:///system"}': now - 100,
        'bootlock_armed_proof_timestamp_seconds{uri="lxc:///system"}': 0,
        "bootlock_database_up": 1,
        'bootlock_holds{kind="boot_lock",source="local"}': 1,
        'bootlock_holds{kind="state_lock",source="local"}': 1,
        'bootlock_permits{operation="start"}': 1,
        'bootlock_permits{operation="migrate"}': 0,
        'bootlock_enforcements{fence="power",state="enforced"}': 1,
        'bootlock_enforcements{fence="power",state="failed"}': 1,
        "bootlock_refusals_total": 0,
        'bootlock_foreign_processes_total{action="killed"}': 0,
        'bootlock_foreign_processes_total{action="reported"}': 0,
        "bootlock_journal_seq": last,
    }


def test_how_fresh_each_source_is_and_what_is_not_believed(lock_db: Path) -> None:
    now = int(time.time())
    with database.open_db(lock_db) as opened:
        gone = sources.Marks.of(["x", "y"])
        read = sources.State("file", read_at=now - 50, tried_at=now, vanished=gone)
        with opened.write() as db:
            sources.carry_out(db, read, sources.Steps(), now=now)
            db.execute("INSERT INTO waiting VALUES ('h', 'file', 'e', '', 1, 0, 0)")
        sources.failed(opened, "nova", "it is down", now=now)
    with served(lock_db) as url:
        found = {name: value for name, value in numbers(url).items() if "_source_" in name}
    assert (
        50 <= found.pop('bootlock_source_last_success_age_seconds{source="file"}') < 50 + PATIENCE
    )
    assert found == {
        'bootlock_source_last_success_timestamp_seconds{source="file"}': now - 50,
        'bootlock_source_last_success_timestamp_seconds{source="nova"}': 0,
        'bootlock_source_failing{source="file"}': 0,
        'bootlock_source_failing{source="nova"}': 1,
        'bootlock_source_faults{source="file"}': 0,
        'bootlock_source_faults{source="nova"}': 0,
        'bootlock_source_vanished_holds{source="file"}': 2,
        'bootlock_source_vanished_holds{source="nova"}': 0,
        'bootlock_source_waiting_releases{source="file"}': 1,
        'bootlock_source_waiting_releases{source="nova"}': 0,
    }


def refuse(path: Path, count: int) -> None:
    """As the hook does."""
    with closing(sqlite3.connect(path)) as db, db:
        spool = ["i", "start", f"h{count}", "n", 1, 1, count]
        db.execute("INSERT INTO refusal VALUES (?, ?, ?, ?, ?, ?, ?)", spool)


def of_relay(lock_db: Path, settings: Path, state: Path) -> dict[str, float]:
    with served(lock_db, relay=(str(settings), str(state))) as url:
        found = numbers(url)
    start = "bootlock_relay_"
    return {n.removeprefix(start): value for n, value in found.items() if n.startswith(start)}


def test_how_the_relay_is_on_a_machine_that_should_have_one(lock_db: Path, tmp_path: Path) -> None:
    settings, state = tmp_path / "relay.toml", tmp_path / relaystate.PATH.name
    assert of_relay(lock_db, settings, state) == {}
    settings.touch()
    assert of_relay(lock_db, settings, state) == {"up": 0, "leads": 0}
    report = RelayReport("one", leads=True, read_at=60, whole_at=50, holds=3, faults=2, waiting=1)
    relaystate.save(tmp_path, report)
    assert of_relay(lock_db, settings, state) == {
        "up": 1,
        "leads": 1,
        "failing": 0,
        "last_success_timestamp_seconds": 60,
        "last_whole_timestamp_seconds": 50,
        "holds": 3,
        "faults": 2,
        "waiting_releases": 1,
    }
    relaystate.save(tmp_path, replace(report, leads=False, failing=["office"]))
    assert of_relay(lock_db, settings, state) == {"up": 1, "leads": 0, "failing": 1}


@pytest.mark.parametrize(
    "harm",
    [
        lambda text: text.replace('"beat": ', '"beat": -'),
        lambda text: text.replace('"beat": ', '"beat": 9'),
        lambda text: text.replace('"schema": 1', '"schema": 2'),
        lambda _: "[" * 100_000,
        lambda _: "",
    ],
)
def test_a_relay_that_hangs_or_says_what_is_not_understood_is_not_up(
    lock_db: Path, tmp_path: Path, harm: Callable[[str], str]
) -> None:
    settings, state = tmp_path / "relay.toml", tmp_path / relaystate.PATH.name
    settings.touch()
    relaystate.save(tmp_path, RelayReport("one", leads=True))
    text = state.read_text()
    assert harm(text) != text
    state.write_text(harm(text))
    assert of_relay(lock_db, settings, state) == {"up": 0, "leads": 0}


def test_refusals_are_counted_once_on_their_way_into_the_journal(lock_db: Path) -> None:
    with served(lock_db) as url:
        for count, total in ((3, 3), (4, 7)):
            refuse(lock_db, count)
            assert numbers(url)["bootlock_refusals_total"] == total
            with database.open_db(lock_db) as opened:
                refusals.drain(opened, now=1)
            assert numbers(url)["bootlock_refusals_total"] == total


def find_foreign(path: Path, action: str) -> None:
    """As the process watch does."""
    with database.open_db(path) as opened, opened.write() as db:
        journal.append(db, "foreign_process", 1, instance=uuid(1), action=action)


def test_foreign_processes_are_counted_from_the_journal_whoever_asks_and_when(
    lock_db: Path,
) -> None:
    def found(url: str) -> list[float]:
        names = [f'bootlock_foreign_processes_total{{action="{action}"}}' for action in ACTIONS]
        return [numbers(url)[name] for name in names]

    find_foreign(lock_db, "killed")
    with served(lock_db) as url:
        assert found(url) == [1, 0]
        find_foreign(lock_db, "killed")
        find_foreign(lock_db, "reported")
        assert found(url) == found(url) == [2, 1]
        with served(lock_db) as other:
            assert found(other) == [2, 1]


def test_another_journal_is_counted_anew_even_if_it_is_longer(
    lock_db: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "lock.db"
    database.create(other, now=2, host="another")
    for _ in range(5):
        find_foreign(other, "reported")
    find_foreign(lock_db, "killed")
    with served(lock_db) as url:
        assert numbers(url)['bootlock_foreign_processes_total{action="killed"}'] == 1
        other.rename(lock_db)
        after = numbers(url)
    assert after['bootlock_foreign_processes_total{action="killed"}'] == 0
    assert after['bootlock_foreign_processes_total{action="reported"}'] == 5


def nobody_there() -> Any:
    raise Unreachable("connection refused")


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"error": "no such op"},
        STATUS | {"started": "then"},
        STATUS | {"armed": {"uri": True}},
        STATUS | {"turns": {"buckets": [1], "sum": 0}},
        STATUS | {"libvirt": None},
    ],
    ids=lambda answer: str(answer)[:20],
)
def test_a_daemon_that_says_what_is_not_understood_is_not_up(lock_db: Path, answer: Any) -> None:
    with served(lock_db, lambda: answer) as url:
        found = numbers(url)
    assert found["bootlock_daemon_up"] == 0
    assert found["bootlock_database_up"] == 1


def test_without_a_daemon_the_database_still_speaks(lock_db: Path) -> None:
    place(lock_db, uuid(1))
    with served(lock_db, nobody_there) as url:
        found = numbers(url)
    assert found["bootlock_daemon_up"] == 0
    assert "bootlock_stuck_instances" not in found
    assert found['bootlock_holds{kind="boot_lock",source="local"}'] == 1


@pytest.mark.parametrize("harm", ["missing", "junk", "empty"])
def test_without_a_database_the_daemon_still_speaks(lock_db: Path, harm: str) -> None:
    with served(lock_db) as url:
        assert numbers(url)["bootlock_database_up"] == 1
        lock_db.unlink()
        if harm != "missing":
            lock_db.write_bytes(b"junk" * 5000 if harm == "junk" else b"")
        found = numbers(url)
    assert found["bootlock_database_up"] == 0
    assert found["bootlock_daemon_up"] == 1
    assert "bootlock_refusals_total" not in found
    assert not [name for name in found if name.startswith("bootlock_holds")]


def test_many_may_ask_at_once(lock_db: Path) -> None:
    find_foreign(lock_db, "killed")
    with served(lock_db) as url, ThreadPoolExecutor(8) as pool:
        for found in pool.map(numbers, [url] * 40):
            assert found['bootlock_foreign_processes_total{action="killed"}'] == 1


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


def test_durations_are_counted_up_to_each_bound() -> None:
    durations = Durations()
    for seconds in (0.0, 0.001, 0.002, 50.0, 1000.0):
        durations.add(seconds)
    told = durations.as_dict()
    assert told["sum"] == pytest.approx(1050.003)
    counted = dict(map(tuple, told["buckets"]))
    assert (counted["0.001"], counted["0.01"], counted["10.0"]) == (2, 3, 3)
    assert (counted["100.0"], counted["+Inf"]) == (4, 5)


def test_each_metric_is_documented_with_its_labels_and_none_that_is_not_there(
    lock_db: Path, tmp_path: Path
) -> None:
    with database.open_db(lock_db) as opened:
        row = Enforcement("a", "power", uuid(1), State.ENFORCED, "", 1, 1)
        enforcements.record(opened, [row])
        proofs.record(opened, "qemu:///system", armed=True, answer="", now=1)
        with opened.write() as db:
            sources.carry_out(db, sources.State("file", read_at=1), sources.Steps(), now=1)
    relaystate.save(tmp_path, RelayReport("one", leads=True))
    with served(lock_db, relay=("/none", str(tmp_path / "state.json"))) as url:
        said = text(url)
    exported = {}
    for name, kind in TYPE.findall(said):
        if name.startswith("bootlock_"):
            sample = re.search(rf"^{name}(?:_count)?(?:\{{(.*)\}})? ", said, re.MULTILINE)
            assert sample, name
            labels = ",".join(re.findall(r'(\w+)="', sample[1] or ""))
            exported[f"{name}{{{labels}}}" if labels else name] = kind
    rows = re.findall(r"^\| `(bootlock_.+?)` \| (\w+) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert dict(rows) == exported


def test_what_exports_them_loads_no_libvirt_and_none_of_the_daemons_powers() -> None:
    script = "import sys, bootlockd.exporter; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, check=True)
    loaded = set(done.stdout.decode().split())
    assert "bootlockd.metrics" in loaded
    unwanted = {
        "libvirt",
        "pyroute2",
        "bootlockd.cycle",
        "bootlockd.fences",
        "bootlockd.hypervisor",
    }
    assert loaded & unwanted == set()
