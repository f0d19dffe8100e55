"""bootlock export."""

from __future__ import annotations

import platform
import sqlite3
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import click

from bootlock import __version__, definition, evidence, output
from bootlock.actor import actor
from bootlock.app import App, complete_instance, json_option, pass_app
from bootlock.commands.journal import verified
from bootlock.exits import Exit
from bootlock.output import moment
from bootlockd.config import load
from bootlockd.errors import ConfigError
from bootlockd.fleet.keys import host_name
from lockdb import accord, disks, enforcements, holds, permits, preserved, refusals
from lockdb import journal as chain
from lockdb.database import LockDB
from lockdb.errors import (
    DatabaseBusy,
    DatabaseForbidden,
    DatabaseFull,
    InvalidValue,
    NotFound,
)
from lockdb.when import parse_since


@click.command()
@click.argument("instance", shell_complete=complete_instance)
@click.option(
    "-o",
    "--output",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, readable=False),
    help="The archive; it must not exist yet. Default: one in this directory, named after the "
    "instance and the time.",
)
@click.option(
    "--since",
    metavar="WHEN",
    help="Of the journal only what came after: 90d (ago) or an ISO time.",
)
@json_option
@pass_app
def export(app: App, instance: str, file: Path | None, since: str | None, as_json: bool) -> int:
    """Write all that is known of INSTANCE into one archive that anybody can check.

    That are its holds, permits, refusals, what was done for each hold, its definition without
    passwords, and the journal's entries about it, which can be shown to be part of this host's
    journal without the others' text. The README in the archive says how to check it, with
    sha256sum and python3.

    Note what is printed and keep it elsewhere than the archive: the check asks for it.

    Exit code 1: it was written, and the journal on this host is not sound.

    \b
    Example:
      bootlock export web-7 --output AZ-17-26.tar
    """
    now = app.now()
    uuid = app.resolve(instance)
    begin = parse_since("--since", since, now) if since else None
    path = file or Path(f"bootlock-evidence-{uuid}-{moment(now).replace(':', '')}.tar")
    _must_be_known(app, uuid)
    found = definition.for_archive(app, uuid)
    _record(app, "export_began", instance=uuid, by=actor(), since=begin)
    try:
        with app.read() as lock_db, evidence.new_file(path) as archive:
            about = _about(app, lock_db, uuid, now) | {"definition": dict(found.about)}
            about["journal"] = {"since": begin}
            summary = _write(lock_db, archive, path.absolute().parent, about, found.files)
        summary |= {"file": str(path), "sha256": evidence.digest_of(path)}
    except FileExistsError as error:
        raise InvalidValue("--output", f"{path} exists", "choose another name") from error
    except OSError as error:
        raise click.FileError(str(path), error.strerror or repr(error)) from error
    _record(app, "exported", instance=uuid, by=actor(), manifest=summary["manifest_sha256"])
    if as_json:
        output.print_json(summary)
    else:
        _print(summary)
    if not summary["sound"]:
        output.note("the journal on this host is not sound, see 'bootlock journal verify'")
    return Exit.DONE if summary["sound"] else Exit.REFUSED


def _must_be_known(app: App, uuid: str) -> None:
    with app.read() as lock_db, lock_db.read() as db:
        if next(chain.entries(db, instance=uuid, last=1), None) is None:
            raise NotFound(f"nothing is known of {uuid}", "it was never held on this host")


def _record(app: App, event: str, **facts: Any) -> None:
    """Journal it, if this user and disk allow it; before, what the hook has refused."""
    try:
        with app.write() as lock_db:
            refusals.drain(lock_db, now=app.now())
            with lock_db.write() as db:
                chain.append(db, event, app.now(), **facts)
    except (DatabaseBusy, DatabaseForbidden, DatabaseFull) as error:
        output.note(f"the export is not in the journal: {error}")


def _about(app: App, lock_db: LockDB, uuid: str, now: int) -> dict[str, Any]:
    with lock_db.read() as db:
        steps = [name for (name,) in db.execute("SELECT name FROM _sqlite_migrations ORDER BY id")]
        made = next(chain.entries(db, event="created"), None)
    return {
        "format": 1,
        "instance": uuid,
        "at": now,
        "by": actor(),
        "host": {
            "name": platform.node(),
            "machine_id": _machine_id(),
            "fleet_name": _fleet_name(app),
        },
        "versions": {
            "bootlock": __version__,
            "schema": steps[-1] if steps else None,
            "sqlite": sqlite3.sqlite_version,
            "python": platform.python_version(),
            "kernel": platform.release(),
        },
        "database": {"path": str(app.database), "created": made and chain.digest(made)},
    }


def _machine_id() -> str | None:
    try:
        return Path("/etc/machine-id").read_text("ascii").strip()
    except (OSError, ValueError):
        return None


def _fleet_name(app: App) -> str | None:
    try:
        fleet = load(app.config).fleet
    except ConfigError:
        return None
    return host_name(fleet) if fleet.endpoints else None


def _write(
    lock_db: LockDB,
    archive: IO[bytes],
    beside: Path,
    about: dict[str, Any],
    definitions: Mapping[str, bytes],
) -> dict[str, Any]:
    """One snapshot of the database, all of it. ``beside``: where there is room for a draft."""
    uuid = about["instance"]
    with ExitStack() as stack:
        db = stack.enter_context(lock_db.read())
        entries, hashes = (
            stack.enter_context(tempfile.TemporaryFile(dir=beside)) for _ in range(2)
        )
        end = verified(db)
        denied = [] if isinstance(end, chain.Fault) else list(accord.contradictions(db))
        first = evidence.first_since(db, about["journal"]["since"])
        proof = evidence.write_journal(db, uuid, first, entries=entries, hashes=hashes)
        head = chain.head(db)
        about["journal"] |= {
            "first": proof.first,
            "link": proof.link,
            "head": f"{head.seq}:{head.hash}",
            "entries_shown": proof.entries,
            "sound": isinstance(end, chain.Head),
            "problem": end.problem if isinstance(end, chain.Fault) else None,
            "contradictions": denied,
        }
        kept_as = about["definition"].get("sha256")
        if kept_as:
            entry = evidence.entry_that_kept(db, uuid, kept_as, first=first)
            about["definition"] |= {"entry": entry}
        held = holds.history(lock_db, instance=uuid)
        granted = permits.history(lock_db, instance=uuid)
        tar = evidence.Writer(archive, f"bootlock-evidence-{uuid}", about["at"])
        facts = {
            "instance": uuid,
            "host": output.printable(about["host"]["name"]),
            "at": moment(about["at"]),
            "version": __version__,
        }
        tar.add("README.txt", evidence.readme(facts))
        tar.add_json("about.json", about)
        tar.add_json("holds.json", [hold.as_dict() for hold in held])
        tar.add_json("permits.json", [permit.as_dict() for permit in granted])
        refused = refusals.of_instance(lock_db, uuid)
        tar.add_json("refusals.json", [asdict(refusal) for refusal in refused])
        rows = enforcements.of_instance(lock_db, uuid)
        tar.add_json("enforcements.json", [row.as_dict() for row in rows])
        tar.add_json("disks.json", disks.of_instance(lock_db, uuid))
        kept = preserved.of_instance(lock_db, uuid)
        tar.add_json("preserved.json", [row.as_dict() for row in kept])
        for name, content in definitions.items():
            tar.add(name, content)
        tar.add("journal/entries.jsonl", entries)
        tar.add("journal/hashes.txt", hashes)
        manifest, names = tar.close()
    return {
        "instance": uuid,
        "manifest_sha256": manifest,
        "journal_head": about["journal"]["head"],
        "sound": about["journal"]["sound"] and not denied,
        "holds": len(held),
        "permits": len(granted),
        "refusals": sum(refusal.count for refusal in refused),
        "journal_entries": proof.entries,
        "files": names,
    }


def _print(summary: dict[str, Any]) -> None:
    output.print_fields(
        {
            "file": summary["file"],
            "sha256": summary["sha256"],
            "MANIFEST_SHA256": summary["manifest_sha256"],
            "JOURNAL_HEAD": summary["journal_head"],
            "holds": summary["holds"],
            "permits": summary["permits"],
            "refusals": summary["refusals"],
            "journal entries": summary["journal_entries"],
        }
    )
