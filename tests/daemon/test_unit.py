"""The systemd unit: systemd understands it, and it keeps what the daemon needs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parents[2] / "systemd/bootlockd.service"

#: What `systemd-analyze security` makes of it; the unit says what each open door is for.
EXPOSURE = 4.0


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists here too."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text("utf-8").replace("/usr/bin/bootlockd", "/bin/true"), "utf-8")
    return copy


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def test_systemd_finds_no_fault_in_it(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    said = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert said == []


def test_it_is_no_more_exposed_than_it_says(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(unit)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    level = re.search(r"exposure level for bootlockd\.service: ([\d.]+)", said)
    assert level, said
    assert float(level[1]) < EXPOSURE


def test_nothing_in_it_makes_a_mount_that_a_hard_link_would_have_to_cross() -> None:
    mounting = {"ReadWritePaths", "BindPaths", "StateDirectory", "RuntimeDirectory", "PrivateTmp"}
    assert not mounting & set(settings())
    assert settings()["ProtectSystem"] == ["full"]


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
