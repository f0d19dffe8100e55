"""One table says what each kind of hold blocks; the hook, Python and the permits follow it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database

from lockdb import database, holds, journal, migrations, operations, permits
from lockdb.database import LockDB
from lockdb.decision import Decision, Verdict, blocking, decide, minimal_document
from lockdb.errors import InvalidValue
from lockdb.operations import ALL, RULES, refused_permissions
from lockdb.values import Hold, Kind, NewHold, OnRunning, Operation
from samples import FREE, HELD, NOW, new_hold

DOCUMENTED = Path(__file__).parents[2] / "docs/blocked-operations.md"
ALLOWED = Decision(Verdict.ALLOW)


def place(lock_db: LockDB, **fields: Any) -> Hold:
    return holds.place(lock_db, new_hold(**fields), now=NOW)


def ran(hold: Hold, was_running: bool | None) -> Hold:
    return replace(hold, was_running=was_running)


def by_start(lock_db: LockDB, operation: str) -> Verdict:
    return decide(lock_db, minimal_document(HELD), operation, now=NOW).verdict


def test_the_documentation_has_the_table() -> None:
    rows = [
        f"| `{operation}` | {rule.what} | yes | "
        f"{'yes' if rule.state_lock else 'no'} | "
        f"{', '.join(f'`{name}`' for name in sorted(rule.refused))} | "
        f"{', '.join(f'`{name}`' for name in sorted(rule.needed))} |"
        for operation, rule in RULES.items()
    ]
    assert "\n".join(rows) in DOCUMENTED.read_text("utf-8")


def test_every_operation_has_its_row() -> None:
    assert set(RULES) == ALL == set(Operation)


def test_a_permit_for_an_operation_opens_nothing_that_another_alone_is_about() -> None:
    """What is needed is refused where it is blocked, or else is blocked by what else it can do."""
    for operation, rule in RULES.items():
        assert rule.needed & rule.refused, operation
        assert rule.needed <= refused_permissions(ALL), operation


@pytest.mark.parametrize(
    ("escape", "operation"),
    [
        ("domain.write", Operation.RESUME),  # the monitor's cont
        ("domain.write", Operation.STOP),  # its quit
        ("domain.snapshot", Operation.REVERT),  # starts a guest without asking for start
        ("domain.hibernate", Operation.MANAGED_SAVE_REMOVE),
        ("domain.start", Operation.START),  # --force-boot removes the save before any hook
        ("domain.core-dump", Operation.STOP),  # dump --crash
        ("domain.core-dump", Operation.RESET),  # dump --reset
        ("domain.pm-control", Operation.SHUTDOWN),  # suspend to disk
        ("domain.send-signal", Operation.STOP),  # a container's init
    ],
)
def test_the_ways_around_an_operation_are_refused_with_it(
    escape: str, operation: Operation
) -> None:
    assert escape in refused_permissions(frozenset({operation}))


def test_a_boot_lock_blocks_everything_and_a_state_lock_what_changes_the_state(
    lock_db: LockDB,
) -> None:
    assert place(lock_db).blocked == ALL
    state = place(lock_db, kind=Kind.STATE_LOCK)
    assert ran(state, False).blocked == ALL - {Operation.MIGRATE, Operation.GUEST}
    for was_running in (True, None):
        assert ran(state, was_running).blocked == ran(state, False).blocked - {Operation.START}


def test_a_state_lock_that_ran_leaves_its_start_open_and_not_its_restore(lock_db: LockDB) -> None:
    refused = refused_permissions(place(lock_db, kind=Kind.STATE_LOCK).blocked)
    assert "domain.start" not in refused
    assert {"domain.write", "domain.delete", "domain.stop"} <= refused


def test_a_hold_says_what_it_blocks_in_one_way(lock_db: LockDB) -> None:
    hold = place(lock_db, blocks=" stop, delete,stop ")
    assert hold.blocks == "stop,delete"
    assert hold.blocked == {Operation.STOP, Operation.DELETE}
    assert not hold.bars_start


@pytest.mark.parametrize(
    ("blocks", "problem"),
    [("", "names no operation"), (" , ", "names no operation"), ("delete,fly", "'fly' is no oper")],
)
def test_what_is_no_operation_is_not_placed(blocks: str, problem: str) -> None:
    with pytest.raises(InvalidValue, match=problem):
        new_hold(blocks=blocks)


def test_an_order_to_stop_that_lets_it_start_again_is_not_placed() -> None:
    with pytest.raises(InvalidValue, match="destroy without start"):
        NewHold(HELD, "r", "t", on_running=OnRunning.DESTROY, blocks="delete")


@pytest.mark.parametrize(
    ("kind", "was_running", "blocks", "refused"),
    [
        (Kind.BOOT_LOCK, None, "delete", set()),
        (Kind.BOOT_LOCK, None, "restore,volume-delete", set()),
        (Kind.BOOT_LOCK, None, "start", {"start", "prepare", "migrate"}),
        (Kind.BOOT_LOCK, None, "migrate", {"migrate"}),
        (Kind.STATE_LOCK, False, "start", {"start", "prepare", "migrate"}),
        (Kind.STATE_LOCK, True, "start", set()),
        (Kind.STATE_LOCK, True, "migrate", {"migrate"}),
        (Kind.STATE_LOCK, None, "migrate,start", {"migrate"}),
    ],
)
def test_the_decision_refuses_what_is_blocked(
    lock_db: LockDB, kind: Kind, was_running: bool | None, blocks: str, refused: set[str]
) -> None:
    hold = place(lock_db, kind=kind, blocks=blocks)
    if was_running is not None:
        holds.set_was_running(lock_db, hold, was_running, now=NOW)
    asked = ("prepare", "start", "migrate")
    assert {op for op in asked if by_start(lock_db, op) is Verdict.REFUSE} == refused


@pytest.mark.parametrize("operation", Operation)
def test_each_operation_is_refused_and_permitted_by_its_name(
    lock_db: LockDB, operation: Operation
) -> None:
    def asked(instance: str = HELD, now: int = NOW) -> Decision:
        return blocking(lock_db, instance, operation, now=now)

    assert asked() == ALLOWED
    hold = place(lock_db, until=NOW + 100)
    assert asked() == Decision(Verdict.REFUSE, hold.id, hold.notice)
    assert asked(FREE) == asked(now=NOW + 100) == ALLOWED
    permits.grant(lock_db, HELD, operation, until=NOW + 9, reason="r", by="t", now=NOW)
    assert asked() == ALLOWED
    assert asked(now=NOW + 9).verdict is Verdict.REFUSE
    for other in ALL - {operation}:
        assert blocking(lock_db, HELD, other, now=NOW).verdict is Verdict.REFUSE


def test_a_boot_lock_speaks_before_a_state_lock_that_blocks_the_same(lock_db: LockDB) -> None:
    state = place(lock_db, kind=Kind.STATE_LOCK)
    assert blocking(lock_db, HELD, Operation.DELETE, now=NOW).hold == state.id
    boot = holds.place(lock_db, new_hold(blocks="stop,delete"), now=NOW + 1)
    assert blocking(lock_db, HELD, Operation.DELETE, now=NOW).hold == boot.id
    assert blocking(lock_db, HELD, Operation.RESET, now=NOW).hold == state.id


def test_holds_and_permits_of_before_are_kept_and_block_what_they_did(tmp_path: Path) -> None:
    """A database of the last version, with a permit, brought up to date."""
    path = tmp_path / "lock.db"
    row = ["p" * 16, HELD, "migrate", "r", 1, "t", 2**33, None, None]
    with closing(Database(path)) as db:
        migrations.migrations.apply(db, stop_before="m0004_blocks")
        with db.atomic():
            journal.append(db, "created", 1, host="test")
            db.execute("INSERT INTO permit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            db.table("hold").insert(
                {"id": "a" * 16, "placed_at": 1, "instance": FREE, "kind": "boot_lock"}
                | {"source": "local", "reason": "r", "notice": "n", "case": "", "placed_by": "t"}
                | {"on_running": "leave", "grace": 60, "isolate": 0}
            )
    database.create(path, now=NOW, host="test")
    with database.open_db(path) as lock_db:
        (permit,) = permits.active(lock_db, now=NOW)
        (hold,) = holds.active(lock_db, now=NOW)
        permits.grant(lock_db, HELD, Operation.DELETE, until=NOW + 1, reason="r", by="t", now=NOW)
    assert (permit.operation, permit.until) == (Operation.MIGRATE, 2**33)
    assert hold.blocked == ALL
    with closing(sqlite3.connect(path)) as connection:
        (format_read,) = connection.execute("SELECT value FROM meta WHERE key = 'decision'")
        plan = connection.execute(
            "EXPLAIN QUERY PLAN SELECT 1 FROM permit WHERE instance = 'a'"
        ).fetchall()
    assert format_read == ("2",)
    assert "permit_instance" in str(plan)


@pytest.mark.parametrize("kind", Kind)
def test_what_a_kind_blocks_can_be_written_out(kind: Kind) -> None:
    default = operations.blocked_by_default(kind)
    assert operations.blocked(kind, operations.text_of(default)) == default
