"""The unit of bootlockd --relay: as confined as that of --sync, and for nobody who didn't ask."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

UNITS = Path(__file__).resolve().parents[2] / "systemd"
UNIT = UNITS / "bootlock-relay.service"
#: What only one of the two has.
OWN = {"ReadWritePaths", "InaccessiblePaths"}


def sandbox(unit: Path) -> dict[str, list[str]]:
    """What stands below the line about powers."""
    text = unit.read_text("utf-8").partition("# -- what it may do")[2]
    settings: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        settings.setdefault(name, []).append(value)
    return settings


def test_systemd_finds_no_fault_in_it(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text("utf-8").replace("/usr/bin/bootlockd", "/bin/true"), "utf-8")
    command = ["systemd-analyze", "verify", str(copy)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert [line for line in said.splitlines() if copy.name in line] == []


def test_it_is_confined_as_the_sync_is_and_has_no_database() -> None:
    ours, theirs = sandbox(UNIT), sandbox(UNITS / "bootlock-sync.service")
    assert ours["CapabilityBoundingSet"] == [""]
    assert ours["InaccessiblePaths"] == ["-/var/lib/bootlock"]
    assert "ReadWritePaths" not in ours
    assert {n: v for n, v in ours.items() if n not in OWN} == {
        n: v for n, v in theirs.items() if n not in OWN
    }


def test_no_host_gets_it_enabled_by_itself() -> None:
    lines = (UNITS / "bootlock.preset").read_text("utf-8").splitlines()
    # The first line that fits counts.
    assert lines.index(f"disable {UNIT.name}") < lines.index("enable bootlock*")
