"""The network fence in the running daemon, with real guests of libvirt's.

The guests have no system, but firmware that asks for an address by DHCP at each reset: frames of
its own making, which a listener on the bridge sees or doesn't.
"""

import contextlib
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import libvirt
import pytest

from bootlockd import hypervisor
from daemon_live.runner import Daemon, database, release, row_of
from daemonhost import SETTINGS
from domainxml import domain_xml
from fences.netscene import BRIDGE, PEER, Talker, build, flush, is_cut, is_up, rules, set_up
from live.guests import Identity, remove_all, somebody_new
from lockdb import holds, permits
from lockdb.database import open_db
from lockdb.enforcements import State
from lockdb.values import Hold, NewHold, Operation
from privatehost import PrivateHost
from waiting import wait_until

pytestmark = pytest.mark.live

SILENCE = 3.0

#: The firmware, reset at a bad moment, sometimes never comes to ask for an address: after so many
#: seconds it is reset again, so often.
FIRMWARE = 20.0
TRIES = 6


def nic(mac: str, *, device: str = "", kind: str = "bridge", order: str = "") -> str:
    source = f"<source bridge='{BRIDGE}'/>" if kind == "bridge" else ""
    target = f"<target dev='{device}'/>" if device else ""
    return (
        f"<interface type='{kind}'><mac address='{mac}'/>{source}{target}"
        f"<model type='virtio'/>{order}</interface>"
    )


def mac_of(guest: Identity, number: int = 1) -> str:
    return f"52:54:{guest.uuid[:2]}:{guest.uuid[2:4]}:{guest.uuid[4:6]}:{number:02x}"


@pytest.fixture(scope="module")
def host() -> Iterator[PrivateHost]:
    with PrivateHost() as host:
        host.install_bootlock()
        build(host)
        yield host


@pytest.fixture(scope="module")
def shared(host: PrivateHost) -> Iterator[Daemon]:
    with Daemon(host, settings=SETTINGS) as daemon:
        yield daemon


@pytest.fixture
def daemon(shared: Daemon) -> Daemon:
    if not shared.runs:
        shared.start()
    return shared


@dataclass
class Held:
    """A guest with one NIC, and the hold that isolates it once it is placed."""

    host: PrivateHost
    daemon: Daemon
    guest: Identity
    sniffer: Talker
    hold: Hold | None = None
    #: Seconds that its firmware takes from a reset to its first frame.
    takes: float = 0.0

    def isolate(self) -> Hold:
        new = NewHold(self.guest.uuid, "abuse", "a test", isolate=True)
        with open_db(database(self.host)) as lock_db:
            self.hold = holds.place(lock_db, new, now=int(time.time()))
        self.daemon.wake()
        return self.hold

    def release(self) -> None:
        assert self.hold
        release(self.host, self.hold)
        self.daemon.wake()
        self.wait(State.LIFTED)

    def row(self) -> tuple[State, str] | None:
        assert self.hold
        row = row_of(self.host, self.hold, "network")
        return (row.state, row.detail) if row else None

    def wait(self, state: State, detail: str = "") -> None:
        def is_so() -> bool:
            row = self.row()
            return row is not None and row[0] is state and detail in row[1]

        try:
            wait_until(is_so, f"network is {state} {detail}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}, but {self.row()}; {self.daemon.log[-3000:]}") from error

    @contextlib.contextmanager
    def domain(self) -> Iterator[libvirt.virDomain]:
        with closing(self.host.connect()) as opened:
            yield hypervisor.look_up(opened, self.guest.uuid)

    def devices(self) -> list[str]:
        listed = self.host.virsh("domiflist", self.guest.uuid).stdout.splitlines()[2:]
        return [line.split()[0] for line in listed if line.strip()]

    def speaks(self) -> None:
        """It is heard after a reset: nothing of ours is on its device."""
        (device,) = self.devices()
        assert is_up(self.host, device)
        assert f'"{device}"' not in rules(self.host)
        for _ in range(TRIES):
            self.reset()
            began = time.monotonic()
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: self.sniffer.say("now"), "the guest is heard", FIRMWARE)
                self.takes = time.monotonic() - began
                return
        raise TimeoutError(f"not heard after {TRIES} resets")

    def is_silent(self) -> bool:
        """Nothing is heard after a reset, for longer than it takes, and no less than SILENCE."""
        self.reset()
        time.sleep(max(SILENCE, 2 * self.takes))
        return bool(self.sniffer.say("now") == 0)

    def reset(self) -> None:
        with self.domain() as domain:
            domain.reset()
        self.sniffer.say("forget what was before")


@pytest.fixture
def held(host: PrivateHost, daemon: Daemon) -> Iterator[Held]:
    """A guest that is heard on the bridge; not isolated yet."""
    guest = somebody_new()
    with Talker(host, "sniff.py", mac_of(guest), BRIDGE, PEER, greets=True) as sniffer:
        with closing(host.connect()) as opened:
            first = nic(mac_of(guest), order="<boot order='1'/>")
            opened.defineXML(domain_xml(guest.name, guest.uuid, devices=first)).create()
        held = Held(host, daemon, guest, sniffer)
        held.speaks()
        yield held
        with open_db(database(host)) as lock_db:
            for hold in holds.active(lock_db, now=int(time.time()), instance=guest.uuid):
                holds.release(lock_db, hold.id, reason="over", by="a test", now=int(time.time()))
        if daemon.runs:
            daemon.wake()
            if held.hold:
                held.wait(State.LIFTED)
    remove_all(host)


def test_nothing_is_heard_of_an_isolated_guest_and_all_again_after_release(held: Held) -> None:
    (device,) = held.devices()
    held.isolate()
    held.wait(State.ENFORCED, f"cut: {device}")
    assert is_cut(held.host, device)
    assert held.is_silent()
    held.release()
    assert is_up(held.host, device)
    assert "bootlock" not in rules(held.host)
    held.speaks()


def test_a_hold_that_does_not_isolate_cuts_nothing(held: Held) -> None:
    new = NewHold(held.guest.uuid, "unpaid", "a test")
    with open_db(database(held.host)) as lock_db:
        hold = holds.place(lock_db, new, now=int(time.time()))
    held.daemon.wake()
    wait_until(lambda: row_of(held.host, hold), "the hold is enforced")
    assert row_of(held.host, hold, "network") is None
    held.speaks()


def test_a_hot_plugged_nic_is_cut_and_a_neighbours_is_not(held: Held) -> None:
    held.isolate()
    held.wait(State.ENFORCED)
    second = mac_of(held.guest, 2)
    with Talker(held.host, "sniff.py", second, BRIDGE, PEER, greets=True) as sniffer:
        with held.domain() as domain:
            domain.attachDeviceFlags(nic(second), libvirt.VIR_DOMAIN_AFFECT_LIVE)
        first, new = held.devices()
        wait_until(lambda: is_cut(held.host, new), "the new NIC is cut")
        held.wait(State.ENFORCED, f"cut: {', '.join(sorted([first, new]))}")
        assert held.is_silent()
        assert sniffer.say("now") == 0
    cuts = held.daemon.log.count("cut again")
    neighbour = somebody_new()
    with Talker(held.host, "sniff.py", mac_of(neighbour), BRIDGE, PEER, greets=True) as sniffer:
        with closing(held.host.connect()) as opened:
            only = nic(mac_of(neighbour), order="<boot order='1'/>")
            opened.createXML(domain_xml(neighbour.name, neighbour.uuid, devices=only))
        wait_until(lambda: sniffer.say("now"), "the neighbour is heard")
    assert held.daemon.log.count("cut again") == cuts
    with held.domain() as domain:
        domain.detachDeviceFlags(nic(second), libvirt.VIR_DOMAIN_AFFECT_LIVE)


def test_rules_flushed_and_links_set_up_are_cut_again(held: Held) -> None:
    (device,) = held.devices()
    held.isolate()
    held.wait(State.ENFORCED)
    flush(held.host)
    set_up(held.host, device)
    wait_until(lambda: is_cut(held.host, device), "cut again")
    assert held.is_silent()
    held.release()
    assert is_up(held.host, device)


def test_it_stays_cut_over_suspend_resume_and_a_new_libvirtd(held: Held) -> None:
    (device,) = held.devices()
    held.isolate()
    held.wait(State.ENFORCED)
    with held.domain() as domain:
        domain.suspend()
        domain.resume()
    assert is_cut(held.host, device)
    held.host.restart_libvirtd()
    assert is_cut(held.host, device)
    assert held.is_silent()


def test_a_permitted_start_is_isolated_from_its_first_frame(held: Held) -> None:
    held.isolate()
    held.wait(State.ENFORCED)
    with held.domain() as domain:
        domain.destroy()
        held.wait(State.ENFORCED, "off: no network devices")
        with open_db(database(held.host)) as lock_db:
            permits.grant(
                lock_db,
                held.guest.uuid,
                Operation.START,
                reason="to look at it",
                by="a test",
                until=int(time.time()) + 3600,
                now=int(time.time()),
            )
        held.daemon.wake()
        held.sniffer.say("forget")
        domain.create()
    time.sleep(max(SILENCE, 2 * held.takes))
    assert held.sniffer.say("now") == 0
    held.wait(State.ENFORCED, "cut: ")
    assert held.is_silent()


def test_a_daemon_that_was_killed_cuts_again_what_was_opened_meanwhile(held: Held) -> None:
    (device,) = held.devices()
    held.isolate()
    held.wait(State.ENFORCED)
    held.daemon.end("KILL")
    assert is_cut(held.host, device)
    flush(held.host)
    set_up(held.host, device)
    held.daemon.start()
    wait_until(lambda: is_cut(held.host, device), "cut again")
    assert held.is_silent()
    held.release()
    assert is_up(held.host, device)


def test_a_release_while_the_daemon_is_down_is_carried_out_later(held: Held) -> None:
    (device,) = held.devices()
    hold = held.isolate()
    held.wait(State.ENFORCED)
    held.daemon.end("KILL")
    release(held.host, hold)
    held.daemon.start()
    held.wait(State.LIFTED)
    assert is_up(held.host, device)
    assert "bootlock" not in rules(held.host)


def test_what_a_killed_daemon_cut_but_never_reported_is_undone_after_release(held: Held) -> None:
    (device,) = held.devices()
    hold = held.isolate()
    held.wait(State.ENFORCED)
    held.daemon.end("KILL")
    with open_db(database(held.host)) as lock_db, lock_db.write() as db:
        db.execute("DELETE FROM enforcement WHERE hold = ?", [hold.id])
    held.hold = None
    release(held.host, hold)
    held.daemon.start()
    wait_until(lambda: is_up(held.host, device), "the link is up again")
    wait_until(lambda: "bootlock" not in rules(held.host), "no rule is left")


def test_rules_without_any_hold_known_are_left_alone(held: Held) -> None:
    (device,) = held.devices()
    hold = held.isolate()
    held.wait(State.ENFORCED)
    held.daemon.end("KILL")
    with open_db(database(held.host)) as lock_db, lock_db.write() as db:
        db.execute("DELETE FROM enforcement WHERE hold = ?", [hold.id])
        db.execute("DELETE FROM hold WHERE id = ?", [hold.id])
    held.hold = None
    held.daemon.start()
    wait_until(lambda: "no hold is known: left so" in held.daemon.log, "it says so")
    assert is_cut(held.host, device)
    flush(held.host)
    set_up(held.host, device)
    for path in held.host.outside("/var/lib/bootlock/network").iterdir():
        path.unlink()


def test_a_nic_without_a_device_on_the_host_is_a_failure_until_it_is_gone(held: Held) -> None:
    (device,) = held.devices()
    second = nic(mac_of(held.guest, 2), kind="user")
    with held.domain() as domain:
        domain.attachDeviceFlags(second, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        held.isolate()
        held.wait(State.FAILED, f"user interface {mac_of(held.guest, 2)}")
        # What can be cut is cut all the same.
        assert is_cut(held.host, device)
        domain.detachDeviceFlags(second, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        # Without a system in the guest it is a reset that lets go of the device.
        domain.reset()
        held.wait(State.ENFORCED, f"cut: {device}")


def test_a_fixed_device_name_is_cut_before_its_device_is_there(
    host: PrivateHost, daemon: Daemon
) -> None:
    guest = somebody_new()
    device = f"tap{guest.uuid[:8]}-a1"
    first = nic(mac_of(guest), device=device, order="<boot order='1'/>")
    with Talker(host, "sniff.py", mac_of(guest), BRIDGE, PEER, greets=True) as sniffer:
        held = Held(host, daemon, guest, sniffer)
        with closing(host.connect()) as opened:
            opened.defineXML(domain_xml(guest.name, guest.uuid, devices=first))
        held.isolate()
        held.wait(State.ENFORCED, "off: no network devices")
        assert f'"{device}" comment "{guest.uuid}"' in rules(host)
        flush(host)
        wait_until(lambda: f'"{device}" comment' in rules(host), "armed again")
        held.release()
        assert "bootlock" not in rules(host)
    remove_all(host)


def test_an_instance_this_host_does_not_know_is_not_here(host: PrivateHost, daemon: Daemon) -> None:
    guest = somebody_new()
    with Talker(host, "sniff.py", mac_of(guest), BRIDGE, greets=True) as sniffer:
        held = Held(host, daemon, guest, sniffer)
        held.isolate()
        held.wait(State.NOT_HERE)
