"""Checks of the scripts of others that libvirt runs beside the hook.

libvirt runs ``hooks/DRIVER``, then every executable file of ``hooks/DRIVER.d`` by name, all of them
even if one fails. None of them can allow what another refuses; but one that fails refuses every
start, and whoever may write there can remove ours.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from bootlock.doctor.finding import Finding, Patient, fault, note
from bootlock.doctor.hook import HOOK, installed_drivers, is_open, read

_CHECK = "other hooks"

#: What is known to install itself as ``hooks/qemu``: a mark in its text, whose it is, what to know.
_PRODUCTS = (
    (
        "/etc/libvirt/hooks/custom",
        "CloudStack's agent",
        "it drops the exit codes of what is in /etc/libvirt/hooks/custom, where a copy of ours "
        "would refuse nothing",
    ),
    ("vm_migrate_hook", "oVirt's vdsm", "it rewrites the XML of migrations that arrive"),
    ("fmpm", "NVIDIA's for shared NVSwitch", "it asks the fabric manager at each start"),
    (
        "qemu.d/$GUEST_NAME",
        "the dispatcher of VFIO-Tools",
        "it runs what is in directories that have guests' names",
    ),
)


def neighbours(patient: Patient) -> Iterator[Finding]:
    """Other scripts that libvirt runs, and what could remove or hide ours."""
    for driver in installed_drivers(patient):
        directory = patient.hooks / f"{driver}.d"
        main = patient.hooks / driver
        scripts = [script for script in _scripts(directory) if script.name != HOOK]
        yield from _places(patient.hooks, directory)
        if _runs(main):
            yield _main(main)
        yield from _directories(directory)
        for script in scripts:
            yield from _beside(script, patient)
        for script in [*filter(_runs, [main]), *scripts]:
            yield from _faults(script)


def _places(hooks: Path, directory: Path) -> Iterator[Finding]:
    if directory.exists() and not directory.is_dir():
        yield fault(
            _CHECK,
            f"{directory} is not a directory: libvirt refuses every start",
            f"move it away, then run 'bootlock doctor --fix': mv {directory} {directory}.away",
        )
    for place in (hooks, directory):
        if place.is_dir() and is_open(place.stat()):
            yield fault(
                _CHECK,
                f"{place} can be changed by others than root, who can remove the hook, and have "
                "libvirt run what they like",
                f"chown root {place} && chmod go-w {place}",
            )


def _main(main: Path) -> Finding:
    text = read(main) or ""
    for mark, product, known in _PRODUCTS:
        if mark in text:
            return note(_CHECK, f"{main} is of {product}, and runs before ours; {known}")
    return note(
        _CHECK,
        f"{main} runs before ours; a libvirt before 6.5 would run it and nothing else",
        "the line 'armed' below is the proof",
    )


def _directories(directory: Path) -> Iterator[Finding]:
    found = [entry.name for entry in _entries(directory) if entry.is_dir()]
    if found:
        yield note(
            _CHECK,
            f"{directory} has directories ({', '.join(found[:3])}{', ...' * (len(found) > 3)}): "
            "libvirt runs nothing in them, a dispatcher may",
        )


def _beside(script: Path, patient: Patient) -> Iterator[Finding]:
    ours = (read(patient.share / HOOK) or "").splitlines()[:2]
    if ours and (read(script) or "").splitlines()[:2] == ours:
        yield fault(
            _CHECK,
            f"{script} is a copy of our hook, which libvirt runs too; it stays as it is when the "
            "hook is upgraded, and may then refuse every start",
            f"rm {script}",
        )
    elif script.name > HOOK:
        yield note(
            _CHECK,
            f"{script} runs after ours: if it fails too, callers see its message, not ours",
        )


def _faults(script: Path) -> Iterator[Finding]:
    if broken := _broken(script):
        yield fault(
            _CHECK,
            f"{script} {broken}: libvirt can't run it, and refuses every start",
            f"mend it, or have libvirt skip it: chmod a-x {script}",
        )
    if is_open(script.stat()):
        yield fault(
            _CHECK,
            f"{script} can be changed by others than root, as whom libvirt runs it",
            f"chown root {script} && chmod go-w {script}",
        )


def _broken(script: Path) -> str:
    text = read(script)
    if text == "":
        return "is empty"
    named = re.match(r"#![ \t]*(/\S+)", text or "")
    if named and not os.access(named[1], os.X_OK):
        return f"wants {named[1]}, which is not there"
    return ""


def _scripts(directory: Path) -> list[Path]:
    """What libvirt runs of it, in its order."""
    return [entry for entry in _entries(directory) if _runs(entry)]


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir(), key=lambda entry: os.fsencode(entry.name))
    except OSError:
        return []


def _runs(path: Path) -> bool:
    """As libvirt sees it: a file, or a link to one, that may be executed."""
    try:
        return stat.S_ISREG(path.stat().st_mode) and os.access(path, os.X_OK)
    except OSError:
        return False
