"""bootlock status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from bootlock import output
from bootlock.app import App, json_option, pass_app
from bootlock.commands.doctor import patient_of, print_finding
from bootlock.doctor import QUICK
from bootlock.doctor.finding import Level
from bootlock.exits import Exit
from lockdb import counts, holds, journal, permits, proofs, refusals, sources
from lockdb.database import LockDB
from lockdb.errors import DatabaseError
from lockdb.values import Kind


@click.command()
@json_option
@pass_app
def status(app: App, as_json: bool) -> int:
    """Show what is in force, and since when it is armed.

    Looks only; "bootlock doctor" tries it out. Exit code 1: not healthy.

    \b
    Example:
      bootlock status --json
    """
    now = app.now()
    patient = patient_of(app)
    findings = [finding for check in QUICK for finding in check(patient)]
    faults = [finding for finding in findings if finding.level is Level.FAULT]
    try:
        facts = _facts(app, now)
    except DatabaseError:
        # It is among the findings.
        facts = {}
    if as_json:
        output.print_json(
            facts
            | {
                "healthy": not faults,
                "findings": [finding.as_dict() for finding in findings],
            }
        )
    else:
        output.print_fields(
            {
                name.replace("_", " "): value
                for name, value in facts.items()
                if name not in {"armed", "enforcement", "sources"}
            }
        )
        for fence, states in facts.get("enforcement", {}).items():
            numbers = ", ".join(f"{count} {state}" for state, count in states.items())
            click.echo(f"fence {fence}: {numbers}".replace("_", " "))
        for finding in findings:
            print_finding(finding)
    return Exit.REFUSED if faults else Exit.DONE


def _facts(app: App, now: int) -> dict[str, Any]:
    with app.read() as lock_db, lock_db.read() as db:
        kinds = Counter(hold.kind for hold in holds.active(lock_db, now=now))
        head = journal.head(db)
        return {
            "database": str(app.database),
            "boot_locks": kinds[Kind.BOOT_LOCK],
            "state_locks": kinds[Kind.STATE_LOCK],
            "permits": len(permits.active(lock_db, now=now)),
            "refusals_not_yet_in_the_journal": sum(r.count for r in refusals.pending(lock_db)),
            "journal_head": f"{head.seq}:{head.hash}",
            "enforcement": _by_fence(counts.enforcements(lock_db)),
            "armed": [asdict(proof) for proof in proofs.stored(lock_db)],
            "sources": _sources(lock_db, now),
        }


def _sources(lock_db: LockDB, now: int) -> list[dict[str, Any]]:
    return [
        {
            "source": state.name,
            "holds": len(sources.refs(lock_db, state.name)),
            "read_at": state.read_at,
            "whole_at": state.whole_at,
            "error": state.error or None,
            "error_since": state.error_since,
            "vanished": state.vanished.count,
            "faults": state.faults.count,
            "waiting": len(sources.stopped(lock_db, state.name, now=now)),
            "retained": len(sources.retained(lock_db, state.name)),
        }
        for state in sources.all_stored(lock_db)
    ]


def _by_fence(numbers: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    fences: dict[str, dict[str, int]] = {}
    for (fence, state), count in numbers.items():
        fences.setdefault(fence, {})[state] = count
    return fences
