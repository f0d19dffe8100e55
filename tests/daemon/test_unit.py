"""The systemd unit: systemd understands it, and it keeps what the daemon needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import unitfile
from bootlockd import realtime
from bootlockd.config import Custody
from bootlockd.fences import custody

UNIT = unitfile.SYSTEMD / "bootlockd.service"

#: Of 10, as `systemd-analyze security` sees it; docs/security.md says what each open door is for.
EXPOSURE = 2.5
#: What custody links between: a hard link can't cross a mount.
LINKED = (custody.SAVE_DIRECTORY, Custody().directory)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    return unitfile.copied(UNIT, tmp_path)


def settings() -> dict[str, list[str]]:
    return unitfile.settings(UNIT.read_text("utf-8"))


def test_systemd_finds_no_fault_in_it(unit: Path) -> None:
    assert unitfile.faults(unit) == []


def test_it_is_exposed_as_little_as_it_says(unit: Path) -> None:
    assert not unitfile.is_exposed(unit, EXPOSURE)


@pytest.mark.parametrize("setting", ["CapabilityBoundingSet", "ProtectSystem", "SystemCallFilter"])
def test_a_protection_that_goes_is_noticed(unit: Path, setting: str) -> None:
    kept = re.sub(rf"^{setting}=.*$", "", unit.read_text("utf-8"), flags=re.MULTILINE)
    unit.write_text(kept, "utf-8")
    assert unitfile.is_exposed(unit, EXPOSURE)


def test_each_privilege_that_it_has_is_explained() -> None:
    explained = (UNIT.parents[1] / "docs/security.md").read_text("utf-8")
    found = settings()
    granted = " ".join(found["CapabilityBoundingSet"] + found["RestrictAddressFamilies"])
    for privilege in granted.split():
        assert f"`{privilege}`" in explained
    for granting in ("SystemCallFilter=sched_setscheduler", "DeviceAllow=block-* r"):
        assert granting in UNIT.read_text("utf-8")
        assert f"`{granting}`" in explained


def test_it_takes_no_priority_but_begins_with_it() -> None:
    found = settings()
    assert found["CPUSchedulingPolicy"] == ["rr"]
    assert found["CPUSchedulingPriority"] == [str(realtime.PRIORITY)]
    assert found["RestrictRealtime"] == ["yes"]
    assert "CAP_SYS_NICE" not in " ".join(found["CapabilityBoundingSet"])


def test_custody_and_what_it_keeps_are_in_one_mount() -> None:
    found = settings()
    assert not {"BindPaths", "BindReadOnlyPaths", "TemporaryFileSystem"} & set(found)
    (paths,) = found["ReadWritePaths"]
    mounts = [Path(path.removeprefix("-")) for path in paths.split()]
    above = [[mount for mount in mounts if mount in path.parents] for path in LINKED]
    assert above[0] == above[1] != []


def test_what_it_makes_belongs_to_the_group_without_a_chown() -> None:
    lines = (UNIT.parent / "bootlock.tmpfiles").read_text("utf-8").splitlines()
    made = [line.split()[1:5] for line in lines if not line.startswith("#")]
    assert made == [
        ["/run/bootlock", "2755", "root", "bootlock"],
        ["/var/lib/bootlock", "2750", "root", "bootlock"],
    ]
    # systemd would give them to root's own group again.
    assert not {"RuntimeDirectory", "StateDirectory"} & set(settings())


def test_it_restarts_for_ever_keeps_descriptors_and_is_watched() -> None:
    found = settings()
    assert found["Type"] == ["notify"]
    assert found["Restart"] == ["always"]
    assert found["StartLimitIntervalSec"] == ["0"]
    assert int(found["FileDescriptorStoreMax"][0]) > 0
    # A ping comes each third of it, so this is no polling faster than the timer's minute.
    assert int(found["WatchdogSec"][0]) >= 180


def test_libvirt_does_not_need_it() -> None:
    assert not {"RequiredBy", "BindsTo", "Requires", "PartOf"} & set(settings())
    assert "libvirtd.service" in settings()["Before"][0]
