"""Check of what refuses all but starts: polkit's rules, and that libvirt asks polkit."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from bootlock.doctor.finding import Finding, Patient, fault, note, ok
from bootlockd import accessdriver, hypervisor, polkitproof, polkitrules, stranger
from bootlockd.errors import Unreachable
from bootlockd.stranger import Answer

CHECK = "access driver"

#: Seconds that polkit may take to read new rules: each hold, each start of a daemon makes some.
SETTLING = 2.0

_OFF = "starts are refused, and nothing else: who may talk to libvirt may delete and change"


def access_driver(patient: Patient) -> Iterator[Finding]:
    """It is on, polkit runs our rules, and somebody who is not root is refused a canary."""
    if not patient.config.polkit.enabled:
        return
    off = accessdriver.why_off()
    if off:
        yield note(CHECK, f"{off}: {_OFF}", "what turning it on takes is in docs/fences/polkit.md")
        return
    problem = _rules(patient)
    if problem:
        yield fault(CHECK, problem, "bootlockd keeps the rules: see 'journalctl -u bootlockd'")
        return
    yield _refuses(patient)


def _rules(patient: Patient) -> str:
    """Why polkit does not run our rules, if it goes on for a while; "" if it does."""
    deadline = time.monotonic() + SETTLING
    problem = _why_not(patient.config.polkit.rules_file)
    while problem and time.monotonic() < deadline:
        time.sleep(SETTLING / 10)
        problem = _why_not(patient.config.polkit.rules_file)
    return problem


def _why_not(path: Path) -> str:
    try:
        return polkitproof.why_not(polkitrules.proof_of(path.read_text("ascii")))
    except OSError as error:
        return f"{path}: {error.strerror}: nothing that is held is known to polkit"
    except ValueError:
        return f"{path} is not as bootlockd wrote it"


def _refuses(patient: Patient) -> Finding:
    if os.geteuid() != 0:
        return note(CHECK, "who is not root can't prove it", "run 'bootlock doctor' as root")
    settings = patient.config.polkit
    try:
        uri = next(uri for uri in hypervisor.reachable(patient.uris) if uri.startswith("qemu"))
        tried = stranger.try_canary(uri, stranger.somebody(settings.privileged_users))
    except StopIteration:
        return note(CHECK, "it is on; there is no QEMU here to prove it with")
    except Unreachable as error:
        return note(CHECK, f"it is on; not proven: {error}", "start libvirtd")
    if tried.answer is Answer.REFUSED:
        return ok(CHECK, f"libvirt refused a canary to {tried.user} just now")
    if tried.answer is Answer.LET_THROUGH:
        return fault(
            CHECK,
            f"libvirt let {tried.user} start a canary as far as the hook: {tried.said}",
            "restart libvirtd; then see which rules of polkit come before ours",
        )
    return note(
        CHECK,
        f"it is on; not proven: {tried.user} was told: {tried.said}",
        f"it is proven by a user who may talk to libvirt: a member of the group {stranger.GROUP}",
    )
