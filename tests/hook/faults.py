"""Everything that can keep the hook from deciding, by name: ``FAULTS``.

Each comes with the document of a guest that is free: a refusal can only come from the fault.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hook.wrappers import CLOSED_STDIN, NOBODY, ROOT_WITHOUT_POWERS, full_disk, read_only
from hookrunner import DECIDE, Answer, Hook, domain_xml
from samples import FREE


@dataclass(frozen=True)
class Broken:
    """A hook that can't decide, why not in its own words, and how to call it."""

    hook: Hook
    why: str
    document: bytes = domain_xml(FREE).encode()
    wrapper: tuple[str, ...] = ()

    def run(self, operation: str) -> Answer:
        return self.hook.run(self.document, operation, wrapper=self.wrapper)


Fault = Callable[[Hook], Iterator[Broken]]
FAULTS: dict[str, Fault] = {}


def _fault(name: str) -> Callable[[Fault], Fault]:
    def register(fault: Fault) -> Fault:
        assert name not in FAULTS
        FAULTS[name] = fault
        return fault

    return register


# The database.


@_fault("database missing")
def _missing(hook: Hook) -> Iterator[Broken]:
    hook.database.unlink()
    yield Broken(hook, "lock.db is missing")


@_fault("database directory missing")
def _no_directory(hook: Hook) -> Iterator[Broken]:
    yield Broken(hook.with_paths(database=Path("/nowhere/lock.db")), "lock.db is missing")


@_fault("database a directory")
def _directory(hook: Hook) -> Iterator[Broken]:
    hook.database.unlink()
    hook.database.mkdir()
    yield Broken(hook, "unable to open database")


@_fault("not a database")
def _garbage(hook: Hook) -> Iterator[Broken]:
    hook.database.write_bytes(random.Random(1).randbytes(20_000))
    yield Broken(hook, "file is not a database")


@_fault("another database")
def _foreign(hook: Hook) -> Iterator[Broken]:
    hook.database.unlink()
    execute(hook.database, "CREATE TABLE hold (id)")
    yield Broken(hook, "no such table: meta")


@_fault("table missing")
def _incomplete(hook: Hook) -> Iterator[Broken]:
    execute(hook.database, "DROP TABLE permit")
    yield Broken(hook, "no such table: permit")


def _truncated(length: Callable[[int], int], why: str, hook: Hook) -> Iterator[Broken]:
    with hook.database.open("r+b") as file:
        file.truncate(length(hook.database.stat().st_size))
    yield Broken(hook, why)


_MALFORMED = "database disk image is malformed"
for _name, _length, _why in (
    ("to nothing", lambda size: 0, "lock.db is empty"),
    ("to one byte", lambda size: 1, "no such table: meta"),
    ("inside the header", lambda size: 99, _MALFORMED),
    ("behind the header", lambda size: 512, _MALFORMED),
    ("to one page", lambda size: 4096, _MALFORMED),
    ("inside the second page", lambda size: 5000, _MALFORMED),
    ("by half", lambda size: size // 2, _MALFORMED),
    ("by one page", lambda size: size - 4096, _MALFORMED),
    ("by a page and a byte", lambda size: size - 4097, _MALFORMED),
):
    FAULTS[f"truncated {_name}"] = partial(_truncated, _length, _why)


def _format(change: str, why: str, hook: Hook) -> Iterator[Broken]:
    execute(hook.database, change)
    yield Broken(hook, f"the database is of decision format {why}, this hook reads 2")


for _name, _change, _why in (
    ("older", "UPDATE meta SET value = '0' WHERE key = 'decision'", "0"),
    ("newer", "UPDATE meta SET value = '3' WHERE key = 'decision'", "3"),
    ("unknown", "DELETE FROM meta WHERE key = 'decision'", "none"),
):
    FAULTS[f"format {_name}"] = partial(_format, _change, _why)


def _locked(before: str, hook: Hook) -> Iterator[Broken]:
    with closing(sqlite3.connect(hook.database, isolation_level=None)) as writer:
        writer.execute(before)
        writer.execute("BEGIN EXCLUSIVE")
        writer.execute("UPDATE meta SET value = value")
        yield Broken(hook, "database is locked")


for _name, _before in (
    ("with a rollback journal", "PRAGMA journal_mode = DELETE"),
    ("in exclusive mode", "PRAGMA locking_mode = EXCLUSIVE"),
):
    FAULTS[f"locked {_name}"] = partial(_locked, _before)


@_fault("directory unreadable")
def _no_entry(hook: Hook) -> Iterator[Broken]:
    _belongs_to_nobody(hook.database.parent, 0o700)
    yield Broken(hook, "is missing or out of reach", wrapper=ROOT_WITHOUT_POWERS)


@_fault("file unreadable")
def _no_reading(hook: Hook) -> Iterator[Broken]:
    _belongs_to_nobody(hook.database, 0o600)
    yield Broken(hook, "unable to open database file", wrapper=ROOT_WITHOUT_POWERS)


@_fault("full disk")
def _full(hook: Hook) -> Iterator[Broken]:
    """Nobody has opened the database yet: there is no room for SQLite's shared memory file."""
    yield Broken(hook, "disk I/O error", wrapper=full_disk(hook.database.parent))


@_fault("read-only file system")
def _read_only(hook: Hook) -> Iterator[Broken]:
    yield Broken(hook, "unable to open database file", wrapper=read_only(hook.database.parent))


# The programs.


@_fault("sqlite3 missing")
def _no_sqlite3(hook: Hook) -> Iterator[Broken]:
    yield Broken(hook.with_paths(sqlite3=Path("/nowhere/sqlite3")), "/nowhere/sqlite3 is missing")


@_fault("sqlite3 killed")
def _killed(hook: Hook) -> Iterator[Broken]:
    killed = program(hook.directory / "sqlite3", "kill -9 $$")
    yield Broken(hook.with_paths(sqlite3=killed), f"{killed} gave no answer to {DECIDE}")


@_fault("decide.sql missing")
def _no_decide(hook: Hook) -> Iterator[Broken]:
    yield Broken(hook.with_paths(decide=Path("/nowhere/decide.sql")), "/nowhere/decide.sql is miss")


def _cut_decide(length: Callable[[int], int], why: str, hook: Hook) -> Iterator[Broken]:
    cut = hook.directory / "decide.sql"
    text = DECIDE.read_text()
    cut.write_text(text[: length(len(text))])
    yield Broken(hook.with_paths(decide=cut), why)


#: Where it begins; what it is made of is before.
_STATEMENT = DECIDE.read_text("utf-8").index("\nSELECT\n")

for _name, _length, _why in (
    ("empty", lambda size: 0, "gave no answer"),
    ("without its statement", lambda size: _STATEMENT, "incomplete input"),
    ("cut in half", lambda size: size // 2, "error"),
    ("without its end", lambda size: size - 10, "error"),
):
    FAULTS[f"decide.sql {_name}"] = partial(_cut_decide, _length, _why)


# The document.

_WHOLE = domain_xml(FREE).encode()
_UUID = f"<uuid>{FREE}</uuid>".encode()
_NO_UUID = "the domain XML has no UUID"
_NOT_WHOLE = "the domain XML is not whole"
_NO_XML = "libvirt gave no domain XML"


@_fault("stdin closed")
def _closed(hook: Hook) -> Iterator[Broken]:
    yield Broken(hook, _NO_XML, wrapper=CLOSED_STDIN)


def _document(document: bytes, why: str, hook: Hook) -> Iterator[Broken]:
    yield Broken(hook, why, document)


for _name, _bytes, _why in (
    ("stdin empty", b"", _NO_XML),
    ("a blank line", b"\n", _NOT_WHOLE),
    ("not XML", b"allow\n", _NOT_WHOLE),
    ("no UUID", _WHOLE.replace(_UUID, b""), _NO_UUID),
    ("UUID empty", _WHOLE.replace(_UUID, b"<uuid></uuid>"), _NO_UUID),
    ("UUID too short", _WHOLE.replace(FREE.encode(), FREE[:-1].encode()), _NO_UUID),
    ("UUID too long", _WHOLE.replace(FREE.encode(), FREE.encode() + b"0"), _NO_UUID),
    ("UUID with another letter", _WHOLE.replace(b"ffffffff", b"fffffffg"), _NO_UUID),
    ("UUID with other hyphens", _WHOLE.replace(b"ffffffff-2", b"fffffff-f2"), _NO_UUID),
    ("UUID in two lines", _WHOLE.replace(b"<uuid>", b"<uuid>\n"), _NO_UUID),
    ("XML cut at its end", _WHOLE[:-11], _NOT_WHOLE),
    ("XML cut behind the UUID", _WHOLE[: _WHOLE.index(_UUID) + 49], _NOT_WHOLE),
    ("XML cut inside the UUID", _WHOLE[: _WHOLE.index(_UUID) + 20], _NOT_WHOLE),
    ("XML without its start", _WHOLE[3:], _NOT_WHOLE),
    (
        "another UUID first",
        _WHOLE.replace(b"<name>", b"<genid>x</genid>" + _UUID + b"<name>"),
        _NO_UUID,
    ),
    ("UUID in the name", _WHOLE.replace(b"<name>", b"<name>" + _UUID), _NO_UUID),
    (
        "UUID in metadata",
        _WHOLE.replace(b"<name>", b"<metadata>" + _UUID + b"</metadata><name>"),
        _NO_UUID,
    ),
    ("comment before", b"<!--" + _UUID + b"-->" + _WHOLE, _NOT_WHOLE),
    ("comment inside", _WHOLE.replace(b"<name>", b"<!--" + _UUID + b"--><name>"), _NO_UUID),
    ("document type", b"<!DOCTYPE domain>" + _WHOLE, _NOT_WHOLE),
    ("record separator", _WHOLE.replace(b"65536", b"\x1e"), _NO_XML),
    ("unit separator", _WHOLE.replace(b"65536", b"\x1f"), _NOT_WHOLE),
    ("zero byte", _WHOLE.replace(b"65536", b"\0"), _NOT_WHOLE),
    ("two documents", _WHOLE + b"\x1e" + _WHOLE, _NO_XML),
):
    FAULTS[f"document: {_name}"] = partial(_document, _bytes, _why)


def execute(path: Path, statement: str) -> None:
    """Change the database behind everybody's back."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def program(path: Path, script: str) -> Path:
    """A shell script, ready to run."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def _belongs_to_nobody(path: Path, mode: int) -> None:
    os.chown(path, NOBODY, NOBODY)
    path.chmod(mode)
