"""The unit of bootlockd --sync: it may do next to nothing."""

from __future__ import annotations

import unitfile

UNIT = unitfile.SYSTEMD / "bootlock-sync.service"


def test_it_has_no_power_and_writes_the_database_alone() -> None:
    found = unitfile.settings(UNIT)
    assert found["CapabilityBoundingSet"] == found["AmbientCapabilities"] == [""]
    assert found["ProtectSystem"] == ["strict"]
    assert found["ReadWritePaths"] == ["/var/lib/bootlock"]
