"""bootlock and bootlockd together: what ``place`` orders is so when it returns."""

from __future__ import annotations

import json
import os
import pty
import re
import sys
import uuid as uuids
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.guests import OFF, PAUSED, RUNNING, Guest, power_row
from daemonhost import Daemon
from domainxml import domain_xml
from privatehost import PrivateHost
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def daemon(host: PrivateHost) -> Iterator[Daemon]:
    with Daemon(host) as daemon:
        yield daemon


@pytest.fixture
def guest(host: PrivateHost, daemon: Daemon) -> Iterator[Guest]:
    guest = Guest(host)
    yield guest
    guest.remove()


def power(placed: Any) -> tuple[str, str]:
    (row,) = [row for row in placed["enforcement"] if row["fence"] == "power"]
    return row["state"], row["detail"]


def test_destroy_is_done_when_place_returns(guest: Guest) -> None:
    assert power(guest.place("--on-running", "destroy")) == ("enforced", "off")
    assert guest.state() == OFF


def test_a_guest_that_ignores_acpi_is_destroyed_after_the_grace(guest: Guest) -> None:
    placed = guest.place("--on-running", "shutdown", "--grace", "2")
    assert power(placed) == ("enforced", "off")
    assert guest.state() == OFF
    events = json.loads(
        guest.host.bootlock("journal", "show", "--instance", guest.uuid, "--json").stdout
    )
    told = [e["detail"] for e in events if e["event"] == "enforcement" and e["fence"] == "power"]
    assert told == ["asked to shut down", "off"]


def test_leave_leaves_it_and_another_run_is_ended(guest: Guest, daemon: Daemon) -> None:
    """It went off and came back unseen, by the hook and by a daemon that hung meanwhile."""
    state, detail = power(guest.place("--on-running", "leave"))
    assert (state, guest.state()) == ("enforced", RUNNING)
    first = guest.run_number()
    assert detail == f"left running, as ordered (run {first})"
    hook = guest.host.outside("/etc/libvirt/hooks/qemu.d/50-bootlock")
    daemon.signal("STOP")
    try:
        hook.chmod(0o644)
        guest.host.virsh("destroy", guest.uuid)
        guest.host.virsh("start", guest.uuid)
        assert guest.run_number() != first
    finally:
        hook.chmod(0o755)
        daemon.signal("CONT")
    wait_until(lambda: guest.state() == OFF, "the other run is ended")
    wait_until(lambda: detail_of(guest) == "off", "and that is recorded")
    refused = guest.host.virsh("start", guest.uuid, check=False)
    assert "[hold " in refused.stderr
    assert guest.state() == OFF


def detail_of(guest: Guest) -> str:
    row = power_row(guest.host, guest.uuid)
    return str(row["detail"]) if row else ""


def test_a_locking_suspend_keeps_the_ram_and_the_start_is_refused(guest: Guest) -> None:
    placed = guest.place("--on-running", "managed-save")
    assert power(placed) == ("enforced", "off, its RAM saved")
    assert "yes" in guest.host.virsh("dominfo", guest.uuid).stdout.split("Managed save:")[1]
    assert guest.host.virsh("start", guest.uuid, check=False).returncode != 0
    assert guest.release().returncode == 0
    guest.host.virsh("start", guest.uuid)
    assert guest.state() == RUNNING


@pytest.mark.parametrize("by", ["resume", "monitor cont"])
def test_a_paused_guest_that_is_let_run_is_paused_again(
    guest: Guest, daemon: Daemon, by: str
) -> None:
    assert power(guest.place("--on-running", "pause")) == ("enforced", "paused")
    assert guest.state() == PAUSED
    stopped = f"instance={guest.uuid} guest={guest.name!r} runs: pause"
    assert daemon.log.count(stopped) == 1
    if by == "resume":
        guest.host.virsh("resume", guest.uuid)
    else:
        guest.host.virsh("qemu-monitor-command", guest.uuid, "--hmp", "cont")
    wait_until(lambda: daemon.log.count(stopped) == 2, "it is seen to run")
    wait_until(lambda: guest.state() == PAUSED, "it is paused again")
    assert guest.release().returncode == 0
    assert guest.state() == RUNNING, "release lets go on what the hold paused"


def test_without_wait_place_returns_at_once_and_the_daemon_goes_on(guest: Guest) -> None:
    placed = guest.place("--on-running", "destroy", "--no-wait")
    assert placed["enforcement"] is None
    wait_until(lambda: guest.state() == OFF, "the daemon destroys it")


def test_place_prints_what_was_done_and_show_and_status_tell_it(guest: Guest) -> None:
    order = ["place", guest.uuid, "--reason", "r", "--on-running", "destroy"]
    assert "\npower: off\n" in guest.host.bootlock(*order).stdout
    assert "\npower: off (last seen so 20" in guest.host.bootlock("show", guest.uuid).stdout
    status = json.loads(guest.host.bootlock("status", "--json", check=False).stdout)
    assert status["enforcement"]["power"]["enforced"] >= 1
    (finding,) = [f for f in status["findings"] if f["check"] == "daemon"]
    assert finding["level"] == "ok"
    assert "it answers, enforces" in finding["detail"]


def test_an_order_that_fails_is_said_and_is_a_fault_until_it_is_done(
    host: PrivateHost, daemon: Daemon
) -> None:
    uuid = str(uuids.uuid4())
    definition = host.root / "transient.xml"
    definition.write_text(domain_xml("transient", uuid), "utf-8")
    host.virsh("create", definition)
    order = ["place", uuid, "--reason", "r", "--on-running", "managed-save"]
    done = host.bootlock(*order, check=False)
    assert done.returncode == 1
    assert "power: FAILED: transient is transient" in done.stdout
    assert "not enforced: power; the daemon tries again" in done.stderr
    doctor = host.bootlock("doctor", check=False)
    assert f"power of {uuid}" in doctor.stdout
    host.virsh("destroy", uuid)
    wait_until(lambda: power_row(host, uuid)["state"] == "enforced", "it is off: as good as saved")
    host.bootlock("release", "--instance", uuid, "--all", "--reason", "r")


def test_progress_is_shown_on_a_terminal_only(guest: Guest) -> None:
    order = ["place", guest.uuid, "--reason", "r", "--on-running", "shutdown", "--grace", "3"]
    primary, secondary = pty.openpty()
    program: list[str | Path] = [Path(sys.executable).parent / "bootlock", *order]
    process = guest.host.popen(program, stderr=secondary)
    os.close(secondary)
    said = b""
    try:
        while part := os.read(primary, 4096):
            said += part
    except OSError:  # the other side is closed
        pass
    os.close(primary)
    assert process.wait(PATIENCE) == 0
    assert re.search(rb"power: asked to shut down, [1-9]\d* s of 3 s", said)
    assert said.endswith(b"\r\x1b[K")


def test_a_permit_lets_a_start_through_and_its_end_stops_it_again(guest: Guest) -> None:
    guest.place("--on-running", "destroy")
    permit = ["permit", guest.uuid, "--op", "start", "--for", "1h", "--reason", "r", "--json"]
    granted = json.loads(guest.host.bootlock(*permit).stdout)
    guest.host.virsh("start", guest.uuid)
    assert guest.state() == RUNNING
    guest.host.bootlock("permit", "--revoke", granted["id"], "--reason", "r")
    assert guest.state() == OFF


def test_a_permit_that_runs_out_stops_it_at_that_moment(guest: Guest, daemon: Daemon) -> None:
    guest.place("--on-running", "destroy")
    permit = ["permit", guest.uuid, "--op", "start", "--for", "15s", "--reason", "r"]
    guest.host.bootlock(*permit)
    guest.host.virsh("start", guest.uuid)
    # Well before the next full look, which would see it in any case.
    wait_until(lambda: guest.state() == OFF, "the permit ends", timeout=45)
