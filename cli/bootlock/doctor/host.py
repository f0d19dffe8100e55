"""Checks of what surrounds the hook: programs, confinement, the way out."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bootlock.doctor.finding import Finding, Patient, fault, note, ok

#: The oldest shell that ``decide.sql`` is written for.
OLDEST = (3, 34)

_HOOKS_RULE = re.compile(r"^\s*/etc/libvirt/hooks/\*\*\s+\S*x", re.MULTILINE)


def sqlite3_shell(patient: Patient) -> Iterator[Finding]:
    """The one program that the hook runs."""
    program = str(patient.sqlite3)
    install = "install the package sqlite3"
    try:
        text = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        yield fault("sqlite3", f"{program} does not run: {error}", install)
        return
    version = text.split(" ", 1)[0]
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        yield fault("sqlite3", f"{program} is version {version}, 3.34 is needed", install)
    else:
        yield ok("sqlite3", f"{program} {version}")


def break_glass(patient: Patient) -> Iterator[Finding]:
    """Whether starts that can't be decided are let through."""
    if patient.break_glass.exists():
        yield fault(
            "break-glass",
            f"{patient.break_glass} exists: starts that can't be decided go through",
            f"when the database is mended: rm {patient.break_glass}",
        )
    else:
        yield ok("break-glass", "not in use")


def upgrading(patient: Patient) -> Iterator[Finding]:
    """Whether an upgrade was killed while the hook waits for its end."""
    if patient.upgrading.exists():
        yield fault(
            "upgrade",
            f"{patient.upgrading} exists: each start waits for an upgrade, for 5 seconds",
            "if none is under way, it was killed: install bootlock again",
        )


def confinement(patient: Patient) -> Iterator[Finding]:
    """SELinux and AppArmor let libvirt run the hook."""
    if _text(patient.selinux / "enforce") == "1":
        yield from _selinux(patient)
    profiles = _text(patient.apparmor / "profiles") or ""
    if re.search(r"^\S*libvirtd \(enforce\)", profiles, re.MULTILINE):
        yield from _apparmor(patient)


def _selinux(patient: Patient) -> Iterator[Finding]:
    # "current pending"
    state = _text(patient.selinux / "booleans/virt_hooks_unconfined")
    if state is None:
        yield note(
            "SELinux",
            "it enforces, and its policy has no rule for libvirt's hooks",
            "the line 'armed' below is the proof",
        )
    elif state.startswith("1"):
        yield ok("SELinux", "virt_hooks_unconfined is on")
    else:
        yield fault(
            "SELinux",
            "virt_hooks_unconfined is off: libvirt may not run hooks, every start fails",
            f"restorecon -R {patient.hooks} && setsebool -P virt_hooks_unconfined on",
        )


def _apparmor(patient: Patient) -> Iterator[Finding]:
    rules = "\n".join(
        _text(patient.apparmor_profiles / name) or ""
        for name in ("usr.sbin.libvirtd", "local/usr.sbin.libvirtd")
    )
    if _HOOKS_RULE.search(rules):
        yield ok("AppArmor", "libvirtd is confined and may run hooks")
    else:
        yield note(
            "AppArmor",
            "libvirtd is confined by a profile that does not name /etc/libvirt/hooks",
            "the line 'armed' below is the proof",
        )


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return None
