"""Whatever becomes of the daemon, starts of held guests are refused: libvirt does not ask it."""

from __future__ import annotations

import pytest

from e2e.guests import define, is_held, place
from e2e.machine import Machine
from waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

UNITS = "bootlockd.service bootlock-sync.service bootlock-metrics.service"


@pytest.fixture
def held(host: Machine) -> str:
    define(host, "held")
    place(host, "held")
    return "held"


def test_killed_it_comes_back_and_meanwhile_nothing_starts(host: Machine, held: str) -> None:
    before = _pid(host)
    done = host.run(f"systemctl kill --signal=KILL bootlockd; virsh start {held}", check=False)
    assert "bootlock: start refused: " in done.stderr
    wait_until(lambda: _pid(host) not in {before, 0} and _is_ready(host), "it is back", 300)
    assert is_held(host, held)


def test_stopped_and_masked_it_is_not_missed(host: Machine, held: str) -> None:
    host.run(f"systemctl mask --now {UNITS}")
    try:
        assert is_held(host, held)
        doctor = host.run("bootlock doctor", check=False)
        assert doctor.returncode == 1
        assert "daemon" in doctor.stdout
    finally:
        host.run(f"systemctl unmask {UNITS}; systemctl start {UNITS}")
    host.run("bootlock doctor")


def _pid(host: Machine) -> int:
    return int(host.run("systemctl show --value --property=MainPID bootlockd").stdout)


def _is_ready(host: Machine) -> bool:
    return host.run("systemctl is-active bootlockd", check=False).stdout == "active\n"
