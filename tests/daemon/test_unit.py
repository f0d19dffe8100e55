"""The systemd unit: it keeps what the daemon needs, and each power it has is explained."""

from __future__ import annotations

from pathlib import Path

import unitfile
from bootlockd import realtime
from bootlockd.config import Custody
from bootlockd.fences import custody

UNIT = unitfile.SYSTEMD / "bootlockd.service"

#: What custody links between: a hard link can't cross a mount.
LINKED = (custody.SAVE_DIRECTORY, Custody().directory)


def settings() -> dict[str, list[str]]:
    return unitfile.settings(UNIT)


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


def test_systemd_keeps_its_descriptors() -> None:
    assert int(settings()["FileDescriptorStoreMax"][0]) > 0


def test_libvirt_does_not_need_it() -> None:
    assert not {"RequiredBy", "BindsTo", "Requires", "PartOf"} & set(settings())
    assert "libvirtd.service" in settings()["Before"][0]
