"""Each systemd unit: systemd understands it, it is as little exposed as it says, and it comes back.

What only one of them has to keep is tested beside what it is for.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import unitfile
from unitfile import SYSTEMD

UNITS = sorted(unit.name for unit in SYSTEMD.glob("*.service"))

#: Of 10, as `systemd-analyze security` sees it. bootlock-relay.service is confined as the sync is.
EXPOSURES = {
    # docs/security.md says what each open door of these two is for.
    "bootlockd.service": 2.5,
    "bootlock-preserve.service": 2.0,
    # The unit says what each open door is for.
    "bootlock-sync.service": 1.6,
    # Half of that is having a network at all.
    "bootlock-metrics.service": 1.5,
}

#: Without any one of these a unit is more exposed than it says.
PROTECTIONS = [
    ("bootlockd.service", "CapabilityBoundingSet"),
    ("bootlockd.service", "ProtectSystem"),
    ("bootlockd.service", "SystemCallFilter"),
    ("bootlock-preserve.service", "CapabilityBoundingSet"),
    ("bootlock-preserve.service", "PrivateNetwork"),
    ("bootlock-preserve.service", "SystemCallFilter"),
    ("bootlock-sync.service", "CapabilityBoundingSet"),
    ("bootlock-sync.service", "ProtectSystem"),
    ("bootlock-sync.service", "SystemCallFilter"),
]

#: Seconds at the least. A ping comes each third of it, so bootlockd's is no polling faster than its
#: timer's minute.
WATCHDOGS = {
    "bootlockd.service": 180,
    "bootlock-preserve.service": 180,
    "bootlock-sync.service": 30,
}


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_no_fault_in_it(name: str, tmp_path: Path) -> None:
    assert unitfile.faults(unitfile.copied(SYSTEMD / name, tmp_path)) == []


@pytest.mark.parametrize(("name", "exposure"), EXPOSURES.items())
def test_it_is_exposed_as_little_as_it_says(name: str, exposure: float, tmp_path: Path) -> None:
    assert not unitfile.is_exposed(unitfile.copied(SYSTEMD / name, tmp_path), exposure)


@pytest.mark.parametrize(("name", "protection"), PROTECTIONS)
def test_a_protection_that_goes_is_noticed(name: str, protection: str, tmp_path: Path) -> None:
    unit = unitfile.copied(SYSTEMD / name, tmp_path)
    unitfile.remove(unit, protection)
    assert unitfile.is_exposed(unit, EXPOSURES[name])


@pytest.mark.parametrize(("name", "watchdog"), WATCHDOGS.items())
def test_it_restarts_for_ever_and_is_watched(name: str, watchdog: int) -> None:
    found = unitfile.settings(SYSTEMD / name)
    assert found["Type"] == ["notify"]
    assert found["Restart"] == ["always"]
    assert found["StartLimitIntervalSec"] == ["0"]
    assert int(found["WatchdogSec"][0]) >= watchdog


@pytest.mark.parametrize("name", ["bootlock-preserve.service", "bootlock-sync.service"])
def test_it_is_apart_from_the_daemon(name: str) -> None:
    assert not {"Requires", "BindsTo", "PartOf", "Wants"} & set(unitfile.settings(SYSTEMD / name))
