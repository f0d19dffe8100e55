"""Checks of the hook: the files that libvirt runs and reads."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from bootlock.doctor.finding import Finding, Patient, fault, ok
from lockdb.decision import decide_sql
from lockdb.durable import replace_file

HOOK = "50-bootlock"
#: libvirt's name of each driver, and of its hook.
DRIVERS = ("qemu", "lxc", "libxl")


def decision_text(patient: Patient) -> Iterator[Finding]:
    """The SQL that the hook runs is the one this version of bootlock has."""
    path = patient.share / "decide.sql"
    if read(path) == decide_sql():
        yield ok("decide.sql", f"{path} is current")
        return
    yield fault(
        "decide.sql",
        f"{path} is {'not current' if path.exists() else 'missing: every start is refused'}",
        "bootlock doctor --fix",
        lambda: replace(path, decide_sql(), 0o644, draft_in=path.parent),
    )


def hook_files(patient: Patient) -> Iterator[Finding]:
    """Each driver that is installed here has our hook: a plain file, executable, current."""
    reference = patient.share / HOOK
    wanted = read(reference)
    if wanted is None:
        yield fault("hook", f"{reference} is missing", "install bootlock again")
        return
    for driver in installed_drivers(patient):
        path = patient.hooks / f"{driver}.d" / HOOK
        problem = _problem(path, wanted)
        if problem:
            yield fault(
                f"hook {driver}",
                f"{path} {problem}",
                "bootlock doctor --fix",
                # Drafted outside of the directory: libvirt runs each executable file in it.
                lambda path=path: replace(  # type: ignore[misc]
                    path, wanted, 0o755, draft_in=patient.hooks
                ),
            )
        else:
            yield ok(f"hook {driver}", f"{path} is in place and current")


def installed_drivers(patient: Patient) -> list[str]:
    """The drivers that libvirt has here; qemu where its modules can't be found."""
    found = [
        driver
        for driver in DRIVERS
        if any(patient.libraries.glob(f"lib*/**/connection-driver/libvirt_driver_{driver}.so"))
    ]
    return found or ["qemu"]


def replace(path: Path, text: str, mode: int, *, draft_in: Path) -> None:
    """Put a file in place whole: libvirt may run or read it at any moment. Raises OSError.

    ``draft_in``: a directory on the same file system.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Another admin's doctor may mend at the same moment.
    draft = draft_in / f".bootlock-{path.name}.{os.getpid()}"
    replace_file(path, text.encode(), mode, draft=draft)


def is_open(status: os.stat_result) -> bool:
    """Whether others than root may change what has this status."""
    return status.st_uid != 0 or status.st_mode & 0o022 != 0


def read(path: Path) -> str | None:
    """The text of a file; None if it can't be read."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return None


def _problem(path: Path, wanted: str) -> str:
    try:
        status = path.lstat()
    except OSError:
        return "is missing"
    if not stat.S_ISREG(status.st_mode):
        return "is not a plain file"
    if is_open(status):
        return "can be changed by others than root"
    if status.st_mode & 0o111 != 0o111:
        return "is not executable"
    return "" if read(path) == wanted else "is not the current text"
