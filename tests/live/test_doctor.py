"""``bootlock doctor`` on a real host: it proves, it names faults, it mends what is safe to mend."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from privatehost import PrivateHost

pytestmark = pytest.mark.live

SOURCES = Path(__file__).resolve().parents[2]
HOOK = "/etc/libvirt/hooks/qemu.d/50-bootlock"
DECIDE = "/usr/share/bootlock/decide.sql"
DATABASE = "/var/lib/bootlock/lock.db"
BREAK_GLASS = "/run/bootlock/break-glass"
# This host has no cgroups, without which libvirt refuses containers before it asks the hook.
QEMU_ONLY = {"BOOTLOCK_CONNECT": "qemu:///system"}


@pytest.fixture(scope="module")
def machine() -> Iterator[PrivateHost]:
    with PrivateHost() as host:
        host.install_bootlock()
        shutil.copy(SOURCES / "hooks/50-bootlock", host.outside("/usr/share/bootlock"))
        host.outside("/run/bootlock").mkdir(exist_ok=True)
        host.outside(DATABASE).parent.chmod(0o750)
        yield host


@pytest.fixture
def host(machine: PrivateHost) -> Iterator[PrivateHost]:
    """A healthy host, made healthy again after the test."""
    kept = {path: machine.outside(path).read_bytes() for path in (HOOK, DECIDE, DATABASE)}
    assert doctor(machine)["healthy"]
    kept[DATABASE] = machine.outside(DATABASE).read_bytes()
    yield machine
    for path, content in kept.items():
        place = machine.outside(path)
        place.unlink(missing_ok=True)
        place.write_bytes(content)
        place.chmod(0o640 if path == DATABASE else 0o755)
    machine.outside(BREAK_GLASS).unlink(missing_ok=True)
    machine.outside("/etc/libvirt/hooks/qemu").unlink(missing_ok=True)
    machine.sighup()


def doctor(host: PrivateHost, *options: str) -> Any:
    result = host.bootlock("doctor", "--json", *options, check=False, env=QEMU_ONLY)
    report = json.loads(result.stdout)
    assert result.returncode == (0 if report["healthy"] else 1)
    return report


def faults(report: Any) -> dict[str, str]:
    return {
        finding["check"]: finding["detail"]
        for finding in report["findings"]
        if finding["level"] == "fault"
    }


def test_a_canary_proves_the_host_armed_and_leaves_nothing(host: PrivateHost) -> None:
    before = set(host.processes().values())
    said = host.bootlock("doctor", env=QEMU_ONLY).stdout
    assert "qemu:///system refused a canary just now" in said
    assert said.endswith("healthy\n")
    assert host.virsh("list", "--all", "--name").stdout.strip() == ""
    assert not [line for line in set(host.processes().values()) - before if "canary" in line]
    assert "canary" not in host.run(["ls", "/var/log/libvirt/qemu"], check=False).stdout


def test_status_tells_since_when_it_is_armed_without_trying(host: PrivateHost) -> None:
    status = json.loads(host.bootlock("status", "--json").stdout)
    assert status["healthy"] is True
    (proof,) = [proof for proof in status["armed"] if proof["uri"] == "qemu:///system"]
    assert proof["armed"] is True
    assert proof["since"] <= proof["at"]
    assert "unexpected exit status 1" in proof["answer"]


def _remove(path: str) -> Callable[[PrivateHost], None]:
    return lambda host: host.outside(path).unlink()


def _mode(path: str, mode: int) -> Callable[[PrivateHost], None]:
    return lambda host: host.outside(path).chmod(mode)


def _change(path: str) -> Callable[[PrivateHost], None]:
    def change(host: PrivateHost) -> None:
        with host.outside(path).open("a", encoding="utf-8") as file:
            file.write("\n-- changed\n" if path.endswith(".sql") else "\n# changed\n")

    return change


MENDABLE: dict[str, tuple[Callable[[PrivateHost], None], str, str]] = {
    "hook removed": (_remove(HOOK), "hook qemu", "is missing"),
    "hook not executable": (_mode(HOOK, 0o644), "hook qemu", "is not executable"),
    "hook writable by others": (_mode(HOOK, 0o777), "hook qemu", "can be changed by others"),
    "hook changed": (_change(HOOK), "hook qemu", "is not the current text"),
    "decide.sql removed": (_remove(DECIDE), "decide.sql", "every start is refused"),
    "decide.sql changed": (_change(DECIDE), "decide.sql", "is not current"),
    "database open to others": (_mode(DATABASE, 0o666), "database", "mode 0666"),
}


@pytest.mark.parametrize("what", MENDABLE)
def test_what_is_safe_to_mend_is_found_named_and_mended(host: PrivateHost, what: str) -> None:
    harm, check, detail = MENDABLE[what]
    harm(host)
    found = faults(doctor(host))
    assert detail in found[check]
    mended = doctor(host, "--fix")
    assert mended["healthy"], mended
    assert check in [finding["check"] for finding in mended["findings"] if finding["fixed"]]
    assert doctor(host)["healthy"]


@pytest.mark.parametrize("what", ["hook removed", "hook not executable"])
def test_a_hook_that_libvirt_skips_is_not_armed(host: PrivateHost, what: str) -> None:
    harm, _, _ = MENDABLE[what]
    harm(host)
    assert "the canary started" in faults(doctor(host))["armed"]
    assert host.virsh("list", "--all", "--name").stdout.strip() == ""
    assert host.bootlock("status", check=False).returncode == 1


def test_a_libvirtd_that_never_looked_for_hooks_is_found_and_told(host: PrivateHost) -> None:
    shutil.rmtree(host.outside(HOOK).parent)
    host.sighup()
    host.outside(HOOK).parent.mkdir()
    shutil.copy(SOURCES / "hooks/50-bootlock", host.outside(HOOK))
    assert set(faults(doctor(host))) == {"armed"}
    mended = doctor(host, "--fix")
    assert mended["healthy"], mended
    events = json.loads(host.bootlock("journal", "show", "--json").stdout)
    assert [entry["event"] for entry in events][-2:] == ["disarmed", "armed"]


def test_a_database_that_is_gone_is_never_made_anew_by_fix(host: PrivateHost) -> None:
    host.outside(DATABASE).unlink()
    found = faults(doctor(host, "--fix"))
    assert "there is no lock database" in found["database"]
    assert "is missing" in found["armed"]
    assert not host.outside(DATABASE).exists()


def test_a_damaged_page_is_found(host: PrivateHost) -> None:
    for number in range(200):
        uuid = f"00000000-0000-4000-8000-{number:012d}"
        host.run(
            ["sqlite3", DATABASE, f"INSERT INTO held_disk VALUES ('path:/{number}', '{uuid}')"]
        )
    with host.outside(DATABASE).open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(size - 4096)
        file.write(b"\xff" * 4096)
    assert "integrity" in faults(doctor(host))


def test_break_glass_in_use_is_a_fault(host: PrivateHost) -> None:
    host.outside(BREAK_GLASS).touch()
    found = faults(doctor(host))
    assert set(found) == {"break-glass"}


def test_a_foreign_main_hook_is_noted(host: PrivateHost) -> None:
    foreign = host.outside("/etc/libvirt/hooks/qemu")
    foreign.write_text("#!/bin/sh\nexit 0\n", "utf-8")
    foreign.chmod(0o755)
    report = doctor(host)
    assert report["healthy"]
    (finding,) = [f for f in report["findings"] if f["check"] == "other hooks"]
    assert finding["level"] == "note"
    assert "/etc/libvirt/hooks/qemu runs before ours" in finding["detail"]


def test_libvirtd_that_does_not_run_is_a_fault_and_not_a_hang(host: PrivateHost) -> None:
    host.stop_libvirtd()
    try:
        found = faults(doctor(host))
    finally:
        host.start_libvirtd()
    assert set(found) == {"armed"}


def test_two_doctors_at_once_both_find_the_host_healthy(host: PrivateHost) -> None:
    program = Path(sys.executable).parent / "bootlock"
    for process in [host.popen([program, "doctor"], env=QEMU_ONLY) for _ in range(2)]:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err


def test_a_driver_that_starts_nothing_is_not_called_armed(host: PrivateHost) -> None:
    result = host.bootlock("doctor", env={"BOOTLOCK_CONNECT": "lxc:///system"}, check=False)
    assert result.returncode == 1
    assert "lxc:///system: not proven, the canary failed otherwise" in result.stdout


def test_containers_are_proven_armed_too() -> None:
    with PrivateHost(lxc=True) as host:
        host.install_bootlock()
        result = host.bootlock("doctor", env={"BOOTLOCK_CONNECT": "lxc:///system"}, check=False)
    assert "lxc:///system refused a canary just now" in result.stdout
