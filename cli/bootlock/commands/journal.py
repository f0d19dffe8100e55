"""bootlock journal show, verify and export."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import click
from sqlite_utils import Database

from bootlock import fleet, output
from bootlock.app import App, complete_instance, json_option, pass_app
from bootlock.exits import Exit
from lockdb import accord, refusals
from lockdb import journal as chain
from lockdb.database import LockDB
from lockdb.errors import DatabaseBusy, DatabaseForbidden, DatabaseFull, InvalidValue
from lockdb.when import iso

_ENVELOPE = {"seq", "at", "event", "prev", "link", "salt", "instance"}


@click.group()
def journal() -> None:
    """Show, verify or export the journal.

    The journal is the hash-chained record of everything placed, released, permitted and refused.

    \b
    Example:
      bootlock journal show --instance web-7
      bootlock journal verify
    """


@journal.command("show")
@click.option("--instance", shell_complete=complete_instance, help="Only about this UUID or name.")
@click.option("-n", "--last", type=click.IntRange(1), metavar="N", help="Only the last N entries.")
@json_option
@pass_app
def show(app: App, instance: str | None, last: int | None, as_json: bool) -> None:
    """Show the entries, oldest first.

    \b
    Example:
      bootlock journal show --last 20
    """
    uuid = app.resolve(instance) if instance else None
    with _spooled(app) as lock_db, lock_db.read() as db:
        entries = [json.loads(entry) for entry in chain.entries(db, instance=uuid, last=last)]
    if as_json:
        output.print_json(entries)
    else:
        output.print_table(
            ["SEQ", "AT", "EVENT", "INSTANCE", "FACTS"], [_row(entry) for entry in entries]
        )


@journal.command("verify")
@click.option(
    "--head", metavar="SEQ:HASH", help="A head noted earlier, which must be in the chain."
)
@click.option(
    "--fleet", "in_fleet", is_flag=True, help="Use the head that this host told the registry."
)
@json_option
@pass_app
def verify(app: App, head: str | None, in_fleet: bool, as_json: bool) -> int:
    """Check every hash of the chain, and that retained holds are what it says of them.

    Exit code 1: broken, and the first broken entry is named; or the database denies what it says.

    The head that is printed can be noted elsewhere and given to a later check: only so can it show
    that somebody rewrote the whole journal.

    \b
    Example:
      bootlock journal verify --head 1742:9f86d081...
    """
    if head and in_fleet:
        raise click.UsageError("--head and --fleet are two ways to say the same")
    expected = _head(head) if head else fleet.noted_head(app) if in_fleet else None
    with _spooled(app) as lock_db, lock_db.read() as db:
        end = verified(db, expected)
        denied = [] if isinstance(end, chain.Fault) else list(accord.contradictions(db))
    if as_json:
        output.print_json(_verdict(end) | {"contradictions": denied})
    elif isinstance(end, chain.Fault):
        click.echo(f"broken at entry {end.seq}: {end.problem}")
    else:
        click.echo(f"{end.seq} entries, unbroken; head {end.seq}:{end.hash}")
        for line in denied:
            click.echo(output.printable(f"the database contradicts the journal: {line}"))
    return Exit.REFUSED if denied or isinstance(end, chain.Fault) else Exit.DONE


def verified(db: Database, expected: chain.Head | None = None) -> chain.Head | chain.Fault:
    """Where the chain ends or breaks, with a line of progress on a terminal."""
    with click.progressbar(
        chain.verify(db, expected),
        length=chain.head(db).seq,
        label="verifying",
        file=sys.stderr,
        hidden=not sys.stderr.isatty(),
    ) as steps:
        return chain.outcome(steps)


@journal.command("export")
@click.option("-o", "--output", "file", type=click.File("wb", atomic=True), default="-")
@pass_app
def export(app: App, file: BinaryIO) -> None:
    """Write the entries as lines of JSON, exactly as they were hashed.

    The SHA-256 of each line, without its newline, is the "prev" of the next: sha256sum is enough to
    check an export.

    \b
    Example:
      bootlock journal export -o journal.jsonl
    """
    with _spooled(app) as lock_db, lock_db.read() as db:
        for entry in chain.entries(db):
            file.write(entry.encode() + b"\n")


@contextmanager
def _spooled(app: App) -> Iterator[LockDB]:
    """The database with the hook's refusals in the journal, where this user and disk allow it."""
    try:
        with app.write() as lock_db:
            refusals.drain(lock_db, now=app.now())
    except (DatabaseBusy, DatabaseForbidden, DatabaseFull) as error:
        output.note(f"the latest refusals are not in the journal yet: {error}")
    with app.read() as lock_db:
        yield lock_db


def _row(entry: dict[str, Any]) -> list[object]:
    facts = " ".join(
        f"{name}={json.dumps(value, ensure_ascii=False)}"
        for name, value in entry.items()
        if name not in _ENVELOPE and value not in (None, "")
    )
    return [entry["seq"], iso(entry["at"]), entry["event"], entry.get("instance", "-"), facts]


def _head(text: str) -> chain.Head:
    seq, _, value = text.strip().lower().partition(":")
    if not seq.isdecimal() or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise InvalidValue("--head", "must be SEQ:HASH, as 'bootlock journal verify' prints it")
    return chain.Head(int(seq), value)


def _verdict(end: chain.Head | chain.Fault) -> dict[str, Any]:
    if isinstance(end, chain.Fault):
        return {"sound": False, "broken_at": end.seq, "problem": end.problem}
    return {"sound": True, "entries": end.seq, "head": f"{end.seq}:{end.hash}"}
