"""The unit of bootlockd --preserve: it reaches every disk, and each power it has is explained."""

from __future__ import annotations

import unitfile

UNIT = unitfile.SYSTEMD / "bootlock-preserve.service"


def settings() -> dict[str, list[str]]:
    return unitfile.settings(UNIT)


def test_each_privilege_that_it_has_is_explained() -> None:
    explained = (UNIT.parents[1] / "docs/security.md").read_text("utf-8")
    _, _, about = explained.partition("`bootlock-preserve.service`")
    for privilege in " ".join(settings()["CapabilityBoundingSet"]).split():
        assert f"`{privilege}`" in about


def test_it_reaches_every_disk_in_one_mount_and_no_network() -> None:
    """A hard link can't cross two mounts, and each of these settings makes some."""
    found = settings()
    for mounts in ("ReadWritePaths", "BindPaths", "ProtectHome", "PrivateTmp", "PrivateDevices"):
        assert mounts not in found
    assert found["ProtectSystem"] == ["full"]
    assert found["PrivateNetwork"] == ["yes"]
    assert found["RestrictAddressFamilies"] == ["AF_UNIX"]
