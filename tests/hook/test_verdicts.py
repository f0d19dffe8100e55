"""Who may start: each rule asked of the hook and of Python."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from hook.both import ask_both
from hookrunner import Answer, Hook, domain_xml
from lockdb import database, disks, holds, permits, refusals
from lockdb.database import LockDB
from lockdb.decision import Decision, Verdict
from lockdb.values import CANARY_PREFIX, DEFAULT_NOTICE, Hold, Kind, Operation
from samples import FREE, HELD, NOW, OTHER, new_hold

ALLOWED = Decision(Verdict.ALLOW)
DECIDING = ("prepare", "start", "migrate")


@pytest.fixture
def empty(tmp_path_factory: pytest.TempPathFactory) -> Hook:
    """A hook without any hold."""
    return Hook.install(tmp_path_factory.mktemp("empty"))


@pytest.fixture
def lock_db(empty: Hook) -> Iterator[LockDB]:
    with database.open_db(empty.database) as lock_db:
        yield lock_db


def _refused(hold: Hold) -> Decision:
    return Decision(Verdict.REFUSE, hold.id, hold.notice)


def _now() -> int:
    return int(time.time())


def test_the_refused_caller_reads_the_notice_and_the_hold_and_nothing_else(
    empty: Hook, lock_db: LockDB
) -> None:
    hold = holds.place(lock_db, new_hold(notice="call 555-0100", reason="unpaid"), now=NOW)
    assert empty.run(domain_xml(HELD)) == Answer(
        1, b"", f"bootlock: start refused: call 555-0100 [hold {hold.id}]\n".encode()
    )


@pytest.mark.parametrize("operation", DECIDING)
def test_a_boot_lock_refuses_its_instance_and_no_other(
    empty: Hook, lock_db: LockDB, operation: str
) -> None:
    hold = holds.place(lock_db, new_hold(), now=NOW)
    assert ask_both(empty, domain_xml(HELD), operation) == _refused(hold)
    assert ask_both(empty, domain_xml(HELD.upper()), operation) == _refused(hold)
    assert ask_both(empty, domain_xml(FREE), operation) == ALLOWED


def test_the_first_uuid_is_the_guests_own(empty: Hook, lock_db: LockDB) -> None:
    """What follows it may be anybody's: libvirt keeps metadata as it came."""
    hold = holds.place(lock_db, new_hold(), now=NOW)
    metadata = '<metadata><x:a xmlns:x="y"><uuid>{}</uuid></x:a></metadata>'
    assert ask_both(empty, domain_xml(FREE, disks=[metadata.format(HELD)])) == ALLOWED
    assert ask_both(empty, domain_xml(HELD, disks=[metadata.format(FREE)])) == _refused(hold)


@pytest.mark.parametrize(("was_running", "allowed"), [(None, True), (True, True), (False, False)])
def test_a_state_lock_keeps_a_stopped_instance_stopped_and_lets_a_running_one_return(
    empty: Hook, lock_db: LockDB, was_running: bool | None, allowed: bool
) -> None:
    hold = holds.place(lock_db, new_hold(kind=Kind.STATE_LOCK), now=NOW)
    if was_running is not None:
        holds.set_was_running(lock_db, hold, was_running, now=NOW)
    for operation in DECIDING:
        assert ask_both(empty, domain_xml(HELD), operation) == (
            ALLOWED if allowed else _refused(hold)
        )


@pytest.mark.parametrize("was_running", [True, False])
def test_a_boot_lock_refuses_whether_the_instance_ran_or_not(
    empty: Hook, lock_db: LockDB, was_running: bool
) -> None:
    hold = holds.place(lock_db, new_hold(), now=NOW)
    holds.set_was_running(lock_db, hold, was_running, now=NOW)
    assert ask_both(empty, domain_xml(HELD)) == _refused(hold)


def test_of_several_holds_the_oldest_boot_lock_speaks(empty: Hook, lock_db: LockDB) -> None:
    state = holds.place(lock_db, new_hold(kind=Kind.STATE_LOCK), now=NOW)
    holds.set_was_running(lock_db, state, False, now=NOW)
    boot = holds.place(lock_db, new_hold(), now=NOW + 1)
    holds.place(lock_db, new_hold(notice="later"), now=NOW + 2)
    assert ask_both(empty, domain_xml(HELD)).text == DEFAULT_NOTICE[Kind.BOOT_LOCK]
    assert ask_both(empty, domain_xml(HELD)) == _refused(boot)


def test_releasing_one_hold_releases_no_other(empty: Hook, lock_db: LockDB) -> None:
    different: list[dict[str, Any]] = [{}, {"source": "nova"}, {"kind": Kind.STATE_LOCK}, {}]
    placed = [
        holds.place(lock_db, new_hold(**fields), now=NOW + number)
        for number, fields in enumerate(different)
    ]
    holds.set_was_running(lock_db, placed[2], False, now=NOW)
    release = partial(holds.release, lock_db, reason="paid", by="tester", now=NOW)
    for number, speaks in ((0, 1), (1, 3), (3, 2)):
        release(placed[number].id)
        assert ask_both(empty, domain_xml(HELD)) == _refused(placed[speaks])
    release(placed[2].id)
    assert ask_both(empty, domain_xml(HELD)) == ALLOWED


def test_a_hold_ends_by_itself_when_its_time_is_over(empty: Hook, lock_db: LockDB) -> None:
    holds.place(lock_db, new_hold(until=_now() - 1), now=NOW)
    assert ask_both(empty, domain_xml(HELD)) == ALLOWED
    hold = holds.place(lock_db, new_hold(until=_now() + 3600), now=NOW)
    assert ask_both(empty, domain_xml(HELD)) == _refused(hold)


@pytest.mark.parametrize(
    ("permitted", "operation", "allowed"),
    [
        (Operation.START, "prepare", True),
        (Operation.START, "start", True),
        (Operation.START, "migrate", False),
        # An arriving migration asks three times.
        (Operation.MIGRATE, "migrate", True),
        (Operation.MIGRATE, "prepare", True),
        (Operation.MIGRATE, "start", True),
    ],
)
def test_a_permit_lets_its_operation_through(
    empty: Hook, lock_db: LockDB, permitted: Operation, operation: str, allowed: bool
) -> None:
    hold = holds.place(lock_db, new_hold(), now=NOW)
    _grant(lock_db, permitted, granted_at=NOW, until=_now() + 3600)
    assert ask_both(empty, domain_xml(HELD), operation) == (ALLOWED if allowed else _refused(hold))


@pytest.mark.parametrize(
    ("granted_at", "until"), [(-3600, -1), (3600, 7200)], ids=["over", "clock set back"]
)
def test_a_permit_is_worth_nothing_outside_its_time(
    empty: Hook, lock_db: LockDB, granted_at: int, until: int
) -> None:
    hold = holds.place(lock_db, new_hold(), now=NOW)
    _grant(lock_db, Operation.START, granted_at=_now() + granted_at, until=_now() + until)
    assert ask_both(empty, domain_xml(HELD)) == _refused(hold)


def test_a_revoked_permit_is_worth_nothing(empty: Hook, lock_db: LockDB) -> None:
    hold = holds.place(lock_db, new_hold(), now=NOW)
    permit_id = _grant(lock_db, Operation.START, granted_at=NOW, until=_now() + 3600)
    assert ask_both(empty, domain_xml(HELD)) == ALLOWED
    permits.revoke(lock_db, permit_id, reason="no more", by="tester", now=NOW + 1)
    assert ask_both(empty, domain_xml(HELD)) == _refused(hold)


def test_a_permit_is_for_one_instance(empty: Hook, lock_db: LockDB) -> None:
    hold = holds.place(lock_db, new_hold(OTHER), now=NOW)
    _grant(lock_db, Operation.START, granted_at=NOW, until=_now() + 3600)
    assert ask_both(empty, domain_xml(OTHER)) == _refused(hold)


def test_the_disk_of_a_held_instance_starts_under_no_other_uuid(
    empty: Hook, lock_db: LockDB
) -> None:
    hold = holds.place(lock_db, new_hold(), now=NOW)
    disks.record(lock_db, HELD, ["path:/images/web.img"], now=NOW)
    clone = domain_xml(FREE, disks=[_disk("<source file='/images/web.img' index='1'/>")])
    assert ask_both(empty, clone) == _refused(hold)
    base = "<backingStore type='file'>\n<source file='/images/web.img'/>\n</backingStore>"
    overlay = domain_xml(FREE, disks=[_disk(f"<source file='/o'/>\n{base}")])
    assert ask_both(empty, overlay) == _refused(hold)
    neighbour = domain_xml(FREE, disks=[_disk("<source file='/images/web.img2'/>")])
    assert ask_both(empty, neighbour) == ALLOWED

    _grant(lock_db, Operation.START, granted_at=NOW, until=_now() + 3600, instance=FREE)
    assert ask_both(empty, clone) == ALLOWED
    assert ask_both(empty, domain_xml(HELD)) == _refused(hold)


@pytest.mark.parametrize(
    ("key", "source"),
    [
        ("path:/images/web=", "<source file='/images/web=' index='1'/>"),
        ("path:/images/a b", "<source dev='/images/a b'/>"),
        ("volume:=/=", "<source pool='=' volume='='/>"),
        ("volume: a/ b", "<source pool=' a' volume=' b'/>"),
        ("net:rbd:pool/web", "<source protocol='rbd' name='pool/web' tlsHostname='x='/>"),
        ("net:rbd:pool/web", "<source protocol='rbd' name='pool/web' query=' y=' index='2'/>"),
    ],
)
def test_no_spelling_of_an_attribute_hides_a_held_disk(
    empty: Hook, lock_db: LockDB, key: str, source: str
) -> None:
    hold = holds.place(lock_db, new_hold(), now=NOW)
    disks.record(lock_db, HELD, [key], now=NOW)
    assert ask_both(empty, domain_xml(FREE, disks=[_disk(source)])) == _refused(hold)


def test_a_state_lock_of_a_running_instance_does_not_refuse_its_disk(
    empty: Hook, lock_db: LockDB
) -> None:
    holds.place(lock_db, new_hold(kind=Kind.STATE_LOCK), now=NOW)
    disks.record(lock_db, HELD, ["path:/d"], now=NOW)
    assert ask_both(empty, domain_xml(FREE, disks=[_disk("<source file='/d'/>")])) == ALLOWED


@pytest.mark.parametrize("operation", DECIDING)
def test_a_canary_is_refused_without_a_hold_and_leaves_no_trace(
    empty: Hook, lock_db: LockDB, operation: str
) -> None:
    document = domain_xml(CANARY_PREFIX + "0123456789ab")
    assert ask_both(empty, document, operation) == Decision(Verdict.REFUSE, "canary", "canary")
    assert refusals.pending(lock_db) == []


def _grant(
    lock_db: LockDB, operation: Operation, *, granted_at: int, until: int, instance: str = HELD
) -> str:
    permit = permits.grant(
        lock_db, instance, operation, until=until, reason="test", by="tester", now=granted_at
    )
    return permit.id


def _disk(source: str) -> str:
    return f"<disk type='file' device='disk'>\n{source}\n<target dev='vda' bus='virtio'/>\n</disk>"
