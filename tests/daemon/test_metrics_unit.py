"""bootlock-metrics.service: it may do next to nothing."""

from __future__ import annotations

import unitfile

UNIT = unitfile.SYSTEMD / "bootlock-metrics.service"


def settings() -> dict[str, list[str]]:
    return unitfile.settings(UNIT)


def test_it_is_nobody_but_a_member_of_the_group() -> None:
    found = settings()
    assert found["DynamicUser"] == ["yes"]
    assert found["SupplementaryGroups"] == ["bootlock"]
    assert found["CapabilityBoundingSet"] == [""]
    assert found["ProtectSystem"] == ["strict"]
    assert not {"User", "ReadWritePaths", "StateDirectory", "RuntimeDirectory"} & set(found)


def test_nothing_waits_for_it() -> None:
    assert not {"Before", "RequiredBy", "PartOf", "BindsTo", "Requires"} & set(settings())
