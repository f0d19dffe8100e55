"""bootlock-metrics.service: systemd understands it, and it may do next to nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

import unitfile

UNIT = unitfile.SYSTEMD / "bootlock-metrics.service"

#: What `systemd-analyze security` makes of it; half of that is having a network at all.
EXPOSURE = 1.5


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    return unitfile.copied(UNIT, tmp_path)


def settings() -> dict[str, list[str]]:
    return unitfile.settings(UNIT.read_text("utf-8"))


def test_systemd_finds_no_fault_in_it(unit: Path) -> None:
    assert unitfile.faults(unit) == []


def test_it_is_no_more_exposed_than_it_says(unit: Path) -> None:
    assert not unitfile.is_exposed(unit, EXPOSURE)


def test_it_is_nobody_but_a_member_of_the_group() -> None:
    found = settings()
    assert found["DynamicUser"] == ["yes"]
    assert found["SupplementaryGroups"] == ["bootlock"]
    assert found["CapabilityBoundingSet"] == [""]
    assert found["ProtectSystem"] == ["strict"]
    assert not {"User", "ReadWritePaths", "StateDirectory", "RuntimeDirectory"} & set(found)


def test_nothing_waits_for_it() -> None:
    assert not {"Before", "RequiredBy", "PartOf", "BindsTo", "Requires"} & set(settings())
