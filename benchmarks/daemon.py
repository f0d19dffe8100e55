"""How fast and how cheap the daemon is: ``python -m benchmarks.daemon``.

A guest tells that it runs by writing to its serial port, a few times a millisecond, so "stopped" is
its last write, not the return of a call. Measured, each in turn with the same guest:

- from ``virsh suspend`` to the stop, which is the yardstick;
- from the commit of a hold with ``--on-running destroy`` to the stop (target: at most 1.5 times);
- from the start of the command ``bootlock place --on-running destroy`` to the stop, and to its end;
- how long a paused guest ran that was resumed by hand.

Then how long a held guest runs by each route on which no hook is asked, see ``unseen``.

Then 1,000 holds with 20 running guests: what a minute of having nothing to do costs (target: below
1 % of one core), and the memory.

Needs root. Exit status 1: a target was missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import libvirt
from tabulate import tabulate

from benchmarks import unseen
from bootlockd.control import ask
from daemon_live import bootsectors, usage
from daemon_live.runner import (
    Daemon,
    database,
    place,
    place_in,
    release,
    start_guest,
    wait_enforced,
    wait_power,
)
from daemonhost import SETTINGS
from lockdb.database import open_db
from lockdb.values import Hold, OnRunning
from privatehost import PrivateHost
from waiting import wait_until

RATIO_TARGET = 1.5
CPU_TARGET = 1.0

_NAME = "talkative"
_UUID = "5ea7ed00-1111-4111-8111-111111111111"


@dataclass(frozen=True)
class Row:
    """What was measured once a round, in milliseconds."""

    title: str
    times: Sequence[float]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.times)


class Talkative:
    """The guest that writes for as long as it runs."""

    def __init__(self, host: PrivateHost) -> None:
        self._host = host
        self._disk = bootsectors.write(host.images / "talkative.img", bootsectors.TALKATIVE)
        self._said = host.images / "talkative.log"

    def start(self) -> None:
        """Start it, and wait until it writes."""
        self._said.unlink(missing_ok=True)
        serial = f"<serial type='file'><source path='{self._said}'/></serial>"
        start_guest(self._host, _NAME, _UUID, disks=[self._disk], devices=serial)
        wait_until(lambda: self._said.exists() and self._size() > 100, "the guest writes")

    def stopped_at(self) -> float:
        """When it wrote last; waits until it no longer does. Precise to the kernel's tick."""
        size = -1
        while size != self._size():
            size = self._size()
            time.sleep(0.25)
        return self._said.stat().st_mtime

    def watch(self, seconds: float) -> list[float]:
        """The moments at which it was seen to have written more, looking each half millisecond."""
        moments, size, until = [], self._size(), time.time() + seconds
        while (now := time.time()) < until:
            if self._size() != size:
                size = self._size()
                moments.append(now)
            time.sleep(0.0005)
        return moments

    def _size(self) -> int:
        return self._said.stat().st_size


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.daemon", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="of each row; default 10")
    parser.add_argument("--quick", action="store_true", help="few and short; enforces no target")
    options = parser.parse_args(arguments)
    with PrivateHost() as host:
        host.install_bootlock()
        with Daemon(host) as daemon:
            rounds = 2 if options.quick else options.rounds
            rows = stops(host, daemon, rounds)
            ran = unseen.routes(host, daemon, rounds)
        ratio = rows[1].median / rows[0].median
        print(as_table(rows))
        print(f"from the commit, against virsh suspend: {ratio:.2f} (target {RATIO_TARGET})\n")
        print("how long a held guest ran that no hook was asked for, until it was stopped again")
        print(as_table([Row(route, [1000 * each for each in ran[route]]) for route in ran]), "\n")
        size = (50, 2, 5.0) if options.quick else (1000, 20, 60.0)
        percent = idle(host, *size)
    good = ratio <= RATIO_TARGET and percent < CPU_TARGET
    return 0 if good or options.quick else 1


def stops(host: PrivateHost, daemon: Daemon, rounds: int) -> list[Row]:
    """The rows, in the order of the module's docstring."""
    guest = Talkative(host)
    suspended, committed, command, returned, resumed = [], [], [], [], []
    for _ in range(rounds):
        guest.start()
        began = time.time()
        virsh(host, "suspend", _NAME)
        suspended.append(guest.stopped_at() - began)
        virsh(host, "resume", _NAME)
        committed.append(by_hold(host, guest))

        guest.start()
        began = time.time()
        host.bootlock("place", _UUID, "--reason", "r", "--on-running", "destroy")
        returned.append(time.time() - began)
        command.append(guest.stopped_at() - began)
        host.bootlock("release", "--instance", _UUID, "--all", "--reason", "r")

        guest.start()
        resumed.append(by_hand(host, daemon, guest))
    titles = {
        "virsh suspend: to the guest's stop": suspended,
        "hold to destroy committed: to the guest's stop": committed,
        "bootlock place --on-running destroy: to the guest's stop": command,
        "bootlock place --on-running destroy: until it returns": returned,
        "paused, and resumed by hand: how long it ran": resumed,
    }
    return [Row(title, [1000 * each for each in times]) for title, times in titles.items()]


def by_hold(host: PrivateHost, guest: Talkative) -> float:
    """Seconds from the commit of a hold to the stop. The guest runs; it is off afterwards."""
    hold = place(host, _UUID, OnRunning.DESTROY)
    began = time.time()
    tell(host, hold)
    stopped = guest.stopped_at()
    let_go(host, hold)
    return stopped - began


def by_hand(host: PrivateHost, daemon: Daemon, guest: Talkative) -> float:
    """Seconds that a guest ran which was held paused and resumed. It is off afterwards."""
    hold = place(host, _UUID, OnRunning.PAUSE)
    tell(host, hold)
    wait_enforced(host, hold, "paused")
    guest.stopped_at()
    process = subprocess.Popen(["virsh", "-q", "-c", host.uri, "resume", _NAME])
    moments = guest.watch(2)
    process.wait()
    wait_power(host, _UUID, "paused")
    virsh(host, "destroy", _NAME)
    let_go(host, hold)
    return moments[-1] - moments[0] if moments else 0.0


def tell(host: PrivateHost, hold: Hold) -> None:
    """As the CLI does, and waits for the end."""
    question = {"op": "enforce", "hold": hold.id, "instance": hold.instance}
    for _ in ask(host.outside("/run/bootlock/control.sock"), question, 60):
        pass


def let_go(host: PrivateHost, hold: Hold) -> None:
    """Release the hold and have the daemon read it."""
    release(host, hold)
    for _ in ask(host.outside("/run/bootlock/control.sock"), {"op": "wake"}, 60):
        pass


def virsh(host: PrivateHost, *words: str) -> None:
    """The client, without the detour into the host's namespaces."""
    subprocess.run(["virsh", "-q", "-c", host.uri, *words], check=True)


def idle(host: PrivateHost, held: int, running: int, seconds: float) -> float:
    """Print what having nothing to do costs; per cent of one core."""
    for at in range(running):
        start_guest(host, f"idle-{at}", str(uuid.uuid4()))
    with closing(host.connect()) as connection:
        active = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        known = [domain.UUIDString() for domain in active]
    with open_db(database(host)) as lock_db, lock_db.write():
        for instance in [*known, *(str(uuid.uuid4()) for _ in range(held - len(known)))]:
            place_in(lock_db, instance, OnRunning.LEAVE)
    with Daemon(host, settings=SETTINGS) as daemon:
        settle(daemon.pid)
        before, since = usage.of(daemon.pid), time.monotonic()
        time.sleep(seconds)
        spent, span = usage.of(daemon.pid) - before, time.monotonic() - since
        percent = 100 * spent.seconds / span
        print(f"{held:,} holds, {running} running guests, {span:.0f} s: {spent}")
        print(f"processor: {percent:.2f} % of one core (target below {CPU_TARGET:g} %)")
        print(f"memory: {spent.memory}; {threads(daemon.pid)} threads")
    return percent


def settle(pid: int) -> None:
    """Until it has used next to nothing for six seconds: what it does at its start is over."""
    quiet = 0
    while quiet < 3:
        before = usage.of(pid)
        time.sleep(2)
        quiet = quiet + 1 if (usage.of(pid) - before).seconds < 0.05 else 0


def threads(pid: int) -> int:
    """How many threads a process has."""
    return len(os.listdir(f"/proc/{pid}/task"))


def as_table(rows: Sequence[Row]) -> str:
    """Milliseconds: the median, the least and the most."""
    cells = [[row.title, row.median, min(row.times), max(row.times)] for row in rows]
    return tabulate(cells, ["ms", "median", "least", "most"], floatfmt=".0f")


if __name__ == "__main__":
    sys.exit(main())
