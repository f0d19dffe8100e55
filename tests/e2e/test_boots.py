"""No boot lets a held guest through, however the one before it ended.

Five of them, one after another, with five guests:

- ``held`` is to be started by libvirtd at each boot, and is held just before the first power cut;
- ``stopped`` too, and was running when it was held: the daemon has shut it down;
- ``left`` is held and goes on running; libvirt-guests saves it and is to bring it back;
- ``free`` and ``back`` are held by nobody: they prove that both services have started guests.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.conftest import Installation, tidy
from e2e.guests import NOTICE, define, is_held, place, release, running, start
from e2e.machine import Machine
from waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

# A guest without an operating system can't be shut down, and nobody is to wait for it.
GUESTS_SERVICE = "ON_BOOT=start\nON_SHUTDOWN=suspend\n"
LOGS = "/var/log/libvirt/qemu"


@pytest.fixture(scope="module")
def host(machine: Machine, installation: Installation, package: Path) -> Iterator[Machine]:
    tidy(machine, package)
    machine.run("cat >/etc/default/libvirt-guests", input=GUESTS_SERVICE)
    define(machine, "held", "stopped", "free", autostart=True)
    define(machine, "left", "back")
    for name in ("stopped", "left", "back"):
        assert start(machine, name) == ""
    machine.run("sync")
    yield machine
    tidy(machine, package)


def test_a_running_guest_is_off_when_place_returns(host: Machine) -> None:
    assert "power: off\n" in place(host, "stopped", "--on-running shutdown --grace 3")
    assert running(host) == {"left", "back"}


def test_power_cut_right_after_place_returned(host: Machine) -> None:
    """What was written after it and not synced is lost: so the cut came at once, and was one."""
    place(host, "left")
    _begin_logs_anew(host)
    place(host, "held", "&& echo written >/root/written")
    host.cut_power()
    host.boot()
    assert host.run("cat /root/written", check=False).stdout == ""
    assert _started(host, "held", "stopped") == {"free"}
    assert is_held(host, "left")
    assert _is_proper(host)


def test_reboot_with_guests_that_libvirt_is_to_bring_back(host: Machine) -> None:
    """One of them is held meanwhile: of that libvirt-guests makes a failed unit, see operations."""
    release(host, "left")
    assert start(host, "left") == start(host, "back") == ""
    place(host, "left")
    _begin_logs_anew(host)
    host.reboot()
    assert _started(host, "held", "stopped", "left") == {"free", "back"}
    failed = host.run("systemctl --failed --no-legend --plain").stdout.splitlines()
    assert [line.split()[0] for line in failed] == ["libvirt-guests.service"]
    host.run("systemctl start libvirt-guests")
    assert _is_proper(host)


def test_power_cut_again(host: Machine) -> None:
    _begin_logs_anew(host)
    host.cut_power()
    host.boot()
    assert _started(host, "held", "stopped") == {"free"}
    assert _is_proper(host)


def test_reboot_ends_break_glass(host: Machine) -> None:
    host.run("touch /run/bootlock/break-glass")
    _begin_logs_anew(host)
    host.reboot()
    assert host.run("ls /run/bootlock/break-glass", check=False).stdout == ""
    assert _started(host, "held", "stopped") == {"free"}
    assert _is_proper(host)


def test_reboot_without_the_daemon(host: Machine) -> None:
    host.run("systemctl disable --now bootlockd")
    _begin_logs_anew(host)
    host.reboot()
    assert _started(host, "held", "stopped") == {"free"}
    assert host.run("systemctl is-active bootlockd", check=False).stdout == "inactive\n"
    host.run("systemctl enable --now bootlockd")


def test_released_it_starts(host: Machine) -> None:
    release(host, "held")
    assert start(host, "held") == ""
    assert is_held(host, "stopped")


def _begin_logs_anew(host: Machine) -> None:
    """libvirt notes there each QEMU that it starts, once hooks have let it."""
    host.run(f"rm -f {LOGS}/*.log; sync {LOGS}")


def _started(host: Machine, *refused: str) -> set[str]:
    """Who was started since the logs were begun, once all have had their turn."""
    wait_until(
        lambda: all(_was_refused(host, name) for name in refused), f"refused: {refused}", 300
    )
    wait_until(lambda: "free" in running(host), "free was started", 300)
    logged = host.run(f"grep -l ': starting up' {LOGS}/*.log").stdout
    started = {Path(log).stem for log in logged.split()}
    assert running(host) == started
    return started


def _was_refused(host: Machine, name: str) -> bool:
    """As a boot's log has it: by libvirtd, or libvirt-guests that asked it."""
    said = host.run("journalctl -b -o cat --no-pager -u libvirtd").stdout
    line = (
        f"50-bootlock {name} prepare begin -) unexpected exit status 1: bootlock: start refused: "
    )
    return f"{line}{NOTICE} [hold " in said


def _is_proper(host: Machine) -> bool:
    """All of this boot has started, AppArmor confines libvirtd, and the daemon came before it."""
    assert host.run("systemctl is-system-running --wait", check=False).stdout == "running\n"
    assert host.run("cat /proc/$(pidof libvirtd)/attr/current").stdout == "libvirtd (enforce)\n"
    ready = _moment(host, "bootlockd", "ActiveEnterTimestampMonotonic")
    started = _moment(host, "libvirtd", "ExecMainStartTimestampMonotonic")
    return 0 < ready <= started and host.run("bootlock doctor").returncode == 0


def _moment(host: Machine, unit: str, which: str) -> int:
    return int(host.run(f"systemctl show --value --property={which} {unit}").stdout)
