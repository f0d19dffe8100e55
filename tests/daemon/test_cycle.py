"""The cycle and its workers, with fences that hang, fail and break."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bootlockd import hypervisor, worker
from bootlockd.config import Libvirt
from bootlockd.cycle import Cycle
from bootlockd.errors import Unreachable
from bootlockd.values import Guest, Wake
from bootlockd.worker import RETRY, Job, Worker
from daemon.fakes import FakeFence, guest, place, release, settings, turning, uuid
from lockdb import database, disks, enforcements, holds, permits, witness
from lockdb.enforcements import Enforcement, State
from lockdb.values import Operation
from samples import new_hold
from waiting import PATIENCE, wait_until


@pytest.fixture(autouse=True)
def libvirt(monkeypatch: pytest.MonkeyPatch) -> dict[str, Exception]:
    """Knows every instance; what is put into it is raised for that instance, or for ``list``."""
    errors: dict[str, Exception] = {}

    def observe(_uris: object, instance: str, _seconds: float = 0) -> Guest:
        if instance in errors:
            raise errors[instance]
        return guest(instance)

    def guests(_uri: str, _seconds: float = 0) -> dict[str, Guest]:
        if "list" in errors:
            raise errors["list"]
        return {uuid(number): guest(uuid(number)) for number in range(300)}

    monkeypatch.setattr(hypervisor, "observe", observe)
    monkeypatch.setattr(hypervisor, "guests", guests)
    monkeypatch.setattr(hypervisor, "definition_of", lambda *_: None)
    return errors


def rows(path: Path, instance: str) -> list[Enforcement]:
    with database.open_db(path, read_only=True) as lock_db:
        return enforcements.of_instance(lock_db, instance)


def states(path: Path, instance: str) -> list[State]:
    return [row.state for row in rows(path, instance)]


def read(cycle: Cycle) -> None:
    cycle.ask(lambda inside: inside.read_holds())


def test_a_hold_goes_up_is_verified_and_comes_down(lock_db: Path) -> None:
    fence, instance = FakeFence(), uuid(1)
    hold = place(lock_db, instance)
    with turning(settings(lock_db), [fence]) as cycle:
        wait_until(lambda: states(lock_db, instance) == [State.ENFORCED], "it is up")
        cycle.wake(Wake("event", instance))
        wait_until(lambda: ("verify", instance) in fence.calls, "it is verified")
        release(lock_db, hold)
        read(cycle)
        wait_until(lambda: states(lock_db, instance) == [State.LIFTED], "it is down")
    assert not fence.up


def test_what_is_no_longer_true_is_made_true_again(lock_db: Path) -> None:
    fence, instance = FakeFence(), uuid(1)
    place(lock_db, instance)
    with turning(settings(lock_db), [fence]) as cycle:
        wait_until(lambda: states(lock_db, instance) == [State.ENFORCED], "it is up")
        fence.up.clear()
        cycle.wake(Wake("event", instance))
        wait_until(lambda: instance in fence.up, "it is up again")


def test_one_that_hangs_is_stuck_and_delays_no_other(lock_db: Path) -> None:
    fence, hung = FakeFence(), [uuid(number) for number in range(20)]
    fence.acts = dict.fromkeys(hung, "hang")
    for instance in hung:
        place(lock_db, instance)
    with turning(settings(lock_db, workers=4), [fence]) as cycle:
        wait_until(lambda: len(cycle.health.stuck) == len(hung), "all of them are stuck")
        place(lock_db, uuid(99))
        read(cycle)
        wait_until(lambda: states(lock_db, uuid(99)) == [State.ENFORCED], "another one is done")
        fence.let_go.set()
        wait_until(lambda: not cycle.health.stuck, "they are let go")
        wait_until(lambda: set(hung) <= fence.up, "and done")
    assert not fence.twice


@pytest.mark.parametrize("how", ["fail", "raise"])
def test_a_fence_that_fails_keeps_no_other_from_its_work_and_is_tried_again(
    lock_db: Path, how: str
) -> None:
    bad, good, instance = FakeFence("bad"), FakeFence("good"), uuid(1)
    bad.acts[instance] = how
    place(lock_db, instance)
    with turning(settings(lock_db), [bad, good]):
        wait_until(
            lambda: states(lock_db, instance) == [State.FAILED, State.ENFORCED], "both are told"
        )
    failed = rows(lock_db, instance)[0]
    assert (
        failed.detail
        == {
            "fail": "it does not work; try again",
            "raise": "ZeroDivisionError: a defect",
        }[how]
    )
    assert failed.next_try == failed.at + RETRY


def test_a_lift_that_fails_is_not_called_lifted(lock_db: Path) -> None:
    fence, instance = FakeFence(), uuid(1)
    hold = place(lock_db, instance)
    with turning(settings(lock_db), [fence]) as cycle:
        wait_until(lambda: states(lock_db, instance) == [State.ENFORCED], "it is up")
        fence.acts[instance] = "fail"
        release(lock_db, hold)
        read(cycle)
        wait_until(lambda: states(lock_db, instance) == [State.FAILED], "it is told")
        del fence.acts[instance]
        cycle.wake(Wake("retry", instance))
        wait_until(lambda: states(lock_db, instance) == [State.LIFTED], "it is down")


def test_200_holds_at_once_are_all_done_by_few_workers(lock_db: Path) -> None:
    fence = FakeFence()
    wanted = {uuid(number) for number in range(200)}
    with turning(settings(lock_db, workers=8), [fence]) as cycle:
        wait_until(lambda: cycle.health.looked, "the first look")
        for instance in wanted:
            place(lock_db, instance)
        read(cycle)
        wait_until(lambda: fence.up == wanted and cycle.ask(lambda c: c.is_idle), "all are up")
    assert fence.most_at_once <= 8
    assert all(states(lock_db, instance) == [State.ENFORCED] for instance in wanted)


@pytest.mark.parametrize("harm", ["deleted", "corrupt", "empty"])
def test_holds_stay_when_the_database_is_lost(lock_db: Path, harm: str) -> None:
    fence, instance = FakeFence(), uuid(1)
    place(lock_db, instance)
    with turning(settings(lock_db), [fence]) as cycle:
        wait_until(lambda: states(lock_db, instance) == [State.ENFORCED], "it is up")
        wait_until(lambda: cycle.ask(lambda c: c.is_idle), "nothing is under way")
        kept = {file: file.read_bytes() for file in lock_db.parent.iterdir()}
        for file in kept:
            file.unlink()
        if harm != "deleted":
            lock_db.write_bytes(b"no database" * 1000 if harm == "corrupt" else b"")
        read(cycle)
        assert cycle.health.database_error
        fence.up.clear()
        cycle.wake(Wake("event", instance))
        wait_until(lambda: instance in fence.up, "it is enforced from memory")
        for file, content in kept.items():
            file.write_bytes(content)
        read(cycle)
        assert not cycle.health.database_error


def test_a_hold_that_vanishes_is_enforced_and_told(lock_db: Path) -> None:
    fence, instance = FakeFence(), uuid(1)
    hold = place(lock_db, instance)
    with turning(settings(lock_db), [fence]) as cycle:
        wait_until(lambda: instance in fence.up, "it is up")
        with closing(sqlite3.connect(lock_db)) as other, other:
            other.execute("DELETE FROM hold")
        read(cycle)
        assert cycle.health.vanished == (hold.id,)
        fence.up.clear()
        cycle.wake(Wake("event", instance))
        wait_until(lambda: instance in fence.up, "it is up again")


def test_a_locked_database_delays_the_record_and_not_the_fence(lock_db: Path) -> None:
    fence, instance = FakeFence(), uuid(1)
    place(lock_db, instance)
    with turning(settings(lock_db), [fence]) as cycle:
        wait_until(lambda: states(lock_db, instance) == [State.ENFORCED], "it is up")
        fence.up.clear()
        with closing(sqlite3.connect(lock_db, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            cycle.wake(Wake("event", instance))
            wait_until(lambda: instance in fence.up, "it is up again")
            # That waits to be recorded now: the next event waits for no such thing.
            fence.up.clear()
            cycle.wake(Wake("event", instance))
            wait_until(lambda: instance in fence.up, "it is up once more", PATIENCE / 2)
            other.execute("ROLLBACK")


def test_without_a_list_each_instance_is_looked_at_by_itself(
    lock_db: Path, libvirt: dict[str, Exception]
) -> None:
    fence = FakeFence()
    libvirt["list"] = libvirt[uuid(1)] = Unreachable("it hangs", "")
    for number in (1, 2):
        place(lock_db, uuid(number))
    with turning(settings(lock_db), [fence]) as cycle:
        wait_until(lambda: states(lock_db, uuid(2)) == [State.ENFORCED], "the other one is done")
        assert cycle.health.libvirt_error == "it hangs"
        assert not cycle.health.looked, "that was no look at everything"
        assert uuid(1) not in fence.up


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A libvirt that answers nothing until this is set: it may wait for us to be ready."""
    answers = threading.Event()
    for name in ("observe", "guests"):
        ask = getattr(hypervisor, name)

        def wait(*question: Any, ask: Any = ask) -> Any:
            assert answers.wait(PATIENCE)
            return ask(*question)

        monkeypatch.setattr(hypervisor, name, wait)
    yield answers
    answers.set()


def record_disk(path: Path, *instances: str) -> None:
    with database.open_db(path) as opened:
        for instance in instances:
            disks.record(opened, instance, [f"path:/{instance}"], now=1)


def test_what_needs_no_libvirt_is_done_and_recorded_before_it_answers(
    lock_db: Path, silence: threading.Event
) -> None:
    fence, here = FakeFence(), [uuid(number) for number in range(40)]
    for number in range(200):
        place(lock_db, uuid(number))
    fence.prepares = set(here)
    record_disk(lock_db, *here)
    with turning(settings(lock_db, workers=4), [fence]) as cycle:
        wait_until(lambda: cycle.ask(lambda c: c.is_prepared), "all is prepared")
        assert sorted(fence.prepared) == here
        assert all(states(lock_db, instance) == [State.ENFORCED] for instance in here)
        assert not fence.up, "nothing was applied without having looked"
        assert {case.instance for case in fence.followed[0]} == {uuid(n) for n in range(200)}
        assert not any(case.guest for case in fence.followed[0])
        silence.set()
        wait_until(lambda: len(fence.up) == 200, "libvirt answers: all are looked at")
    assert not fence.twice


def test_a_disk_that_hangs_delays_what_needs_no_libvirt_only_for_a_while(
    lock_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bootlockd.cycle.FIRST_LIMIT", 0.2)
    fence, hung = FakeFence(), uuid(1)
    fence.prepares, fence.acts[hung] = {hung}, "hang"
    for number in (1, 2):
        place(lock_db, uuid(number))
    record_disk(lock_db, hung)
    with turning(settings(lock_db, workers=1), [fence]) as cycle:
        wait_until(lambda: cycle.ask(lambda c: c.is_prepared), "it is given up")
        wait_until(lambda: states(lock_db, uuid(2)) == [State.ENFORCED], "the other one is done")
        fence.let_go.set()
        wait_until(lambda: hung in fence.up, "it is looked at when it is let go")


def test_what_is_to_be_watched_is_told_to_fences_while_libvirt_fails(
    lock_db: Path, libvirt: dict[str, Exception]
) -> None:
    fence, instance = FakeFence(), uuid(1)
    libvirt["list"] = Unreachable("it hangs", "")
    with turning(settings(lock_db), [fence]) as cycle:
        wait_until(lambda: cycle.health.libvirt_error, "the first look")
        place(lock_db, instance)
        cycle.wake(Wake("look"))
        wait_until(lambda: fence.followed[-1], "it is told")
    assert fence.followed[-1][0].instance == instance


def test_what_one_driver_does_not_show_is_not_taken_for_absent(
    lock_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One answers, the other hangs with one of its guests: the held one may be there."""

    def guests(uri: str, _seconds: float = 0) -> dict[str, Guest]:
        if uri == "hung:///":
            raise Unreachable("it hangs", "")
        return {}

    monkeypatch.setattr(hypervisor, "guests", guests)
    fence, instance = FakeFence(), uuid(1)
    place(lock_db, instance)
    config = replace(settings(lock_db), libvirt=Libvirt(("test:///", "hung:///")))
    with turning(config, [fence]) as cycle:
        wait_until(lambda: cycle.health.libvirt_error == "it hangs", "the first look")
        wait_until(lambda: cycle.ask(lambda c: c.is_idle), "nothing is under way")
        fence.up.clear()
        cycle.wake(Wake("look"))
        wait_until(lambda: instance in fence.up, "it is looked at by itself")


def test_it_goes_on_when_there_are_no_more_threads(
    lock_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the unit allows may hang in libvirt; one that ends makes room."""
    fence, instance = FakeFence(), uuid(1)
    place(lock_db, instance)
    start = threading.Thread.start
    refused: list[str] = []

    def start_or_not(thread: threading.Thread) -> None:
        if thread.name in {instance, "list", "notes"} and len(refused) < 3:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_or_not)
        with turning(settings(lock_db), [fence]):
            wait_until(lambda: instance in fence.up, "it is up after all")
    assert len(refused) == 3


def test_a_row_that_nobody_foresaw_does_not_end_it(
    lock_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fence, instance = FakeFence(), uuid(1)
    place(lock_db, instance)
    with turning(settings(lock_db), [fence]) as cycle:
        wait_until(lambda: instance in fence.up, "it is up")
        with closing(sqlite3.connect(lock_db)) as other, other:
            other.execute("PRAGMA ignore_check_constraints = 1")
            other.execute("PRAGMA writable_schema = 1")
            other.execute("UPDATE hold SET kind = 'unheard of'")
        read(cycle)
        assert "unheard of" in cycle.health.database_error
        assert [hold.instance for hold in cycle.holds.values()] == [instance]


def test_jobs_leave_nothing_behind(lock_db: Path) -> None:
    fence = FakeFence()
    with turning(settings(lock_db), [fence]) as cycle:
        hold = place(lock_db, uuid(1))
        read(cycle)
        wait_until(lambda: uuid(1) in fence.up, "it is up")
        release(lock_db, hold)
        read(cycle)
        wait_until(lambda: states(lock_db, uuid(1)) == [State.LIFTED], "it is down")
        wait_until(lambda: cycle.ask(lambda c: c.is_idle), "nothing is under way")
        # The thread that told of it has yet to leave.
        wait_until(lambda: uuid(1) not in worker._at_work, "its turn is forgotten")


def test_each_enforcement_and_lift_is_told_with_names_and_its_time(
    lock_db: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "bootlockd.cycle")
    fence, instance = FakeFence(), uuid(1)
    hold = place(lock_db, instance)
    with turning(settings(lock_db), [fence]) as cycle:
        wait_until(lambda: states(lock_db, instance) == [State.ENFORCED], "it is up")
        release(lock_db, hold)
        read(cycle)
        wait_until(lambda: states(lock_db, instance) == [State.LIFTED], "it is down")
        wait_until(lambda: cycle.ask(lambda c: c.is_idle), "nothing is under way")
    names = rf"instance={instance} hold={hold.id} fence=fake"
    for state in ("enforced", "lifted"):
        line = re.compile(rf"{names} state={state} took=\d+\.\d{{3}} ")
        assert any(line.match(message) for message in caplog.messages)


def test_a_look_that_is_asked_for_during_another_one_is_not_lost(
    lock_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happened between the list of guests and the first event is in neither."""
    listed, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def guests(_uri: str, _seconds: float = 0) -> dict[str, Guest]:
        listed.release()
        assert go_on.acquire(timeout=PATIENCE)
        return {}

    monkeypatch.setattr(hypervisor, "guests", guests)
    with turning(settings(lock_db), [FakeFence()]) as cycle:
        assert listed.acquire(timeout=PATIENCE)
        cycle.wake(Wake("connected"))
        cycle.ask(lambda c: c.health)
        go_on.release()
        assert listed.acquire(timeout=PATIENCE), "it lists again"
        go_on.release()


def test_what_is_not_on_this_host_is_told_once_and_not_worked_on(lock_db: Path) -> None:
    fence, elsewhere = FakeFence(), uuid(999)
    place(lock_db, elsewhere)
    config = settings(lock_db)
    with turning(config, [fence]) as cycle:
        wait_until(lambda: cycle.health.looked, "the first look")
        wait_until(lambda: states(lock_db, elsewhere) != [], "it is told")


def test_a_permit_takes_it_down_until_it_ends(lock_db: Path) -> None:
    fence, instance = FakeFence(), uuid(1)
    place(lock_db, instance)
    with turning(settings(lock_db), [fence]) as cycle:
        wait_until(lambda: states(lock_db, instance) == [State.ENFORCED], "it is up")
        now = int(time.time())
        with database.open_db(lock_db) as opened:
            permits.grant(
                opened, instance, Operation.START, until=now + 2, reason="r", by="t", now=now
            )
        cycle.wake(Wake("permit", instance))
        wait_until(lambda: states(lock_db, instance) == [State.LIFTED], "it is down")
        wait_until(lambda: states(lock_db, instance) == [State.ENFORCED], "and up at its end")


def test_a_worker_survives_what_nobody_foresaw(
    lock_db: Path, libvirt: dict[str, Exception]
) -> None:
    libvirt[uuid(1)] = KeyError("a defect")
    done = Worker(lock_db, ["test:///"], [FakeFence()]).run(Job(uuid(1), ()))
    assert "a defect" in done.error
    assert done.next_try


def test_two_workers_never_do_the_same_instance_at_once(lock_db: Path) -> None:
    """Settings that are read again begin a new cycle while the old one's jobs go on."""
    fence, instance = FakeFence(), uuid(1)
    fence.acts[instance] = "hang"
    place(lock_db, instance)
    with turning(settings(lock_db), [fence]), turning(settings(lock_db), [fence]) as second:
        wait_until(lambda: second.health.stuck, "the second one waits")
        fence.let_go.set()
        wait_until(lambda: states(lock_db, instance) == [State.ENFORCED], "it is up")
    assert not fence.twice


def test_it_keeps_the_time_that_it_has_seen_pass_for_retained_holds(
    lock_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = int(time.time())
    with database.open_db(lock_db) as opened:
        holds.place(opened, new_hold(uuid(1), retain_until=now + 86400), now=now)
    sight = witness.look()
    later = witness.Sight(sight.boot, sight.up + 2 * witness.KEEP_EVERY, synchronised=False)
    monkeypatch.setattr(witness, "look", lambda: later)

    def kept() -> int:
        with database.open_db(lock_db, read_only=True) as opened, opened.read() as db:
            (text,) = db.execute("SELECT value FROM meta WHERE key = 'witness'").fetchone()
            return int(text.split()[0])

    assert kept() <= now
    with turning(settings(lock_db), []):
        wait_until(lambda: kept() >= now + witness.KEEP_EVERY, "it is kept")
