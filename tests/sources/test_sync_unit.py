"""The unit of bootlockd --sync: systemd understands it, and it may do next to nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import unitfile

UNIT = unitfile.SYSTEMD / "bootlock-sync.service"

#: Of 10, as `systemd-analyze security` sees it; the unit says what each open door is for.
EXPOSURE = 1.6


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    return unitfile.copied(UNIT, tmp_path)


def setting(name: str) -> str:
    found = unitfile.settings(UNIT.read_text("utf-8")).get(name, ["missing"])
    return " ".join(found)


def test_systemd_finds_no_fault_in_it(unit: Path) -> None:
    assert unitfile.faults(unit) == []


def test_it_is_exposed_as_little_as_it_says(unit: Path) -> None:
    assert not unitfile.is_exposed(unit, EXPOSURE)


@pytest.mark.parametrize("name", ["CapabilityBoundingSet", "ProtectSystem", "SystemCallFilter"])
def test_a_protection_that_goes_is_noticed(unit: Path, name: str) -> None:
    text = re.sub(rf"^{name}=.*$", "", unit.read_text("utf-8"), flags=re.MULTILINE)
    unit.write_text(text, "utf-8")
    assert unitfile.is_exposed(unit, EXPOSURE)


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
