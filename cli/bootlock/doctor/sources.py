"""Checks of the sources of holds: that each is read, and what it leaves to an admin."""

from __future__ import annotations

from collections.abc import Iterator

from bootlock.doctor.finding import Finding, Patient, fault, note, ok
from bootlockd.sources.registry import sources as configured
from lockdb import sources as stored
from lockdb.database import LockDB, open_db
from lockdb.errors import DatabaseError
from lockdb.sources import Marks, State
from lockdb.when import iso

_LOG = "see 'journalctl -u bootlock-sync'"


def sources(patient: Patient) -> Iterator[Finding]:
    """What is configured is read, and nothing waits or is missing."""
    names = [source.name for source in configured(patient.config)]
    try:
        with open_db(patient.database, read_only=True) as lock_db, lock_db.read():
            states = {state.name: state for state in stored.all_stored(lock_db)}
            findings = [
                finding
                for name in names
                for finding in _judged(patient, lock_db, states.get(name, State(name)))
            ]
            for name in sorted(states.keys() - set(names)):
                count = len(stored.refs(lock_db, name))
                findings.append(
                    note(
                        f"source {name}",
                        f"it is not configured any more; {count} of its holds stay",
                        "'bootlock release HOLD --override-source' ends one, "
                        f"'bootlock sync --forget {name}' the source",
                    )
                )
    except DatabaseError:
        # Another check's finding.
        return
    yield from findings


def _judged(patient: Patient, lock_db: LockDB, state: State) -> Iterator[Finding]:
    check = f"source {state.name}"
    if state.tried_at is None:
        yield note(check, "it was never read", "systemctl start bootlock-sync")
        return
    faults = list(_faults(patient, lock_db, state))
    yield from faults
    if not faults and state.read_at is not None:
        held = len(stored.refs(lock_db, state.name))
        retained = len(stored.retained(lock_db, state.name))
        more = f"; {retained} would end and are retained" if retained else ""
        yield ok(check, f"{held} holds, read at {iso(state.read_at)}{more}")


def _faults(patient: Patient, lock_db: LockDB, state: State) -> Iterator[Finding]:
    check = f"source {state.name}"
    if state.error:
        since = iso(state.error_since or 0)
        yield fault(check, f"can't be read since {since}, its holds stay: {state.error}", _LOG)
    elif patient.now - (state.read_at or 0) > patient.config.sync.stale_after:
        yield fault(
            check,
            f"silent since {iso(state.read_at or 0)}; what it placed since is not held here",
            f"systemctl restart bootlock-sync; {_LOG}",
        )
    if waiting := len(stored.stopped(lock_db, state.name, now=patient.now)):
        yield fault(
            check,
            f"{waiting} holds would end, more than may at once: nothing is released",
            f"'bootlock sync {state.name}' shows them, and how to accept it",
        )
    if state.vanished.count:
        yield fault(
            check,
            f"{state.vanished.count} holds are not shown any more, and stay: "
            + _examples(state.vanished),
            "bring them back there, or end each with 'bootlock release HOLD --override-source'",
        )
    if state.faults.count:
        yield fault(
            check, f"{state.faults.count} faults: {_examples(state.faults)}", "mend them there"
        )


def _examples(marks: Marks) -> str:
    return "; ".join(marks.first) + "; ..." * (marks.count > len(marks.first))
