"""What makes a held instance run without asking the hook: it is stopped again, as its hold says.

Not here, since the hook refuses them: starts, restores, reverts of what is off.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import libvirt
import pytest

from bootlockd import hypervisor
from bootlockd.events import run_event_loop
from daemon_live import bootsectors
from daemon_live.runner import (
    Daemon,
    is_enforced,
    place,
    power,
    release,
    row_of,
    start_guest,
    wait_enforced,
    wait_power,
)
from daemonhost import SETTINGS
from domainxml import file_disk
from live.guests import Identity, qemu_pid, runs
from lockdb.enforcements import State
from lockdb.values import Hold, OnRunning
from privatehost import PrivateHost
from waiting import wait_until

pytestmark = pytest.mark.live

OFF_ORDERS = [OnRunning.SHUTDOWN, OnRunning.DESTROY, OnRunning.MANAGED_SAVE]


@pytest.fixture(scope="module", autouse=True)
def daemon(host: PrivateHost) -> Iterator[Daemon]:
    # Other fences would be in the way first: they have tests of their own.
    with Daemon(host, settings=f"{SETTINGS}[image_lock]\nenabled = false\n") as daemon:
        yield daemon


def hold_of_paused(host: PrivateHost, daemon: Daemon, guest: Identity) -> Hold:
    hold = place(host, guest.uuid, OnRunning.PAUSE)
    daemon.wake()
    wait_enforced(host, hold, "paused")
    wait_power(host, guest.uuid, "paused")
    return hold


class Resumptions:
    """Counts, from libvirt's events, how often a guest began to run and was suspended again."""

    def __init__(self, host: PrivateHost, uuid: str) -> None:
        run_event_loop()
        self.began = self.ended = 0
        self._connection = host.connect()
        self._connection.domainEventRegisterAny(
            self._connection.lookupByUUIDString(uuid),
            libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            self._happened,
            None,
        )

    def _happened(self, _c: object, _d: object, event: int, _detail: int, _o: object) -> None:
        self.began += event in {libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_STARTED}
        self.ended += event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def restless(host: PrivateHost, guest: Identity) -> Identity:
    """A guest that resets itself many times a second."""
    disk = bootsectors.write(host.images / f"{guest.name}.img", bootsectors.RESTLESS)
    start_guest(host, guest.name, guest.uuid, disks=[disk])
    return guest


def resume(host: PrivateHost, guest: Identity) -> None:
    host.virsh("resume", guest.name)


def monitor_cont(host: PrivateHost, guest: Identity) -> None:
    """Past libvirt, by QEMU's own monitor."""
    host.virsh("qemu-monitor-command", guest.name, '{"execute": "cont"}')


def human_monitor_cont(host: PrivateHost, guest: Identity) -> None:
    host.virsh("qemu-monitor-command", "--hmp", guest.name, "cont")


def reset_into_run(host: PrivateHost, guest: Identity) -> None:
    host.virsh("reset", guest.name)
    assert power(host, guest.uuid) == "paused"
    host.virsh("resume", guest.name)


@pytest.mark.parametrize("route", [resume, monitor_cont, human_monitor_cont, reset_into_run])
def test_a_paused_instance_that_is_let_go_is_paused_again(
    host: PrivateHost,
    daemon: Daemon,
    guest: Identity,
    route: Callable[[PrivateHost, Identity], None],
) -> None:
    start_guest(host, guest.name, guest.uuid)
    hold = hold_of_paused(host, daemon, guest)
    seen = Resumptions(host, guest.uuid)
    for times in (1, 2, 3):
        route(host, guest)
        wait_until(lambda times=times: seen.ended >= times, "it was suspended again")  # type: ignore[misc]
        wait_power(host, guest.uuid, "paused")
        assert seen.began >= times
    seen.close()
    wait_enforced(host, hold, "paused")


def test_a_paused_instance_stays_paused_through_a_reset(
    host: PrivateHost, daemon: Daemon, guest: Identity
) -> None:
    start_guest(host, guest.name, guest.uuid)
    hold = hold_of_paused(host, daemon, guest)
    host.virsh("reset", guest.name)
    host.virsh("qemu-monitor-command", "--hmp", guest.name, "system_reset")
    assert power(host, guest.uuid) == "paused"
    assert is_enforced(host, hold, "paused")


def test_a_guest_that_reboots_itself_for_ever_is_paused(
    host: PrivateHost, daemon: Daemon, restless: Identity
) -> None:
    hold = hold_of_paused(host, daemon, restless)
    seen = Resumptions(host, restless.uuid)
    resume(host, restless)
    wait_until(lambda: seen.ended, "it was suspended again")
    seen.close()
    wait_power(host, restless.uuid, "paused")
    assert is_enforced(host, hold, "paused")


@pytest.mark.parametrize("order", OFF_ORDERS)
def test_a_guest_that_reboots_itself_for_ever_is_stopped(
    host: PrivateHost, daemon: Daemon, restless: Identity, order: OnRunning
) -> None:
    hold = place(host, restless.uuid, order, grace=1)
    daemon.wake()
    wait_enforced(host, hold, "off")
    assert not runs(host, restless.uuid)


def test_a_guest_that_reboots_itself_is_left_if_so_ordered(
    host: PrivateHost, daemon: Daemon, restless: Identity
) -> None:
    before = qemu_pid(host, restless.uuid)
    hold = place(host, restless.uuid, OnRunning.LEAVE)
    daemon.wake()
    wait_enforced(host, hold, "left running")
    assert qemu_pid(host, restless.uuid) == before


@pytest.mark.parametrize(
    "waking", [["dompmwakeup"], ["qemu-monitor-command", "--hmp"]], ids=["libvirt", "monitor"]
)
def test_an_instance_that_wakes_up_is_paused_again(
    host: PrivateHost, daemon: Daemon, guest: Identity, waking: list[str]
) -> None:
    disk = bootsectors.write(host.images / f"{guest.name}.img", bootsectors.SLEEPY)
    start_guest(host, guest.name, guest.uuid, disks=[disk])
    wait_power(host, guest.uuid, "asleep")
    hold = place(host, guest.uuid, OnRunning.PAUSE)
    daemon.wake()
    wait_enforced(host, hold, "paused")
    assert power(host, guest.uuid) == "asleep"
    command = [] if waking == ["dompmwakeup"] else ["system_wakeup"]
    host.virsh(*waking, guest.name, *command)
    wait_power(host, guest.uuid, "paused")
    wait_enforced(host, hold, "paused")


@pytest.mark.parametrize("order", OFF_ORDERS)
def test_an_instance_asleep_is_stopped(
    host: PrivateHost, daemon: Daemon, guest: Identity, order: OnRunning
) -> None:
    disk = bootsectors.write(host.images / f"{guest.name}.img", bootsectors.SLEEPY)
    start_guest(host, guest.name, guest.uuid, disks=[disk])
    wait_power(host, guest.uuid, "asleep")
    hold = place(host, guest.uuid, order, grace=1)
    daemon.wake()
    wait_enforced(host, hold, "off")
    assert not runs(host, guest.uuid)


@pytest.fixture
def unhooked(host: PrivateHost) -> Iterator[None]:
    """libvirt skips a hook that can't be executed, in silence."""
    hook = host.outside("/etc/libvirt/hooks/qemu.d/50-bootlock")
    hook.chmod(0o644)
    yield
    hook.chmod(0o755)


@pytest.mark.parametrize("order", list(OnRunning))
def test_a_start_that_no_hook_saw_is_undone(
    host: PrivateHost, daemon: Daemon, guest: Identity, unhooked: None, order: OnRunning
) -> None:
    """Whatever was ordered for the running one: this one was off, and is to be off."""
    start_guest(host, guest.name, guest.uuid)
    host.virsh("destroy", guest.name)
    hold = place(host, guest.uuid, order)
    daemon.wake()
    wait_enforced(host, hold, "off")
    start_guest(host, guest.name, guest.uuid)
    state = "paused" if order is OnRunning.PAUSE else "off"
    wait_power(host, guest.uuid, state)
    wait_enforced(host, hold, state)


def test_starts_that_race_with_the_hold_are_refused_or_undone(
    host: PrivateHost, daemon: Daemon, guest: Identity
) -> None:
    """The hold comes a little later each time: the hook sees it, then the daemon must."""
    began = time.monotonic()
    start_guest(host, guest.name, guest.uuid)
    duration = time.monotonic() - began
    host.virsh("destroy", guest.name)
    races = 12
    refused = 0
    for race in range(races):
        with ThreadPoolExecutor(1) as pool:
            start = pool.submit(_was_refused, host, guest)
            time.sleep(1.5 * duration * race / races)
            hold = place(host, guest.uuid, OnRunning.DESTROY)
            daemon.wake()
            refused += start.result()
        wait_enforced(host, hold, "off")
        wait_power(host, guest.uuid, "off")
        release(host, hold)
        daemon.wake()
    print(f"{races} races: {refused} refused by the hook, {races - refused} undone by the daemon")
    assert 0 < refused < races


def _was_refused(host: PrivateHost, guest: Identity) -> bool:
    try:
        start_guest(host, guest.name, guest.uuid)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_HOOK_SCRIPT_FAILED:
            return True
        raise
    return False


@pytest.mark.parametrize("order", [OnRunning.PAUSE, OnRunning.DESTROY, OnRunning.LEAVE])
def test_a_revert_to_a_snapshot_of_a_running_guest(
    host: PrivateHost, daemon: Daemon, guest: Identity, order: OnRunning
) -> None:
    """libvirt kills the guest that runs, and then the hook refuses the one that would follow."""
    image = host.images / f"{guest.name}.qcow2"
    host.run(["qemu-img", "create", "-f", "qcow2", image, "4M"])
    start_guest(host, guest.name, guest.uuid, disks=[file_disk(image, image="qcow2")])
    host.virsh("snapshot-create-as", guest.name, "before")
    hold = place(host, guest.uuid, order)
    daemon.wake()
    wait_enforced(host, hold)
    reverted = host.virsh("snapshot-revert", guest.name, "before", check=False)
    assert f"[hold {hold.id}]" in reverted.stderr
    wait_enforced(host, hold, "off")
    assert not runs(host, guest.uuid)


def test_a_revert_that_no_hook_saw_is_undone(
    host: PrivateHost, daemon: Daemon, guest: Identity, unhooked: None
) -> None:
    image = host.images / f"{guest.name}.qcow2"
    host.run(["qemu-img", "create", "-f", "qcow2", image, "4M"])
    start_guest(host, guest.name, guest.uuid, disks=[file_disk(image, image="qcow2")])
    host.virsh("snapshot-create-as", guest.name, "before")
    hold = place(host, guest.uuid, OnRunning.DESTROY)
    daemon.wake()
    wait_enforced(host, hold, "off")
    host.virsh("snapshot-revert", guest.name, "before", "--running")
    wait_power(host, guest.uuid, "off")
    wait_enforced(host, hold, "off")


@pytest.mark.parametrize("order", [OnRunning.LEAVE, OnRunning.SHUTDOWN])
def test_a_hold_that_was_released_while_it_was_elsewhere_counts_no_longer(
    host: PrivateHost, daemon: Daemon, guest: Identity, order: OnRunning
) -> None:
    """Its note that the instance was not here would make this run one that the hook has missed."""
    earlier = place(host, guest.uuid, order)
    daemon.wake()
    wait_until(lambda: row_of(host, earlier), "it is noted")
    release(host, earlier)
    daemon.wake()
    start_guest(host, guest.name, guest.uuid)
    hold = place(host, guest.uuid, order, grace=3600)
    daemon.wake()
    wait_until(lambda: row_of(host, hold), "it is noted")
    row = row_of(host, hold)
    assert row
    assert row.detail.startswith("left running" if order is OnRunning.LEAVE else "asked")
    assert power(host, guest.uuid) == "running"


def test_a_released_instance_may_run_again_by_any_route(
    host: PrivateHost, daemon: Daemon, guest: Identity
) -> None:
    start_guest(host, guest.name, guest.uuid)
    hold = hold_of_paused(host, daemon, guest)
    release(host, hold)
    daemon.wake()
    wait_power(host, guest.uuid, "running")
    host.virsh("suspend", guest.name)
    host.virsh("resume", guest.name)
    daemon.wake()

    def is_lifted() -> bool:
        row = row_of(host, hold)
        return row is not None and row.state is State.LIFTED

    wait_until(is_lifted, "the row is lifted")
    guest_now = hypervisor.observe([host.uri], guest.uuid)
    assert guest_now
    assert guest_now.power == "running"
