"""The wall clock set back and forward by a day under a running bootlockd.

Its own clock only, see shifted.py: the hook and the tests go by the machine's.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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
from live.guests import Identity
from lockdb.enforcements import State
from lockdb.values import OnRunning
from privatehost import PrivateHost
from waiting import wait_until

pytestmark = pytest.mark.live

DAY = 86400
SetClock = Callable[[int], None]


@pytest.fixture
def set_clock(host: PrivateHost) -> SetClock:
    file = host.root / "shift"

    def set_clock(seconds: int) -> None:
        new = file.with_suffix(".new")
        new.write_text(str(seconds))
        new.rename(file)

    set_clock(0)
    return set_clock


@pytest.fixture
def daemon(host: PrivateHost, set_clock: SetClock) -> Iterator[Daemon]:
    program: list[str | Path] = [
        sys.executable,
        Path(__file__).parent / "shifted.py",
        host.root / "shift",
    ]
    with Daemon(host, program=program) as daemon:
        yield daemon


@pytest.mark.parametrize("shift", [-DAY, DAY])
def test_in_the_grace_of_a_shutdown(
    host: PrivateHost, daemon: Daemon, set_clock: SetClock, guest: Identity, shift: int
) -> None:
    """The grace does not become a day longer; shorter it may be."""
    start_guest(host, guest.name, guest.uuid)
    hold = place(host, guest.uuid, OnRunning.SHUTDOWN, grace=4)
    daemon.wake()
    wait_until(lambda: row_of(host, hold), "it is asked to shut down")
    assert power(host, guest.uuid) == "running"
    # The row is there a moment before the cycle knows when to come back.
    time.sleep(0.5)
    set_clock(shift)
    wait_enforced(host, hold, "off")
    assert power(host, guest.uuid) == "off"


@pytest.mark.parametrize("shift", [-DAY, DAY])
def test_what_is_enforced_stays_enforced_and_what_is_new_becomes_so(
    host: PrivateHost, daemon: Daemon, set_clock: SetClock, guest: Identity, shift: int
) -> None:
    start_guest(host, guest.name, guest.uuid)
    paused = place(host, guest.uuid, OnRunning.PAUSE)
    daemon.wake()
    wait_enforced(host, paused, "paused")
    set_clock(shift)
    for _ in range(2):
        host.virsh("resume", guest.name)
        wait_power(host, guest.uuid, "paused")
    assert is_enforced(host, paused, "paused")

    release(host, paused)
    daemon.wake()
    wait_power(host, guest.uuid, "running")

    def is_lifted() -> bool:
        row = row_of(host, paused)
        return row is not None and row.state is State.LIFTED

    # Written after the guest was let go.
    wait_until(is_lifted, "the row is lifted")

    off = place(host, guest.uuid, OnRunning.DESTROY)
    daemon.wake()
    wait_enforced(host, off, "off")
    set_clock(0)
    daemon.wake()
    assert power(host, guest.uuid) == "off"
