"""What happens to bootlockd, and to what is around it, and that holds are true all the same."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator

import pytest

from daemon.guests import OFF, RUNNING, Guest, power_row
from daemonhost import PROGRAM, SETTINGS, Daemon
from privatehost import PrivateHost
from waiting import wait_until

pytestmark = pytest.mark.live

DATABASE = "/var/lib/bootlock/lock.db"
HOOK = "/etc/libvirt/hooks/qemu.d/50-bootlock"
BREAK_GLASS = "/run/bootlock/break-glass"


@pytest.fixture
def guest(host: PrivateHost) -> Iterator[Guest]:
    guest = Guest(host)
    yield guest
    guest.remove()


def events(host: PrivateHost) -> list[str]:
    entries = json.loads(host.bootlock("journal", "show", "--json").stdout)
    return [entry["event"] for entry in entries]


def enforced(host: PrivateHost, guest: Guest) -> bool:
    row = power_row(host, guest.uuid)
    return bool(row) and row["state"] == "enforced"


def test_holds_placed_while_it_was_down_are_true_once_it_is_up(
    host: PrivateHost, guest: Guest
) -> None:
    order = ["place", guest.uuid, "--reason", "r", "--on-running", "destroy"]
    alone = host.bootlock(*order, check=False)
    assert alone.returncode == 6
    assert f"{guest.name} still runs: no daemon on this host carries out destroy" in alone.stderr
    assert guest.state() == RUNNING
    with Daemon(host):
        wait_until(lambda: guest.state() == OFF, "it is destroyed")
        wait_until(lambda: enforced(host, guest), "and that is recorded")
    released = guest.release()
    assert released.returncode == 6
    assert "not undone by the daemon yet: " in released.stderr
    assert "power: off" in released.stderr


def test_killed_in_the_grace_it_goes_on_where_it_was(host: PrivateHost, guest: Guest) -> None:
    with Daemon(host) as daemon:
        order = ["--on-running", "shutdown", "--grace", "12", "--no-wait"]
        placed = time.time()
        guest.place(*order)
        wait_until(lambda: (power_row(host, guest.uuid) or {}).get("state") == "pending", "asked")
        daemon.end("KILL")
        assert guest.state() == RUNNING
        daemon.start()
        wait_until(lambda: guest.state() == OFF, "the grace ends")
        # The grace began when the guest was asked, not when the daemon came back.
        assert time.time() - placed >= 11
        assert daemon.log.count("runs: shutdown") >= 1


def test_a_restarted_libvirtd_is_connected_to_proven_and_watched_again(
    host: PrivateHost, guest: Guest
) -> None:
    with Daemon(host) as daemon:
        guest.place("--on-running", "pause")
        (first,) = daemon.status()["armed"]
        # Proofs are told apart by their second.
        wait_until(lambda: time.time() >= first["at"] + 1, "the first proof's second is over")
        host.stop_libvirtd()
        wait_until(lambda: not daemon.status()["libvirt"]["qemu:///system"], "it is missed")
        host.start_libvirtd()
        wait_until(lambda: daemon.status()["libvirt"]["qemu:///system"], "it is found again")
        wait_until(lambda: daemon.status()["armed"][0]["at"] >= first["at"] + 1, "proven again")
        assert daemon.status()["armed"][0]["armed"]
        host.virsh("resume", guest.uuid)
        wait_until(lambda: guest.state() == "paused", "events of the new libvirtd arrive")


def test_a_libvirtd_that_hangs_holds_up_neither_answers_nor_what_comes_after(
    host: PrivateHost, guest: Guest
) -> None:
    libvirtd = host.outside("/run/libvirtd.pid").read_text().strip()
    with Daemon(host) as daemon:
        host.run(["kill", "-s", "STOP", libvirtd])
        try:
            uuid = guest.uuid
            order = ["place", uuid, "--reason", "r", "--on-running", "destroy", "--no-wait"]
            assert host.bootlock(*order).returncode == 0
            wait_until(lambda: daemon.status()["holds"] == 1, "the hold is read")
            # Started anew, it becomes ready without libvirt too.
            daemon.end("KILL")
            daemon.launch()
            wait_until(lambda: "ready: enforcing 1 holds" in daemon.log, "it is ready")
            assert "libvirt has not answered yet" in daemon.log
        finally:
            host.run(["kill", "-s", "CONT", libvirtd])
        wait_until(lambda: guest.state() == OFF, "it is destroyed when libvirtd answers")


def test_holds_that_vanish_with_their_database_stay_in_force(
    host: PrivateHost, guest: Guest
) -> None:
    path = host.outside(DATABASE)
    kept = path.with_name("kept.db")
    with Daemon(host) as daemon:
        hold = guest.place("--on-running", "pause")["id"]
        path.rename(kept)
        try:
            wait_until(lambda: daemon.status()["database_error"], "it is missed at once")
            host.bootlock("init")
            wait_until(lambda: daemon.status()["vanished"] == [hold], "another one is seen")
            host.virsh("resume", guest.uuid)
            wait_until(lambda: guest.state() == "paused", "the hold is enforced still")
            doctor = host.bootlock("doctor", check=False)
            assert doctor.returncode == 1
            assert f"daemon: vanished {hold}" in doctor.stdout
        finally:
            for name in ("lock.db", "lock.db-wal", "lock.db-shm"):
                path.with_name(name).unlink(missing_ok=True)
            kept.rename(path)
        wait_until(lambda: not daemon.status()["vanished"], "the old one is back")


def test_a_hook_that_is_changed_is_tried_at_once_and_the_outcome_journalled(
    host: PrivateHost,
) -> None:
    with Daemon(host) as daemon:
        wait_until(lambda: daemon.status()["armed"], "the first proof")
        assert daemon.status()["armed"][0]["armed"]
        host.outside(HOOK).chmod(0o644)
        wait_until(lambda: not daemon.status()["armed"][0]["armed"], "it is disarmed")
        assert "qemu:///system NOT ARMED, held instances may start" in daemon.log
        wait_until(lambda: events(host)[-1] == "disarmed", "it is journalled")
        host.outside(HOOK).chmod(0o755)
        wait_until(lambda: daemon.status()["armed"][0]["armed"], "it is armed again")
        wait_until(lambda: events(host)[-1] == "armed", "it is journalled")
        decide = host.outside("/usr/share/bootlock/decide.sql")
        shutil.move(decide, decide.with_name("away"))
        wait_until(lambda: not daemon.status()["armed"][0]["armed"], "it can't decide")
        shutil.move(decide.with_name("away"), decide)
        wait_until(lambda: daemon.status()["armed"][0]["armed"], "it can again")


def test_break_glass_is_journalled_even_if_the_database_was_broken_then(
    host: PrivateHost,
) -> None:
    path, away = host.outside(DATABASE), host.outside(DATABASE).with_name("away.db")
    with Daemon(host) as daemon:
        before = len(events(host))
        path.rename(away)
        try:
            host.outside(BREAK_GLASS).touch()
            wait_until(lambda: daemon.status()["break_glass"], "it is seen")
            host.outside(BREAK_GLASS).unlink()
            wait_until(lambda: not daemon.status()["break_glass"], "it is seen to go")
        finally:
            away.rename(path)
        wait_until(lambda: "break_glass_off" in events(host)[before:], "it is journalled")
        told = [event for event in events(host)[before:] if event.startswith("break_glass")]
        assert told == ["break_glass_on", "break_glass_off"]
    assert "/run/bootlock/break-glass exists: starts that can't be decided" in daemon.log


def test_new_settings_take_effect_and_bad_ones_do_not(host: PrivateHost, guest: Guest) -> None:
    with Daemon(host) as daemon:
        guest.place("--on-running", "pause")
        began = daemon.status()["started"]
        daemon.write_settings("[daemon]\ninterval = 'often'\n")
        daemon.signal("HUP")
        wait_until(lambda: "daemon.interval: must be a whole number" in daemon.log, "refused")
        assert daemon.status()["started"] == began
        daemon.write_settings(SETTINGS + "[daemon]\npatience = 7\n")
        daemon.signal("HUP")
        wait_until(lambda: daemon.log.count("ready: enforcing 1 holds") == 1, "it began anew")
        host.virsh("resume", guest.uuid)
        wait_until(lambda: guest.state() == "paused", "it enforces as before")
        assert daemon.end() == 0
    assert not host.outside("/run/bootlock/control.sock").exists()


def test_a_second_daemon_does_not_take_the_first_ones_place(host: PrivateHost) -> None:
    with Daemon(host) as daemon:
        second = host.popen(["/bin/sh", "-c", 'exec "$0" 2>&1', str(PROGRAM)])
        said, _ = second.communicate(timeout=60)
        assert second.returncode == 2
        assert "another bootlockd answers there" in said
        assert daemon.status()["looked"]
