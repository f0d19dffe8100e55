"""Checks of the daemon: that it runs where it is installed, and that what it does succeeds."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

from bootlock.doctor.finding import Finding, Patient, fault, note, ok
from bootlockd import running
from bootlockd.config import load, parse_listen
from bootlockd.control import ask
from bootlockd.errors import ConfigError, Unreachable
from lockdb import enforcements, holds
from lockdb.database import open_db
from lockdb.enforcements import State
from lockdb.errors import DatabaseError
from lockdb.when import iso

#: Seconds that the daemon's cycle may take; it never waits for libvirt.
SILENCE = 12.0
#: Seconds that the metrics may take to accept a question.
METRICS_SILENCE = 2.0

_LOG = "see 'journalctl -u bootlockd'"
#: All whose fences write rows.
_LOGS = "see 'journalctl -u bootlockd -u bootlock-preserve'"


def daemon(patient: Patient) -> Iterator[Finding]:
    """It answers, reads this database, and is well."""
    installed = patient.systemd.exists() and any(unit.exists() for unit in patient.units)
    if not installed and not patient.control.exists():
        yield note(
            "daemon",
            "there is none: holds bar the next start, nothing is done to instances that run",
        )
        return
    try:
        (status,) = ask(patient.control, {"op": "status"}, SILENCE)
        yield from list(_judged(patient, status))
    except (Unreachable, LookupError, TypeError, ValueError) as error:
        yield fault("daemon", f"it does not answer: {error}", "systemctl restart bootlockd")


def metrics(patient: Patient) -> Iterator[Finding]:
    """They are served, where they are to be: only a note, since nothing is enforced by them."""
    if not patient.systemd.exists() or not any(unit.exists() for unit in patient.metrics_units):
        return
    mend = "see 'systemctl status bootlock-metrics'"
    try:
        listen = load(patient.settings).metrics.listen
        if listen:
            socket.create_connection(parse_listen(listen), METRICS_SILENCE).close()
            yield ok("metrics", f"they are served on {listen}")
    except ConfigError as error:
        yield note("metrics", str(error), error.hint or mend)
    except OSError as error:
        yield note("metrics", f"nobody serves them on {listen}: {error}", mend)


def preserving(patient: Patient) -> Iterator[Finding]:
    """The process that preserves runs, where a hold orders it."""
    try:
        with open_db(patient.database, read_only=True) as lock_db:
            ordered = [hold for hold in holds.active(lock_db, now=patient.now) if hold.preserve]
    except DatabaseError:
        # Another check's finding.
        return
    runs = running.is_running(running.lock_of(patient.database))
    if ordered and runs is False:
        yield fault(
            "preserving",
            f"nobody keeps the disks of {len({hold.instance for hold in ordered})} instances",
            "systemctl enable --now bootlock-preserve",
        )
    elif ordered and runs:
        yield ok("preserving", f"{len(ordered)} holds order it, and its process runs")


def enforced(patient: Patient) -> Iterator[Finding]:
    """What holds in force order is so."""
    try:
        with open_db(patient.database, read_only=True) as lock_db, lock_db.read():
            held = {hold.id for hold in holds.active(lock_db, now=patient.now)}
            rows = [row for rows in enforcements.standing(lock_db).values() for row in rows]
    except DatabaseError:
        # Another check's finding.
        return
    failed = [row for row in rows if row.state is State.FAILED]
    for row in failed:
        yield fault(
            "enforced",
            f"{row.fence} of {row.instance}, hold {row.hold}, since {iso(row.since)}: {row.detail}",
            "it is tried again; " + _LOGS,
        )
    left = {row.hold for row in rows if row not in failed} - held
    if left:
        yield note("enforced", f"not undone yet for {len(left)} holds that ended", _LOGS)
    if not failed:
        proven = len([row for row in rows if row.state is State.ENFORCED])
        yield ok("enforced", f"{proven} orders are carried out on this host, none failed")


def _judged(patient: Patient, status: dict[str, Any]) -> Iterator[Finding]:
    if status["database"] != str(patient.database):
        yield note("daemon", f"it enforces {status['database']}, not {patient.database}")
        return
    problems = {
        "database": (status["database_error"], "the holds last read stay in force; mend it"),
        "libvirt": (status["libvirt_error"], "start libvirtd"),
        "stuck": (
            ", ".join(status["stuck"]),
            "libvirt does not answer for these instances; end their QEMU if it is hung",
        ),
        "vanished": (
            ", ".join(status["vanished"]),
            "these holds are gone from the database without a release, and are enforced until "
            "bootlockd restarts: place them again, and find out who removed them",
        ),
    }
    faults = [
        fault(f"daemon: {name}", problem, mend)
        for name, (problem, mend) in problems.items()
        if problem
    ]
    looked = iso(status["looked"]) if status["looked"] else "never"
    yield from faults or [
        ok("daemon", f"it answers, enforces {status['holds']} holds, last full look {looked}")
    ]
