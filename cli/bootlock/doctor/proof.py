"""The check that matters: libvirt refuses a canary, through our hook."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from bootlock.doctor.finding import Finding, Patient, fault, ok
from bootlock.doctor.hook import HOOK
from bootlockd import canary, hypervisor
from bootlockd.errors import Unreachable
from lockdb import proofs
from lockdb.database import open_db
from lockdb.errors import DatabaseError
from lockdb.when import iso

#: The daemons that run hooks, by the names of their programs.
DAEMONS = ("libvirtd", "virtqemud", "virtlxcd", "virtxend")

_PROVE = "run 'bootlock doctor' as root"
#: Of the scripts that failed, libvirt tells about the last.
_FAILED_SCRIPT = re.compile(
    r"(\S+/hooks/\S+) bootlock-canary-\S+ .*?\) unexpected exit status (\d+)"
)


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
    unrecorded = _record(patient, proof)
    if proof.armed:
        return unrecorded or ok("armed", f"{uri} refused a canary just now")
    if proof.started:
        return fault(
            "armed",
            f"{uri}: {proof.answer}",
            "libvirt looks for new hooks only when told: kill -HUP its daemon",
            lambda: _tell_libvirt(uri, patient.hooks),
        )
    return fault(
        "armed",
        f"{uri}: not proven, the canary failed otherwise: {proof.answer}",
        _mend(proof.answer),
    )


def _mend(answer: str) -> str:
    failed = _FAILED_SCRIPT.search(answer)
    if failed is None:
        return "see libvirtd's log; a driver that this host does not use is left out with --connect"
    script, status = failed.groups()
    if Path(script).name != HOOK:
        return (
            f"{script} refuses every start, and its message hides ours: mend it, or have libvirt "
            f"skip it: chmod a-x {script}"
        )
    if status == "126":
        return f"libvirt may not run it: restorecon -R {Path(script).parents[1]}; ausearch -m avc"
    return "the line 'database' above"


def _record(patient: Patient, proof: canary.Proof) -> Finding | None:
    try:
        with open_db(patient.database) as lock_db:
            proofs.record(
                lock_db, proof.uri, armed=proof.armed, answer=proof.answer, now=patient.now
            )
    except DatabaseError as error:
        return fault("armed", f"{proof.uri}: the proof can't be recorded: {error}", error.hint)
    return None


def _tell_libvirt(uri: str, hooks: Path) -> None:
    for pid in _daemons(hooks):
        os.kill(pid, signal.SIGHUP)
    # The signal is handled some time after it was sent.
    deadline = time.monotonic() + 10
    while not canary.prove(uri).armed and time.monotonic() < deadline:
        time.sleep(0.1)


def _daemons(hooks: Path) -> list[int]:
    """libvirt's daemons that look for hooks in this very directory, not those of a container."""
    running = {
        int(process.name): process
        for process in Path("/proc").glob("[0-9]*")
        if _sees(process, hooks) and _program(process) in DAEMONS
    }
    # A daemon's child on its way to become another program would be ended by the signal.
    return [pid for pid, process in running.items() if _parent(process) not in running]


def _sees(process: Path, hooks: Path) -> bool:
    try:
        return (process / f"root{hooks}").samefile(hooks)
    except OSError:
        # No such directory there, or the process has ended.
        return False


def _program(process: Path) -> str:
    try:
        return Path(os.readlink(process / "exe").removesuffix(" (deleted)")).name
    except OSError:
        # A kernel thread, or the process has ended.
        return ""


def _parent(process: Path) -> int:
    try:
        status = (process / "status").read_text("utf-8", "replace")
    except OSError:
        return 0
    return int(status.split("PPid:", 1)[1].split(None, 1)[0])
