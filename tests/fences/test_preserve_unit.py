"""The unit of bootlockd --preserve: systemd understands it, and each power it has is explained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import unitfile

UNIT = unitfile.SYSTEMD / "bootlock-preserve.service"

#: Of 10, as `systemd-analyze security` sees it; docs/security.md says what each open door is for.
EXPOSURE = 2.0


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


@pytest.mark.parametrize("name", ["CapabilityBoundingSet", "PrivateNetwork", "SystemCallFilter"])
def test_a_protection_that_goes_is_noticed(unit: Path, name: str) -> None:
    text = re.sub(rf"^{name}=.*$", "", unit.read_text("utf-8"), flags=re.MULTILINE)
    unit.write_text(text, "utf-8")
    assert unitfile.is_exposed(unit, EXPOSURE)


def test_each_privilege_that_it_has_is_explained() -> None:
    explained = (UNIT.parents[1] / "docs/security.md").read_text("utf-8")
    _, _, about = explained.partition("`bootlock-preserve.service`")
    for privilege in setting("CapabilityBoundingSet").split():
        assert f"`{privilege}`" in about


def test_it_reaches_every_disk_in_one_mount_and_no_network() -> None:
    """A hard link can't cross two mounts, and each of these settings makes some."""
    text = UNIT.read_text("utf-8")
    found = unitfile.settings(text)
    for mounts in ("ReadWritePaths", "BindPaths", "ProtectHome", "PrivateTmp", "PrivateDevices"):
        assert mounts not in found
    assert setting("ProtectSystem") == "full"
    assert setting("PrivateNetwork") == "yes"
    assert setting("RestrictAddressFamilies") == "AF_UNIX"


def test_it_is_watched_restarted_and_apart_from_the_daemon() -> None:
    assert setting("Type") == "notify"
    assert setting("Restart") == "always"
    assert setting("StartLimitIntervalSec") == "0"
    assert int(setting("WatchdogSec")) >= 180
    for relation in ("Requires", "BindsTo", "PartOf", "Wants"):
        assert setting(relation) == "missing"
