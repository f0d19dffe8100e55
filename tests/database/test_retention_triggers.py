"""What the triggers of ``hold`` refuse to who asks nobody, and that no part of them is idle.

Each comparison in each of them is made true, then false: some statement must then go through that
is refused, or be refused though it may be.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlite_utils import Database

from lockdb import accord, migrations

SCHEMA = migrations.schema()
PAST, DATE = 50, 100

#: ``strong`` and ``weak`` are retained, ``off`` is a state lock of an instance that was off, as is
#: ``seen`` of one that ran or was not known; ``done`` was released, ``free`` never retained.
HOLDS = f"""
INSERT INTO meta VALUES ('witness', '{PAST} 0 boot settled');
INSERT INTO hold (id, instance, kind, source, reason, notice, "case", on_running, grace, isolate,
  was_running, placed_at, placed_by, ref, blocks, retain_until, retention, preserve, released_at)
VALUES
  ('strong', 'a', 'boot_lock', 'nova', 'r', 'n', '', 'leave', 1, 0, NULL, 1, 'x', 'ref-strong',
    NULL, {DATE}, 'compliance', 1, NULL),
  ('weak', 'b', 'boot_lock', 'nova', 'r', 'n', '', 'leave', 1, 0, NULL, 1, 'x', 'ref-weak',
    NULL, {DATE}, 'governance', 0, NULL),
  ('off', 'c', 'state_lock', 'nova', 'r', 'n', '', 'leave', 1, 0, 0, 1, 'x', 'ref-off',
    NULL, {DATE}, 'compliance', 0, NULL),
  ('seen', 'd', 'state_lock', 'nova', 'r', 'n', '', 'leave', 1, 0, NULL, 1, 'x', 'ref-seen',
    NULL, {DATE}, 'compliance', 0, NULL),
  ('done', 'e', 'boot_lock', 'nova', 'r', 'n', '', 'leave', 1, 0, NULL, 1, 'x', 'ref-done',
    NULL, {DATE}, 'compliance', 1, {PAST}),
  ('free', 'f', 'boot_lock', 'nova', 'r', 'n', '', 'leave', 1, 0, NULL, 1, 'x', 'ref-free',
    NULL, NULL, NULL, 1, NULL),
  ('old', 'g', 'boot_lock', 'nova', 'r', 'n', '', 'leave', 1, 0, NULL, 1, 'x', 'ref-strong',
    NULL, NULL, NULL, 0, {PAST}),
  ('ours', 'h', 'boot_lock', 'local', 'r', 'n', '', 'leave', 1, 0, NULL, 1, 'x', 'ref-strong',
    NULL, NULL, NULL, 0, NULL);
"""


def insert(hold: str, ref: str, *, source: str = "nova", released: int | str = "NULL") -> str:
    columns = (
        'id, instance, kind, source, reason, notice, "case", on_running, grace, isolate, placed_at,'
        " placed_by, ref, released_at"
    )
    values = f"'z', 'boot_lock', '{source}', 'r', 'n', '', 'leave', 1, 0, 1, 'x', '{ref}'"
    return f"REPLACE INTO hold ({columns}) VALUES ('{hold}', {values}, {released})"


def update(hold: str, change: str) -> str:
    return f"UPDATE OR REPLACE hold SET {change} WHERE id = '{hold}'"


REFUSED = [
    # What it is, and that it is in force.
    update("strong", "released_at = 1"),
    update("strong", "released_at = 1, overridden = 1"),
    update("weak", "released_at = 1"),
    update("strong", "id = 'another'"),
    update("strong", "instance = 'another'"),
    update("strong", "source = 'another'"),
    update("strong", "kind = 'state_lock'"),
    update("strong", "blocks = 'delete'"),
    update("off", "was_running = 1"),
    update("off", "was_running = NULL"),
    update("strong", "preserve = 0"),
    # Until when, and how much.
    update("strong", "retain_until = NULL, retention = NULL"),
    update("weak", "retain_until = NULL, retention = NULL"),
    update("strong", f"retain_until = {DATE - 1}"),
    update("strong", "retention = 'governance'"),
    # That it is there.
    *(f"DELETE FROM hold WHERE id = '{hold}'" for hold in ("strong", "weak", "done")),
    # In its place, by its id or its ref.
    *(insert(hold, "new") for hold in ("strong", "weak", "done")),
    *(insert("new", f"ref-{hold}") for hold in ("strong", "weak")),
    update("free", "id = 'strong'"),
    update("free", "id = 'done'"),
    update("free", "ref = 'ref-strong'"),
    update("ours", "source = 'nova'"),
    update("old", "released_at = NULL"),
]

ALLOWED = [
    update("strong", f"retain_until = {DATE + 1}"),
    update("weak", "retention = 'compliance'"),
    update("weak", "released_at = 1, overridden = 1"),
    update("strong", "on_running = 'destroy', reason = 'more'"),
    # Its source has another name for it.
    update("strong", "ref = 'renamed'"),
    update("strong", "ref = ref"),
    update("weak", "preserve = 1"),
    update("seen", "was_running = 0"),
    update("seen", "was_running = 1"),
    update("off", "was_running = 0"),
    # What has ended is anybody's.
    update("done", "preserve = 0, blocks = 'delete', ref = 'renamed'"),
    update("free", "preserve = 0, blocks = 'delete', kind = 'state_lock'"),
    update("free", "released_at = 1"),
    update("free", "id = 'another'"),
    update("free", "ref = 'ref-done'"),
    # In the place of what never was retained.
    update("ours", "id = 'free'"),
    update("free", "source = 'local', ref = 'ref-strong'"),
    update("free", "ref = 'ref-strong', released_at = 1"),
    update("free", "ref = 'ref-strong', source = 'file'"),
    update("old", "released_at = NULL, ref = 'ref-ours'"),
    "DELETE FROM hold WHERE id = 'free'",
    insert("free", "ref-free"),
    insert("new", "ref-free"),
    insert("new", "ref-done"),
    insert("new", "ref-strong", source="file"),
    insert("new", "ref-strong", released=1),
    # Once the date has come.
    *(
        f"UPDATE meta SET value = '{DATE} 0 boot settled' WHERE key = 'witness'; {statement}"
        for statement in (
            update("strong", "released_at = 1"),
            update("strong", "preserve = 0"),
        )
    ),
]

#: One comparison; or the mark of who overrides.
_COMPARISON = re.compile(
    r"(?:\b(?:OLD|NEW)\.)?\b\w+(?: (?:<>|IS NOT|IS|=|<) (?:(?:OLD|NEW)\.\w+|NULL|'\w+'|\d)"
    r"|\s+> (?:NEW\.\w+|CAST\(.*AS INTEGER\)))"
    r"|NEW\.overridden"
)


def triggers() -> dict[str, str]:
    with closing(sqlite3.connect(":memory:")) as made:
        made.executescript(SCHEMA)
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'hold'"
        return dict(made.execute(query))


def mutants() -> Iterator[tuple[str, str, str]]:
    """Trigger, what was made of one comparison, and the trigger's text then."""
    for name, text in triggers().items():
        # The columns of an UPDATE trigger are no comparison.
        for found in _COMPARISON.finditer(text):
            for value in ("1", "0"):
                mutant = f"{text[: found.start()]}{value}{text[found.end() :]}"
                yield name, f"{found[0]} is {value}", mutant


def database(trigger: str = "", text: str = "") -> sqlite3.Connection:
    """With one hold of each sort; one of the triggers is another."""
    made = sqlite3.connect(":memory:", isolation_level=None)
    made.executescript(SCHEMA + HOLDS)
    if trigger:
        made.executescript(f"DROP TRIGGER {trigger}; {text}")
    return made


def is_refused(made: sqlite3.Connection, statements: str) -> bool:
    made.execute("BEGIN")
    said = ""
    try:
        for statement in statements.split("; "):
            made.execute(statement)
    except sqlite3.IntegrityError as error:
        said = str(error)
    made.rollback()
    assert said in {"", "the hold is retained"}, statements
    return bool(said)


@pytest.mark.parametrize("statement", REFUSED)
def test_it_is_refused_to_who_asks_nobody(statement: str) -> None:
    with closing(database()) as made:
        assert is_refused(made, statement)


@pytest.mark.parametrize("statement", ALLOWED)
def test_what_weakens_nothing_is_not(statement: str) -> None:
    with closing(database()) as made:
        assert not is_refused(made, statement)


def test_a_database_from_before_there_were_all_of_them_has_them_after_its_upgrade() -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as made:
        db = Database(made)
        migrations.migrations.apply(db, stop_before="m0007_replaced")
        made.executescript(HOLDS)
        assert not all(is_refused(made, statement) for statement in REFUSED)
        migrations.migrations.apply(db)
        assert all(is_refused(made, statement) for statement in REFUSED)
        assert not any(is_refused(made, statement) for statement in ALLOWED)


def test_the_triggers_are_those_that_the_journal_is_held_against() -> None:
    assert {name for name in accord.TRIGGERS if name.startswith("hold_")} == triggers().keys()


def test_all_of_each_trigger_is_found() -> None:
    """Between its comparisons nothing is left but how they are joined."""
    joints = r"(?:\s|[()]|\b(?:AND|OR|NOT|WHERE|WHEN|EXISTS|SELECT 1 FROM hold|SELECT)\b)+"
    for name, text in triggers().items():
        rest = re.sub(r"RAISE\(ABORT, 'the hold is retained'\)", "", text)
        rest = re.sub(r"CREATE TRIGGER .* ON hold\b|\bBEGIN\b|\bEND\b|;", "", rest)
        assert re.fullmatch(joints, _COMPARISON.sub("", rest)), name


@pytest.mark.parametrize(("trigger", "what", "text"), [*mutants()])
def test_no_comparison_is_idle(trigger: str, what: str, text: str) -> None:
    with closing(database(trigger, text)) as made:
        passes = [one for one in REFUSED if not is_refused(made, one)]
        stopped = [one for one in ALLOWED if is_refused(made, one)]
    assert passes or stopped, f"{trigger}: {what}"
