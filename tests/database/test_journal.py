"""The journal shows every change that was made to it."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from database.soundness import log, verified
from lockdb import database, holds, journal
from lockdb.database import LockDB
from lockdb.errors import DatabaseCorrupt
from lockdb.journal import Fault, Head
from samples import HELD, NOW, OTHER, new_hold

#: Entries in ``forged``: one "created", the others "placed".
LENGTH = 5


@dataclass(frozen=True)
class Forger:
    """Somebody with root's rights and SQL, who has put a table without rules in its place."""

    connection: sqlite3.Connection

    def run(self, statement: str, *values: object) -> None:
        self.connection.execute(statement, values)

    def entry(self, seq: int) -> dict[str, object]:
        query = "SELECT entry FROM journal WHERE seq = ?"
        entry: dict[str, object] = json.loads(self.connection.execute(query, [seq]).fetchone()[0])
        return entry

    def hash(self, seq: int) -> str:
        query = "SELECT hash FROM journal WHERE seq = ?"
        return str(self.connection.execute(query, [seq]).fetchone()[0])

    def write(self, seq: int, text: str, hashed: str | None = None) -> None:
        self.run("UPDATE journal SET entry = ? WHERE seq = ?", text, seq)
        if hashed:
            self.run("UPDATE journal SET hash = ? WHERE seq = ?", hashed, seq)

    def rewrite_from(self, seq: int) -> None:
        """Make the chain consistent again behind a changed entry, its head included."""
        for later in range(seq, LENGTH + 1):
            before = self.entry(later - 1)
            link = journal.linked(str(before["link"]), self.hash(later - 1))
            chained = {"prev": self.hash(later - 1), "link": link}
            text = journal.canonical(self.entry(later) | chained)
            self.write(later, text, journal.digest(text))
        self.set_head(LENGTH)

    def set_head(self, seq: int) -> None:
        head = f"{seq} {self.hash(seq)}"
        self.run("UPDATE meta SET value = ? WHERE key = 'journal_head'", head)


@pytest.fixture
def forged(path: Path) -> Path:
    with database.open_db(path) as lock_db:
        for number in range(LENGTH - 1):
            reason = ("plain", "quoted \"'\\", "漢字 é", "it's over")[number]
            holds.place(lock_db, new_hold((HELD, OTHER)[number % 2], reason=reason), now=NOW)
    return path


@pytest.fixture
def forger(forged: Path) -> Iterator[Forger]:
    with closing(sqlite3.connect(forged, isolation_level=None)) as connection:
        connection.executescript(
            "CREATE TABLE forged (seq INTEGER PRIMARY KEY, entry, hash);"
            "INSERT INTO forged SELECT seq, entry, hash FROM journal;"
            "DROP TABLE journal; ALTER TABLE forged RENAME TO journal"
        )
        yield Forger(connection)


def _outcome(path: Path, expected: Head | None = None) -> Head | Fault:
    with database.open_db(path) as lock_db, lock_db.read() as db:
        return journal.outcome(journal.verify(db, expected))


def _head(path: Path) -> Head:
    with database.open_db(path) as lock_db, lock_db.read() as db:
        return journal.head(db)


def test_an_untouched_journal_verifies_to_its_head(forged: Path) -> None:
    head = _head(forged)
    assert head.seq == LENGTH
    assert _outcome(forged) == head == _outcome(forged, head)
    with database.open_db(forged) as lock_db, lock_db.read() as db:
        steps = list(journal.verify(db))
    assert [step.seq for step in steps] == list(range(1, LENGTH + 1))


@pytest.mark.parametrize("seq", range(1, LENGTH + 1))
def test_a_changed_field_is_named_by_its_entry(forged: Path, forger: Forger, seq: int) -> None:
    original = forger.entry(seq)
    for name, value in original.items():
        changed = value + 1 if isinstance(value, int) else "another"
        forger.write(seq, journal.canonical(original | {name: changed}))
        assert _outcome(forged) == Fault(seq, "its text is not what was hashed"), name
    for name in original:
        forger.write(seq, journal.canonical({k: v for k, v in original.items() if k != name}))
        assert _outcome(forged) == Fault(seq, "its text is not what was hashed"), name
    forger.write(seq, journal.canonical(original | {"more": 1}))
    assert _outcome(forged) == Fault(seq, "its text is not what was hashed")
    forger.write(seq, journal.canonical(original))
    forger.run("UPDATE journal SET hash = ? WHERE seq = ?", "0" * 64, seq)
    assert _outcome(forged) == Fault(seq, "its text is not what was hashed")


@pytest.mark.parametrize("seq", range(1, LENGTH + 1))
def test_an_entry_that_was_changed_and_hashed_anew_breaks_where_it_was_noted(
    forged: Path, forger: Forger, seq: int
) -> None:
    """By the next entry, or, if it is the last, by the head."""
    text = journal.canonical(forger.entry(seq) | {"at": 0})
    forger.write(seq, text, journal.digest(text))
    if seq < LENGTH:
        assert _outcome(forged) == Fault(seq + 1, "it does not follow the entry before it")
    else:
        assert _outcome(forged) == Fault(seq, "its hash is not the one that was noted")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (json.dumps, "it is not canonical JSON"),
        (lambda fields: journal.canonical({**fields, "seq": 9}), "it says it is entry 9"),
        (lambda fields: journal.canonical({**fields, "seq": None}), "it says it is entry None"),
        (
            lambda fields: journal.canonical({**fields, "prev": "0"}),
            "it does not follow the entry ",
        ),
        (lambda fields: "[]", "it is not canonical JSON"),
        (lambda fields: "{", "it is not JSON"),
        (lambda fields: "[" * 100_000, "it is not JSON"),
        (lambda fields: '{"a":"\\ud800"}', "it is not JSON"),
        (lambda fields: "", "it is not JSON"),
    ],
)
def test_an_entry_that_is_no_entry_is_named_though_its_hash_is_right(
    forged: Path, forger: Forger, change: Callable[[object], str], problem: str
) -> None:
    text = change(forger.entry(3))
    forger.write(3, text, journal.digest(text))
    end = _outcome(forged)
    assert isinstance(end, Fault)
    assert end.seq == 3
    assert end.problem.startswith(problem)


@pytest.mark.parametrize("seq", range(1, LENGTH))
def test_a_removed_entry_is_noticed_at_the_next(forged: Path, forger: Forger, seq: int) -> None:
    forger.run("DELETE FROM journal WHERE seq = ?", seq)
    assert _outcome(forged) == Fault(seq + 1, f"entries {seq} to {seq} are missing")


@pytest.mark.parametrize("left", range(LENGTH))
def test_a_cut_tail_is_noticed_by_the_head(forged: Path, forger: Forger, left: int) -> None:
    forger.run("DELETE FROM journal WHERE seq > ?", left)
    problem = f"the journal ends at {left}, its head was {LENGTH}"
    assert _outcome(forged) == Fault(left + 1, problem)


@pytest.mark.parametrize("seq", [-1, 0, LENGTH + 1, LENGTH + 2])
def test_an_inserted_entry_is_noticed(forged: Path, forger: Forger, seq: int) -> None:
    text = journal.canonical({"at": 1, "event": "x", "prev": forger.hash(LENGTH), "seq": seq})
    forger.run(
        "INSERT INTO journal (seq, entry, hash) VALUES (?, ?, ?)", seq, text, journal.digest(text)
    )
    problem = {
        LENGTH + 1: f"the journal's head was {LENGTH}",
        LENGTH + 2: f"entries {LENGTH + 1} to {LENGTH + 1} are missing",
    }.get(seq, "it stands before the first entry")
    assert _outcome(forged) == Fault(seq, problem)


def test_swapped_entries_are_noticed(forged: Path, forger: Forger) -> None:
    for old, new in ((2, 9), (3, 2), (9, 3)):
        forger.run("UPDATE journal SET seq = ? WHERE seq = ?", new, old)
    assert _outcome(forged) == Fault(2, "it says it is entry 3")


@pytest.mark.parametrize("value", ["x'00ff'", "CAST(x'ff' AS TEXT)", "17", "''"])
@pytest.mark.parametrize("column", ["entry", "hash"])
def test_what_is_not_text_is_a_broken_entry_and_not_an_error(
    forged: Path, forger: Forger, column: str, value: str
) -> None:
    forger.run(f"UPDATE journal SET {column} = {value} WHERE seq = 3")
    assert _outcome(forged) == Fault(3, "its text is not what was hashed")


@pytest.mark.parametrize(
    "head", [None, "", "x", "5", "-1 0", "5 " + "g" * 64, "\u0665 " + "0" * 64]
)
def test_a_head_that_is_none_is_noticed(forged: Path, forger: Forger, head: str | None) -> None:
    forger.run("DELETE FROM meta WHERE key = 'journal_head'")
    if head is not None:
        forger.run("INSERT INTO meta VALUES ('journal_head', ?)", head)
    assert _outcome(forged) == Fault(1, "the journal's head was 0")


@pytest.mark.parametrize("head", [None, "x", "3 " + "0" * 64])
def test_behind_a_lost_head_nothing_is_recorded(
    forged: Path, forger: Forger, head: str | None
) -> None:
    """An entry would be one in the middle, and SQLite's own words would say nothing to anybody."""
    forger.run("DELETE FROM meta WHERE key = 'journal_head'")
    if head is not None:
        forger.run("INSERT INTO meta VALUES ('journal_head', ?)", head)
    with (
        database.open_db(forged) as lock_db,
        pytest.raises(DatabaseCorrupt, match=rf"lock\.db: the journal ends at {LENGTH}") as raised,
    ):
        holds.place(lock_db, new_hold(HELD), now=NOW)
    assert "restore a backup" in raised.value.hint
    with database.open_db(forged) as lock_db:
        assert len(holds.active(lock_db, now=NOW)) == LENGTH - 1


@pytest.mark.parametrize("seq", range(2, LENGTH + 1))
def test_a_journal_rewritten_as_a_whole_shows_against_a_head_noted_elsewhere(
    forged: Path, forger: Forger, seq: int
) -> None:
    noted = [Head(number, forger.hash(number)) for number in range(1, LENGTH + 1)]
    text = journal.canonical(forger.entry(seq) | {"reason": "forged"})
    forger.write(seq, text, journal.digest(text))
    forger.rewrite_from(seq + 1)
    assert isinstance(_outcome(forged), Head)
    for head in noted:
        if head.seq < seq:
            assert isinstance(_outcome(forged, head), Head)
        else:
            problem = "its hash is not the one that was noted"
            assert _outcome(forged, head) == Fault(head.seq, problem)


def test_a_tail_cut_together_with_the_head_shows_against_a_head_noted_elsewhere(
    forged: Path, forger: Forger
) -> None:
    noted = _head(forged)
    forger.run("DELETE FROM journal WHERE seq > 3")
    forger.set_head(3)
    assert isinstance(_outcome(forged), Head)
    problem = f"the journal ends at 3, its head was {LENGTH}"
    assert _outcome(forged, noted) == Fault(4, problem)


@pytest.mark.parametrize(
    "statement", ["UPDATE journal SET hash = hash", "DELETE FROM journal WHERE seq = 1"]
)
def test_the_database_itself_refuses_to_change_an_entry(forged: Path, statement: str) -> None:
    with (
        closing(sqlite3.connect(forged)) as connection,
        pytest.raises(sqlite3.IntegrityError, match="the journal is append-only"),
    ):
        connection.execute(statement)


def test_an_entry_belongs_into_the_transaction_of_what_it_records(lock_db: LockDB) -> None:
    with pytest.raises(RuntimeError, match="belongs into the transaction"):
        journal.append(lock_db.db, "placed", NOW)


@pytest.mark.parametrize("name", ["seq", "prev", "link", "salt"])
def test_a_fact_can_not_take_the_place_of_what_ties_an_entry(lock_db: LockDB, name: str) -> None:
    with pytest.raises(TypeError), lock_db.write() as db:
        journal.append(db, "placed", NOW, **{name: "mine"})
    assert isinstance(verified(lock_db), Head)


@pytest.mark.parametrize("link", [None, "0" * 64, 7, ["x"]])
def test_an_entry_is_tied_to_all_before_it_by_its_link_too(
    forged: Path, forger: Forger, link: object
) -> None:
    entry = forger.entry(4)
    text = journal.canonical({k: v for k, v in (entry | {"link": link}).items() if v is not None})
    forger.write(4, text, journal.digest(text))
    assert _outcome(forged) == Fault(4, "its link is not to the entries before it")


def test_entries_from_before_there_were_links_are_linked_by_the_next(
    forged: Path, forger: Forger
) -> None:
    """As an older bootlock left them."""
    hashed = journal.GENESIS
    for seq in range(1, LENGTH + 1):
        entry = {k: v for k, v in forger.entry(seq).items() if k not in {"link", "salt"}}
        text = journal.canonical(entry | {"prev": hashed})
        hashed = journal.digest(text)
        forger.write(seq, text, hashed)
    forger.set_head(LENGTH)
    assert _outcome(forged) == _head(forged)
    with database.open_db(forged) as lock_db:
        holds.place(lock_db, new_hold(HELD), now=NOW)
        holds.place(lock_db, new_hold(HELD), now=NOW)
    assert _outcome(forged) == _head(forged)
    link = journal.GENESIS
    for seq in range(1, LENGTH + 2):
        link = journal.linked(link, forger.hash(seq))
    assert forger.entry(LENGTH + 2)["link"] == link


def test_entries_are_chosen_by_instance_event_and_number(forged: Path) -> None:
    with database.open_db(forged) as lock_db, lock_db.read() as db:

        def chosen(**filters: str | int) -> list[int]:
            found = journal.entries(db, **filters)  # type: ignore[arg-type]
            return [json.loads(entry)["seq"] for entry in found]

        assert chosen() == [1, 2, 3, 4, 5]
        assert chosen(last=2) == [4, 5]
        assert chosen(instance=HELD) == [2, 4]
        assert chosen(instance=HELD, last=1) == [4]
        assert chosen(event="created") == [1]
        assert chosen(event="created", instance=HELD) == []


# The promise of the module: nothing but sha256sum is needed.
_CHECK = r"""
prev=0000000000000000000000000000000000000000000000000000000000000000
while IFS= read -r line; do
    case $line in *'"prev":"'"$prev"'"'*) ;; *) echo "broken: $line"; exit 1 ;; esac
    prev=$(printf %s "$line" | sha256sum); prev=${prev%% *}
done
echo "$prev"
"""


def test_an_export_verifies_with_sha256sum_alone(lock_db: LockDB) -> None:
    with lock_db.write() as db:
        for number, name in enumerate(["a\nb", "\u2028\x85\x7f", '"\\', "漢😀", "", " x "]):
            journal.append(db, "refused", NOW, name=name, number=number, nothing=None)
    with lock_db.read() as db:
        lines = "".join(f"{entry}\n" for entry in journal.entries(db))
        head = journal.head(db)
    checked = subprocess.run(
        ["/bin/sh", "-euc", _CHECK], input=lines.encode(), capture_output=True, check=True
    )
    assert checked.stdout.decode() == f"{head.hash}\n"
    assert lines.count("\n") == head.seq


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.lists(st.text()),
    )
)
def test_canonical_json_is_one_line_and_its_own_canonical_form(facts: dict[str, object]) -> None:
    text = journal.canonical(facts)
    assert "\n" not in text
    assert json.loads(text) == facts
    assert journal.canonical(json.loads(text)) == text
    assert journal.canonical(dict(reversed(facts.items()))) == text


def test_what_happened_is_in_the_journal_in_order(lock_db: LockDB) -> None:
    hold = holds.place(lock_db, new_hold(), now=NOW)
    holds.release(lock_db, hold.id, reason="paid", by="clerk", now=NOW + 1)
    assert [(entry["seq"], entry["event"], entry["at"]) for entry in log(lock_db)] == [
        (1, "created", 1),
        (2, "placed", NOW),
        (3, "released", NOW + 1),
    ]
    assert isinstance(verified(lock_db), Head)
