"""The RAM of a locking suspend is not lost: not by --force-boot, a removal, or Nova."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from daemon_live import bootsectors
from daemon_live.runner import (
    Daemon,
    place,
    power,
    release,
    row_of,
    start_guest,
    wait_enforced,
    wait_power,
)
from daemonhost import SETTINGS
from live.guests import Identity
from lockdb.enforcements import State
from lockdb.values import Hold, OnRunning
from privatehost import PrivateHost
from waiting import wait_until

pytestmark = pytest.mark.live

SAVES = "/var/lib/libvirt/qemu/save"
CUSTODY = "/var/lib/libvirt/bootlock-custody"
HOOK = "/etc/libvirt/hooks/qemu.d/50-bootlock"

#: Notes the processor's clock, once, at 0x7e04, and then counts at 0x7e00, for ever.
COUNTING = """
    31 c0 8e d8                     xor ax, ax; mov ds, ax
    0f 31 66 a3 04 7e               rdtsc; mov [0x7e04], eax
    66 c7 06 00 7e 00 00 00 00      mov dword [0x7e00], 0
    66 ff 06 00 7e                  again: inc dword [0x7e00]
    b9 00 40 e2 fe                  mov cx, 0x4000; wait: loop wait
    eb f4                           jmp again
"""


class Counter:
    """A guest whose RAM tells when it booted, and that it goes on."""

    def __init__(self, host: PrivateHost, guest: Identity) -> None:
        self.host, self.guest = host, guest
        self.disk = bootsectors.write(host.images / f"{guest.name}.img", COUNTING)
        self.save = host.outside(SAVES) / f"{guest.name}.save"
        self.kept = host.outside(CUSTODY) / f"{guest.uuid}.save"
        start_guest(host, guest.name, guest.uuid, disks=[self.disk])
        wait_until(lambda: self.read() > 0, "it counts")

    def read(self) -> int:
        return self._words()[0]

    def booted(self) -> int:
        return self._words()[1]

    def _words(self) -> tuple[int, int]:
        said = self.host.virsh("qemu-monitor-command", "--hmp", self.guest.name, "xp /2wx 0x7e00")
        count, boot = re.findall(r"0x([0-9a-f]{8})\b", said.stdout)
        return int(count, 16), int(boot, 16)

    def suspend(self, daemon: Daemon) -> Hold:
        """Place a hold with a locking suspend, and wait until its RAM is in custody."""
        hold = place(self.host, self.guest.uuid, OnRunning.MANAGED_SAVE)
        daemon.wake()
        wait_enforced(self.host, hold, "off, its RAM saved")
        self.wait_kept(hold)
        return hold

    def wait_kept(self, hold: Hold) -> None:
        """What libvirt would restore is what is in custody, and a row says so."""
        wait_until(lambda: self.is_kept() and custody(self.host, hold) is State.ENFORCED, "kept")

    def is_kept(self) -> bool:
        try:
            return os.path.samefile(self.save, self.kept)
        except FileNotFoundError:
            return False

    def reason(self) -> str:
        return self.host.virsh("domstate", "--reason", self.guest.name).stdout.strip()


@pytest.fixture
def counter(host: PrivateHost, guest: Identity) -> Counter:
    return Counter(host, guest)


@pytest.fixture(autouse=True)
def nothing_left(host: PrivateHost) -> Iterator[None]:
    """Each test ends its custody by releasing its hold."""
    yield
    left = list(host.outside(CUSTODY).iterdir()) if host.outside(CUSTODY).exists() else []
    for path in (*left, *host.outside(SAVES).iterdir()):
        path.unlink()
    assert not left


def custody(host: PrivateHost, hold: Hold) -> State | None:
    row = row_of(host, hold, "custody")
    return row.state if row else None


def detail(host: PrivateHost, hold: Hold) -> str:
    row = row_of(host, hold, "custody")
    return row.detail if row else ""


def end(host: PrivateHost, daemon: Daemon, hold: Hold) -> None:
    release(host, hold)
    daemon.wake()
    wait_until(lambda: custody(host, hold) is State.LIFTED, "custody has ended")


def force_boot(counter: Counter, hold: Hold) -> None:
    refused = counter.host.virsh("start", "--force-boot", counter.guest.name, check=False)
    assert f"[hold {hold.id}]" in refused.stderr


def remove_managed_save(counter: Counter, _hold: Hold) -> None:
    counter.host.virsh("managedsave-remove", counter.guest.name)


def unlink_it(counter: Counter, _hold: Hold) -> None:
    counter.save.unlink()


def define_anew(counter: Counter, _hold: Hold) -> None:
    """As Nova does after each refused start."""
    document = counter.host.root / "domain.xml"
    document.write_text(counter.host.virsh("dumpxml", counter.guest.name).stdout)
    counter.host.virsh("undefine", "--managed-save", counter.guest.name)
    assert not counter.save.exists()
    assert counter.kept.exists()
    counter.host.virsh("define", document)


LOSSES = [force_boot, remove_managed_save, unlink_it, define_anew]


@pytest.mark.parametrize("lose", LOSSES)
def test_the_counter_goes_on(
    host: PrivateHost, daemon: Daemon, counter: Counter, lose: Callable[[Counter, Hold], None]
) -> None:
    """Locking suspend; the image is taken away; release --start: the guest never noticed."""
    before, booted = counter.read(), counter.booted()
    hold = counter.suspend(daemon)
    began = time.monotonic()
    lose(counter, hold)
    wait_until(counter.is_kept, "its managed save is back")
    print(f"{lose.__name__}: back after {(time.monotonic() - began) * 1000:.0f} ms at most")
    wait_until(lambda: custody(host, hold) is State.ENFORCED, "custody is enforced")
    assert power(host, counter.guest.uuid) == "off"
    host.bootlock("release", hold.id, "--reason", "paid", "--start")
    assert counter.reason() == "running (restored)"
    assert counter.booted() == booted
    first = counter.read()
    assert first >= before
    wait_until(lambda: counter.read() > first, "it goes on counting")
    wait_until(lambda: custody(host, hold) is State.LIFTED, "custody has ended")


@pytest.mark.parametrize("how", ["KILL", "TERM"])
def test_what_was_taken_while_no_daemon_ran_is_put_back(
    host: PrivateHost, daemon: Daemon, counter: Counter, how: str
) -> None:
    booted = counter.booted()
    hold = counter.suspend(daemon)
    daemon.end(how)
    force_boot(counter, hold)
    assert not counter.save.exists()
    daemon.start()
    counter.wait_kept(hold)
    end(host, daemon, hold)
    host.virsh("start", counter.guest.name)
    assert counter.reason() == "running (restored)"
    assert counter.booted() == booted


def test_killed_at_any_moment_the_ram_ends_in_custody(
    host: PrivateHost, daemon: Daemon, counter: Counter
) -> None:
    booted = counter.booted()
    for moment in range(6):
        hold = place(host, counter.guest.uuid, OnRunning.MANAGED_SAVE)
        daemon.wake()
        time.sleep(moment * 0.15)
        daemon.end("KILL")
        if counter.is_kept():
            force_boot(counter, hold)
        daemon.start()
        counter.wait_kept(hold)
        host.bootlock("release", hold.id, "--reason", "paid", "--start")
        assert counter.booted() == booted, moment


def test_ram_that_was_saved_before_the_hold_came_is_kept(
    host: PrivateHost, daemon: Daemon, counter: Counter
) -> None:
    host.virsh("managedsave", counter.guest.name)
    hold = place(host, counter.guest.uuid, OnRunning.LEAVE)
    daemon.wake()
    counter.wait_kept(hold)
    force_boot(counter, hold)
    counter.wait_kept(hold)
    end(host, daemon, hold)
    assert counter.save.exists()


def test_without_the_start_the_managed_save_stays_and_custody_ends(
    host: PrivateHost, daemon: Daemon, counter: Counter
) -> None:
    hold = counter.suspend(daemon)
    image = counter.save.stat().st_ino
    host.bootlock("release", hold.id, "--reason", "paid")
    assert custody(host, hold) is State.LIFTED
    assert not counter.kept.exists()
    assert counter.save.stat().st_ino == image
    assert power(host, counter.guest.uuid) == "off"
    assert f"instance={counter.guest.uuid} custody ends" in daemon.log


def test_an_undefined_domain_ends_no_custody(
    host: PrivateHost, daemon: Daemon, counter: Counter
) -> None:
    hold = counter.suspend(daemon)
    document = host.root / "domain.xml"
    document.write_text(host.virsh("dumpxml", counter.guest.name).stdout)
    host.virsh("undefine", "--managed-save", counter.guest.name)
    wait_until(lambda: "not defined" in detail(host, hold), "its absence is noticed")
    assert custody(host, hold) is State.ENFORCED
    daemon.end("KILL")
    daemon.start()
    host.restart_libvirtd()
    daemon.wake()
    assert counter.kept.exists()
    # Released meanwhile, it has some time to come back.
    release(host, hold)
    daemon.wake()
    wait_until(lambda: "goes soon" in detail(host, hold), "its end is announced")
    assert counter.kept.exists()
    host.virsh("define", document)
    wait_until(lambda: custody(host, hold) is State.LIFTED, "custody has ended")
    assert counter.save.exists()


def test_a_permitted_start_uses_the_ram_and_it_is_not_put_back(
    host: PrivateHost, daemon: Daemon, counter: Counter
) -> None:
    booted = counter.booted()
    hold = counter.suspend(daemon)
    permit = host.bootlock(
        "permit", counter.guest.uuid, "--op", "start", "--for", "1h", "--reason", "x", "--json"
    )
    host.virsh("start", counter.guest.name)
    assert counter.booted() == booted
    wait_until(lambda: not counter.kept.exists(), "custody of the used RAM has ended")
    assert not counter.save.exists()
    host.virsh("destroy", counter.guest.name)
    permit_id = json.loads(permit.stdout)["id"]
    host.bootlock("permit", "--revoke", permit_id, "--reason", "done")
    wait_until(lambda: custody(host, hold) is State.NOT_HERE, "nothing is in custody")
    assert not counter.save.exists()
    end_quietly(host, daemon, hold)


def end_quietly(host: PrivateHost, daemon: Daemon, hold: Hold) -> None:
    release(host, hold)
    daemon.wake()


def test_ram_older_than_its_disks_is_set_aside(
    host: PrivateHost, daemon: Daemon, counter: Counter
) -> None:
    """It ran since, past the hook and while no daemon looked: restored, it would ruin its disks."""
    hold = counter.suspend(daemon)
    daemon.end("KILL")
    counter.save.unlink()
    counter.disk.write_bytes(counter.disk.read_bytes())
    daemon.start()
    wait_until(lambda: "set aside" in detail(host, hold), "it is set aside")
    assert custody(host, hold) is State.FAILED
    assert not counter.save.exists()
    assert counter.kept.with_suffix(".ran").exists()
    end(host, daemon, hold)


def test_a_second_suspend_is_kept_in_place_of_the_first(
    host: PrivateHost, counter: Counter
) -> None:
    """Started past a hook that was switched off, suspended again: the newer RAM is the one."""
    booted = counter.booted()
    hook = host.outside(HOOK)
    with Daemon(host, settings=f"{SETTINGS}\n[image_lock]\nenabled = false\n") as daemon:
        hold = counter.suspend(daemon)
        with counter.kept.open("rb") as first:
            hook.chmod(0o644)
            try:
                host.virsh("start", counter.guest.name)
                wait_until(lambda: not _same(counter.kept, first), "the newer one is kept")
            finally:
                hook.chmod(0o755)
        counter.wait_kept(hold)
        wait_power(host, counter.guest.uuid, "off")
        end(host, daemon, hold)
        host.virsh("start", counter.guest.name)
        assert counter.booted() == booted


def _same(path: Path, opened: IO[bytes]) -> bool:
    return path.stat().st_ino == os.fstat(opened.fileno()).st_ino


def test_a_custody_under_another_mount_fails_with_its_mend(
    host: PrivateHost, counter: Counter
) -> None:
    host.run(["mkdir", "-p", "/run/elsewhere"])
    settings = f"{SETTINGS}\n[custody]\ndirectory = '/run/elsewhere/custody'\n"
    host.run(["mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", "/run/elsewhere"])
    try:
        with Daemon(host, settings=settings) as daemon:
            hold = place(host, counter.guest.uuid, OnRunning.MANAGED_SAVE)
            daemon.wake()
            wait_until(lambda: custody(host, hold) is State.FAILED, "it fails")
            assert "must be under one mount" in detail(host, hold)
            assert counter.save.exists()
            end(host, daemon, hold)
    finally:
        host.run(["umount", "/run/elsewhere"])


def test_a_guest_that_was_renamed_keeps_its_ram(
    host: PrivateHost, daemon: Daemon, counter: Counter
) -> None:
    """libvirt would refuse it under the new name; back under the old one, it goes on."""
    hold = counter.suspend(daemon)
    daemon.end("KILL")
    host.virsh("managedsave-remove", counter.guest.name)
    host.virsh("domrename", counter.guest.name, "else")
    daemon.start()
    wait_until(lambda: "rename the domain back" in detail(host, hold), "the mend is told")
    assert custody(host, hold) is State.FAILED
    host.virsh("domrename", "else", counter.guest.name)
    counter.wait_kept(hold)
    end(host, daemon, hold)


def test_a_guest_with_a_hostile_name_is_suspended_and_goes_on(
    host: PrivateHost, daemon: Daemon, guest: Identity
) -> None:
    names = ["-rf", "$(id)", "a b;c'd\"e", "...", "Grüße"]
    for name in names:
        disk = bootsectors.write(host.images / "hostile.img", COUNTING)
        start_guest(host, name, guest.uuid, disks=[disk])
        hold = place(host, guest.uuid, OnRunning.MANAGED_SAVE)
        daemon.wake()
        wait_until(lambda h=hold: custody(host, h) is State.ENFORCED, "kept")  # type: ignore[misc]
        save = host.outside(SAVES) / f"{name}.save"
        save.unlink()
        wait_until(save.exists, "put back")
        host.bootlock("release", hold.id, "--reason", "paid", "--start")
        wait_power(host, guest.uuid, "running")
        host.virsh("destroy", guest.uuid)
        host.virsh("undefine", guest.uuid)
