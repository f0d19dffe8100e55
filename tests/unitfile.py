"""One of our systemd units as a file: what it sets, and what systemd itself says of it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

SYSTEMD = Path(__file__).resolve().parents[1] / "systemd"

#: Programs of an installation, and some that are here, so that systemd finds them.
_PROGRAMS = {
    "/usr/bin/bootlockd": "/bin/true",
    "/usr/lib/bootlock/bin/python3": "/usr/bin/python3",
}


def settings(unit: Path, *, below: str = "") -> dict[str, list[str]]:
    """Each setting with the values it is given, in their order; of what stands ``below`` a line."""
    text = unit.read_text("utf-8")
    if below:
        _, _, text = text.partition(below)
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def copied(unit: Path, directory: Path) -> Path:
    """A copy of the unit, under its name, with programs that exist here too."""
    text = unit.read_text("utf-8")
    for installed, here in _PROGRAMS.items():
        text = text.replace(installed, here)
    copy = directory / unit.name
    copy.write_text(text, "utf-8")
    return copy


def remove(unit: Path, name: str) -> None:
    """Take a setting out of the file."""
    text, removed = re.subn(rf"^{name}=.*$", "", unit.read_text("utf-8"), flags=re.MULTILINE)
    assert removed, f"{unit.name} has no {name}"
    unit.write_text(text, "utf-8")


def faults(unit: Path) -> list[str]:
    """What ``systemd-analyze verify`` has against it."""
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    return [line for line in done.stderr.splitlines() if unit.name in line]


def is_exposed(unit: Path, most: float) -> bool:
    """More than ``most`` of 10; asked of systemd itself."""
    limit = f"--threshold={most * 10:.0f}"
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", limit, str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"Overall exposure level for {unit.name}" in done.stdout, done.stderr
    return done.returncode != 0
