"""The unit of bootlockd --sync: systemd understands it, and it may do next to nothing."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parents[2] / "systemd/bootlock-sync.service"

#: Of 10, as `systemd-analyze security` sees it; the unit says what each open door is for.
EXPOSURE = 1.6


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists here too."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text("utf-8").replace("/usr/bin/bootlockd", "/bin/true"), "utf-8")
    return copy


def setting(name: str) -> str:
    found = re.findall(rf"^{name}=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE)
    return " ".join(found) if found else "missing"


def test_systemd_finds_no_fault_in_it(unit: Path) -> None:
    command = ["systemd-analyze", "verify", str(unit)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert [line for line in said.splitlines() if unit.name in line] == []


def is_exposed(unit: Path) -> bool:
    limit = f"--threshold={EXPOSURE * 10:.0f}"
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", limit, str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Overall exposure level for bootlock-sync.service" in done.stdout, done.stderr
    return done.returncode != 0


def test_it_is_exposed_as_little_as_it_says(unit: Path) -> None:
    assert not is_exposed(unit)


@pytest.mark.parametrize("name", ["CapabilityBoundingSet", "ProtectSystem", "SystemCallFilter"])
def test_a_protection_that_goes_is_noticed(unit: Path, name: str) -> None:
    text = re.sub(rf"^{name}=.*$", "", unit.read_text("utf-8"), flags=re.MULTILINE)
    unit.write_text(text, "utf-8")
    assert is_exposed(unit)


def test_it_has_no_power_and_writes_the_database_alone() -> None:
    assert setting("CapabilityBoundingSet") == setting("AmbientCapabilities") == ""
    assert setting("ProtectSystem") == "strict"
    assert setting("ReadWritePaths") == "/var/lib/bootlock"


def test_it_is_watched_restarted_and_apart_from_the_daemon() -> None:
    assert setting("Type") == "notify"
    assert setting("Restart") == "always"
    assert setting("StartLimitIntervalSec") == "0"
    assert int(setting("WatchdogSec")) >= 30
    for relation in ("Requires", "BindsTo", "PartOf", "Wants"):
        assert setting(relation) == "missing"
