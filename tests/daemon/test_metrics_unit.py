"""bootlock-metrics.service: systemd understands it, and it may do next to nothing."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parents[2] / "systemd/bootlock-metrics.service"

#: What `systemd-analyze security` makes of it; half of that is having a network at all.
EXPOSURE = 1.5


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists here too."""
    copy = tmp_path / UNIT.name
    text = UNIT.read_text("utf-8").replace("/usr/lib/bootlock/bin/python3", "/usr/bin/python3")
    copy.write_text(text, "utf-8")
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
    level = re.search(r"exposure level for bootlock-metrics\.service: ([\d.]+)", said)
    assert level, said
    assert float(level[1]) <= EXPOSURE


def test_it_is_nobody_but_a_member_of_the_group() -> None:
    found = settings()
    assert found["DynamicUser"] == ["yes"]
    assert found["SupplementaryGroups"] == ["bootlock"]
    assert found["CapabilityBoundingSet"] == [""]
    assert found["ProtectSystem"] == ["strict"]
    assert not {"User", "ReadWritePaths", "StateDirectory", "RuntimeDirectory"} & set(found)


def test_nothing_waits_for_it() -> None:
    assert not {"Before", "RequiredBy", "PartOf", "BindsTo", "Requires"} & set(settings())
