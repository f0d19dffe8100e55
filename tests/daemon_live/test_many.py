"""Two hundred holds at once, and a thousand to keep: they come true, and cost next to nothing."""

import time
import uuid as uuids
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from daemon_live import usage
from daemon_live.runner import (
    Daemon,
    database,
    place,
    place_in,
    power,
    start_guest,
    wait_enforced,
)
from daemonhost import SETTINGS
from live.guests import Identity, qemu_pid, somebody_new
from lockdb import holds
from lockdb.database import open_db
from lockdb.values import OnRunning
from privatehost import PrivateHost
from waiting import wait_until

pytestmark = pytest.mark.live

RUNNING = 10
AT_ONCE = 200
PROCESSES = 10


@pytest.fixture(scope="module")
def running(host: PrivateHost) -> list[Identity]:
    guests = [somebody_new() for _ in range(RUNNING)]
    for guest in guests:
        start_guest(host, guest.name, guest.uuid)
    return guests


def place_some(path: Path, uuids: list[str]) -> None:
    for uuid in uuids:
        with open_db(path) as lock_db:
            place_in(lock_db, uuid, OnRunning.DESTROY)


def instances(running: list[Identity]) -> list[str]:
    """Two hundred, those that run spread among them."""
    found = [str(uuids.uuid4()) for _ in range(AT_ONCE - len(running))]
    for at, guest in enumerate(running):
        found.insert(at * AT_ONCE // len(running), guest.uuid)
    return found


def assert_all_come_true(host: PrivateHost, running: list[Identity], state: str) -> None:
    def powers() -> set[str]:
        return {power(host, guest.uuid) for guest in running}

    wait_until(lambda: powers() == {state}, f"all are {state}")
    wait_until(lambda: unsettled(host) == 0, "all two hundred are acknowledged")


def holds_in_force(host: PrivateHost) -> int:
    with open_db(database(host), read_only=True) as lock_db:
        return len(holds.active(lock_db, now=int(time.time())))


def unsettled(host: PrivateHost) -> int:
    """How many holds in force the power fence has said nothing final of."""
    query = (
        "SELECT count(*) FROM hold WHERE released_at IS NULL AND id NOT IN (SELECT hold FROM"
        " enforcement WHERE fence = 'power' AND state IN ('enforced', 'not_here'))"
    )
    with open_db(database(host), read_only=True) as lock_db:
        (count,) = lock_db.db.execute(query).fetchone()
    return int(count)


def test_two_hundred_holds_in_one_transaction_and_then_as_many_by_many_processes(
    host: PrivateHost, daemon: Daemon, running: list[Identity]
) -> None:
    """Nobody tells the daemon: it notices that the database was written."""
    with open_db(database(host)) as lock_db, lock_db.write():
        for uuid in instances(running):
            place_in(lock_db, uuid, OnRunning.PAUSE)
    assert_all_come_true(host, running, "paused")

    placed = instances(running)
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        for at in range(PROCESSES):
            pool.submit(place_some, database(host), placed[at::PROCESSES])
    assert holds_in_force(host) == 2 * AT_ONCE
    assert_all_come_true(host, running, "off")


def test_placed_while_it_was_down(host: PrivateHost, guest: Identity) -> None:
    start_guest(host, guest.name, guest.uuid)
    process = qemu_pid(host, guest.uuid)
    with Daemon(host):
        pass
    placed = [place(host, guest.uuid, order) for order in (OnRunning.LEAVE, OnRunning.PAUSE)]
    assert qemu_pid(host, guest.uuid) == process
    with Daemon(host):
        for hold in placed:
            wait_enforced(host, hold, "paused")
        assert power(host, guest.uuid) == "paused"


def test_a_thousand_holds_cost_next_to_nothing(host: PrivateHost) -> None:
    """In processor time, which a busy machine does not change much; the limits are far away.

    Looking at everything, by default once a minute, stays below 1 % of one core; between two looks
    it sleeps, but for the replies to libvirt's keep-alive messages.
    """
    guests = [somebody_new() for _ in range(4)]
    for guest in guests:
        start_guest(host, guest.name, guest.uuid)
    with open_db(database(host)) as lock_db, lock_db.write():
        for uuid in [guest.uuid for guest in guests] + [str(uuids.uuid4()) for _ in range(996)]:
            place_in(lock_db, uuid, OnRunning.LEAVE)

    with Daemon(host, settings=f"{SETTINGS}[daemon]\ninterval = 3600\n") as daemon:
        wait_until_idle(daemon.pid, below=0.02)
        spent, span = spent_in(daemon.pid, 6)
        print(f"between two looks: {spent} in {span:.0f} s")
        assert spent.switches < 5 * span
        assert spent.seconds < 0.01 * span

    with Daemon(host, settings=f"{SETTINGS}[daemon]\ninterval = 2\n") as daemon:
        # What it does at the start is over; it looks every two seconds.
        wait_until_idle(daemon.pid, below=0.35)
        spent, span = spent_in(daemon.pid, 10)
        print(f"a look every 2 s: {spent} in {span:.0f} s; {spent.memory}")
        assert spent.seconds / (span / 2) < 0.01 * 60


def spent_in(pid: int, seconds: float) -> tuple[usage.Usage, float]:
    """What the process uses in that time, and how long it was."""
    before, since = usage.of(pid), time.monotonic()
    time.sleep(seconds)
    return usage.of(pid) - before, time.monotonic() - since


def wait_until_idle(pid: int, below: float) -> None:
    """Until it uses less processor time than that in two seconds, and in the two after."""

    def rests() -> bool:
        return all(spent_in(pid, 2)[0].seconds < below for _ in range(2))

    wait_until(rests, "bootlockd is idle")
