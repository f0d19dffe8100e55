"""The unit of bootlockd --relay: as confined as that of --sync, and for nobody who didn't ask."""

from __future__ import annotations

from pathlib import Path

import unitfile
from unitfile import SYSTEMD

UNIT = SYSTEMD / "bootlock-relay.service"
#: What only one of the two has.
OWN = {"ReadWritePaths", "InaccessiblePaths"}


def sandbox(unit: Path) -> dict[str, list[str]]:
    """What stands below the line about powers."""
    return unitfile.settings(unit, below="# -- what it may do")


def test_it_is_confined_as_the_sync_is_and_has_no_database() -> None:
    ours, theirs = sandbox(UNIT), sandbox(SYSTEMD / "bootlock-sync.service")
    assert ours["CapabilityBoundingSet"] == [""]
    assert ours["InaccessiblePaths"] == ["-/var/lib/bootlock"]
    assert "ReadWritePaths" not in ours
    assert {n: v for n, v in ours.items() if n not in OWN} == {
        n: v for n, v in theirs.items() if n not in OWN
    }


def test_no_host_gets_it_enabled_by_itself() -> None:
    lines = (SYSTEMD / "bootlock.preset").read_text("utf-8").splitlines()
    # The first line that fits counts.
    assert lines.index(f"disable {UNIT.name}") < lines.index("enable bootlock*")
