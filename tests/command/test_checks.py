"""doctor's checks on hosts that this machine is not: other confinement, other programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bootlock.doctor.finding import Finding, Level, Patient
from bootlock.doctor.hook import hook_files, installed_drivers
from bootlock.doctor.host import confinement, sqlite3_shell, upgrading
from bootlock.doctor.neighbours import neighbours


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    """A host with nothing on it."""
    return Patient(
        uris=[],
        now=0,
        database=tmp_path / "lock.db",
        hooks=tmp_path / "hooks",
        share=tmp_path / "share",
        break_glass=tmp_path / "break-glass",
        upgrading=tmp_path / "upgrading",
        sqlite3=tmp_path / "sqlite3",
        libraries=tmp_path / "usr",
        selinux=tmp_path / "selinux",
        apparmor=tmp_path / "apparmor",
        apparmor_profiles=tmp_path / "apparmor.d",
    )


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    path.chmod(mode)


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


@pytest.mark.parametrize(
    ("says", "level"),
    [
        ("3.40.1 2022-12-28 14:03:47 abc", Level.OK),
        ("3.34.0", Level.OK),
        ("3.33.9", Level.FAULT),
        ("3.7.17", Level.FAULT),
        ("nonsense", Level.FAULT),
        ("", Level.FAULT),
    ],
)
def test_the_sqlite3_program_must_know_what_decide_sql_uses(
    patient: Patient, says: str, level: Level
) -> None:
    write(patient.sqlite3, f"#!/bin/sh\necho '{says}'\n", 0o755)
    assert only(sqlite3_shell(patient)).level is level


@pytest.mark.parametrize("mode", [None, 0o644])
def test_a_sqlite3_that_does_not_run_is_a_fault(patient: Patient, mode: int | None) -> None:
    if mode is not None:
        write(patient.sqlite3, "#!/bin/sh\n", mode)
    finding = only(sqlite3_shell(patient))
    assert finding.level is Level.FAULT
    assert finding.mend == "install the package sqlite3"


def test_a_host_without_confinement_says_nothing_of_it(patient: Patient) -> None:
    assert list(confinement(patient)) == []


def test_selinux_that_forbids_hooks_is_a_fault_with_both_commands(patient: Patient) -> None:
    write(patient.selinux / "enforce", "1")
    write(patient.selinux / "booleans/virt_hooks_unconfined", "0 0")
    finding = only(confinement(patient))
    assert finding.level is Level.FAULT
    assert "restorecon -R" in finding.mend
    assert "setsebool -P virt_hooks_unconfined on" in finding.mend
    write(patient.selinux / "booleans/virt_hooks_unconfined", "1 1")
    assert only(confinement(patient)).level is Level.OK


def test_selinux_without_a_rule_for_hooks_is_noted(patient: Patient) -> None:
    """Policies from before mid-2024: libvirtd is not confined there."""
    write(patient.selinux / "enforce", "1")
    assert only(confinement(patient)).level is Level.NOTE


def test_selinux_that_only_warns_is_no_fault(patient: Patient) -> None:
    write(patient.selinux / "enforce", "0")
    assert list(confinement(patient)) == []


def test_an_apparmor_profile_without_the_hooks_is_noted(patient: Patient) -> None:
    write(patient.apparmor / "profiles", "man (enforce)\nlibvirtd (enforce)\n")
    write(patient.apparmor_profiles / "usr.sbin.libvirtd", "  /usr/bin/* PUx,\n")
    assert only(confinement(patient)).level is Level.NOTE
    write(patient.apparmor_profiles / "local/usr.sbin.libvirtd", "/etc/libvirt/hooks/** rmix,\n")
    assert only(confinement(patient)).level is Level.OK


def test_hooks_are_wanted_for_the_drivers_that_are_installed(patient: Patient) -> None:
    assert installed_drivers(patient) == ["qemu"]
    modules = patient.libraries / "lib/x86_64-linux-gnu/libvirt/connection-driver"
    write(modules / "libvirt_driver_lxc.so", "")
    write(patient.libraries / "lib64/libvirt/connection-driver/libvirt_driver_libxl.so", "")
    assert installed_drivers(patient) == ["lxc", "libxl"]


def test_a_hook_that_is_a_link_is_a_fault_because_libvirt_may_not_follow_it(
    patient: Patient,
) -> None:
    reference = patient.share / "50-bootlock"
    write(reference, "#!/bin/sh\n", 0o755)
    hook = patient.hooks / "qemu.d/50-bootlock"
    hook.parent.mkdir(parents=True)
    hook.symlink_to(reference)
    finding = only(hook_files(patient))
    assert (finding.level, finding.detail) == (Level.FAULT, f"{hook} is not a plain file")
    assert finding.fix
    finding.fix()
    assert only(hook_files(patient)).level is Level.OK
    assert [entry.name for entry in patient.hooks.iterdir()] == ["qemu.d"], "no draft was left"


def test_a_host_without_the_reference_text_must_be_installed_again(patient: Patient) -> None:
    assert only(hook_files(patient)).mend == "install bootlock again"


def test_scripts_that_run_after_ours_are_noted_and_those_before_are_not(patient: Patient) -> None:
    for name, mode in (("10-before", 0o755), ("90-after", 0o755), ("91-off", 0o644)):
        write(patient.hooks / "qemu.d" / name, "#!/bin/sh\n", mode)
    finding = only(neighbours(patient))
    assert "90-after runs after ours" in finding.detail
    assert list(neighbours(replace(patient, hooks=patient.hooks / "none"))) == []


@pytest.mark.parametrize("what", ["hooks", "hooks/qemu.d", "hooks/qemu", "hooks/qemu.d/10-first"])
def test_whoever_may_write_where_hooks_are_can_remove_ours(patient: Patient, what: str) -> None:
    write(patient.hooks / "qemu", "#!/bin/sh\n", 0o755)
    write(patient.hooks / "qemu.d/10-first", "#!/bin/sh\n", 0o755)
    assert all(finding.level is Level.NOTE for finding in neighbours(patient))
    path = patient.hooks.parent / what
    path.chmod(0o775)
    (finding,) = [found for found in neighbours(patient) if found.level is Level.FAULT]
    assert f"{path} can be changed by others than root" in finding.detail
    assert finding.mend == f"chown root {path} && chmod go-w {path}"


def test_scripts_that_libvirt_skips_are_of_no_interest(patient: Patient) -> None:
    write(patient.hooks / "qemu", "")
    write(patient.hooks / "qemu.d/90-empty", "")
    (patient.hooks / "qemu.d/91-gone").symlink_to("nowhere")
    assert list(neighbours(patient)) == []


def test_an_upgrade_that_was_killed_is_a_fault(patient: Patient) -> None:
    assert list(upgrading(patient)) == []
    patient.upgrading.touch()
    finding = only(upgrading(patient))
    assert (finding.level, finding.check) == (Level.FAULT, "upgrade")
