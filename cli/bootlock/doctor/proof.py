"""The check that matters: libvirt refuses a canary, through our hook."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from bootlock import canary, hypervisor
from bootlock.doctor.finding import Finding, Patient, fault, ok
from bootlock.exits import Unreachable
from lockdb import proofs
from lockdb.database import open_db
from lockdb.errors import DatabaseError
from lockdb.when import iso

#: The daemons that run hooks, as the kernel names their processes.
DAEMONS = ("libvirtd", "virtqemud", "virtlxcd", "virtxend")

_PROVE = "run 'bootlock doctor' as root"


def armed(patient: Patient) -> Iterator[Finding]:
    """A canary at each libvirt that answers is refused; the outcome is recorded."""
    try:
        uris = hypervisor.reachable(patient.uris)
    except Unreachable as error:
        yield fault("armed", str(error), "start libvirtd, then run 'bootlock doctor' again")
        return
    for uri in uris:
        yield _armed(patient, uri)


def last_proofs(patient: Patient) -> Iterator[Finding]:
    """What the last canaries showed, without trying again."""
    try:
        with open_db(patient.database, read_only=True) as lock_db:
            known = proofs.stored(lock_db)
    except DatabaseError:
        # Another check's finding.
        return
    if not known:
        yield fault("armed", "it was never proven that libvirt asks the hook", _PROVE)
    for proof in known:
        if proof.armed:
            detail = f"{proof.uri} since {iso(proof.since)}, last proven {iso(proof.at)}"
            yield ok("armed", detail)
        else:
            yield fault("armed", f"{proof.uri}: {proof.answer}", _PROVE)


def _armed(patient: Patient, uri: str) -> Finding:
    try:
        proof = canary.prove(uri)
    except Unreachable as error:
        return fault("armed", str(error), "see libvirtd's log")
    recorded = _record(patient, proof)
    if recorded:
        return recorded
    if proof.armed:
        return ok("armed", f"{uri} refused a canary just now")
    return fault(
        "armed",
        f"{uri}: {proof.answer}",
        "libvirt looks for new hooks only when told: kill -HUP its daemon",
        lambda: _tell_libvirt(uri),
    )


def _record(patient: Patient, proof: canary.Proof) -> Finding | None:
    try:
        with open_db(patient.database) as lock_db:
            proofs.record(
                lock_db, proof.uri, armed=proof.armed, answer=proof.answer, now=patient.now
            )
    except DatabaseError as error:
        state = "armed, but that" if proof.armed else "not armed, and that"
        return fault("armed", f"{proof.uri} is {state} can't be recorded: {error}", error.hint)
    return None


def _tell_libvirt(uri: str) -> None:
    for pid in _daemons():
        os.kill(pid, signal.SIGHUP)
    # The signal is handled some time after it was sent.
    deadline = time.monotonic() + 10
    while not canary.prove(uri).armed and time.monotonic() < deadline:
        time.sleep(0.1)


def _daemons() -> list[int]:
    """libvirt's daemons in this mount namespace: another's look at other hooks."""
    ours = os.readlink("/proc/self/ns/mnt")
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "comm").read_text("utf-8").strip()
            if name in DAEMONS and os.readlink(process / "ns/mnt") == ours:
                found.append(int(process.name))
        except OSError:
            # It ended meanwhile.
            continue
    return found
