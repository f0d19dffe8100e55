"""How fast a hold reaches a fleet: ``python -m benchmarks.fleet``.

A real registry of three members and 100 simulated hosts on one machine: each is a database of its
own, and the source that follows the registry, as in ``bootlockd --sync``. Beside them, at the same
time and in as many processes, 100 plain watchers do nothing but read etcd's lines. Holds are placed
one after another; for each and every host the time is taken

- from placing it to the line's arrival at a plain watcher, which is the yardstick;
- from placing it to the end of the transaction that puts it into a host's database.

Target: the 99th percentile of the second is at most 3 times that of the first. Both run beside each
other because a hundred hosts on a few cores wait for each other, which those of a fleet don't.

Exit status 1: the target was missed, or something never arrived.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bootlockd.config import Config, Database, Fleet
from bootlockd.fleet.client import Client, Stream
from bootlockd.fleet.keys import Keys
from bootlockd.fleet.registry import Registry
from bootlockd.sources.base import Order
from bootlockd.sources.etcd import EtcdSource
from bootlockd.sources.reconcile import Limits, known, reconcile
from etcdcluster import Cluster
from lockdb import database
from lockdb.values import Kind

RATIO_TARGET = 3.0
#: Hosts in one process: they share an interpreter, and its lock.
TOGETHER = 10
#: Seconds between two holds.
PACE = 1.0

_KEYS = Keys("bootlock/")

#: Which hold, and when it arrived.
Arrival = tuple[str, float]
Told = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--hosts", type=int, default=100, help="simulated hosts; default 100")
    parser.add_argument("--holds", type=int, default=40, help="placed one by one; default 40")
    parser.add_argument("--quick", action="store_true", help="5 hosts and holds; no target")
    options = parser.parse_args(arguments)
    hosts, holds = (5, 5) if options.quick else (options.hosts, options.holds)
    with tempfile.TemporaryDirectory(prefix="bl-fleet-") as directory:
        path = Path(directory)
        with Cluster(path / "etcd") as cluster:
            settings = replace(cluster.settings(), heartbeat=10, timeout=5)
            raw, committed = measured(settings, path, hosts, holds)
    print(as_table({"etcd's line read": raw, "committed in SQLite": committed}))
    expected = hosts * holds
    ratio = _percentile(committed, 99) / _percentile(raw, 99)
    print(f"99th percentiles: {ratio:.2f} (target at most {RATIO_TARGET:g})")
    if len(raw) != expected or len(committed) != expected:
        print(f"arrived: {len(raw)} and {len(committed)} of {expected}")
        return 1
    return 0 if options.quick or ratio <= RATIO_TARGET else 1


def measured(
    settings: Fleet, directory: Path, hosts: int, holds: int
) -> tuple[list[float], list[float]]:
    """Seconds to the arrival of each hold at each watcher, and at each host."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    arrivals: dict[Any, multiprocessing.Queue[Arrival]] = {}
    processes = []
    for follow in (watch_plainly, be_a_host):
        arrivals[follow] = context.Queue()
        for first in range(0, hosts, TOGETHER):
            names = [f"host-{at}" for at in range(first, min(hosts, first + TOGETHER))]
            work = (follow, names, settings, directory, arrivals[follow], stop)
            processes.append(context.Process(target=_several, args=work))
    for process in processes:
        process.start()
    try:
        for arrived in arrivals.values():
            # Each tells of itself when it is there.
            for _ in range(hosts):
                arrived.get(timeout=120)
        time.sleep(3)
        began = _place(settings, holds)
        return tuple(  # type: ignore[return-value]
            _since(began, arrived, hosts * holds) for arrived in arrivals.values()
        )
    finally:
        stop.set()
        for process in processes:
            process.join(30)


def be_a_host(name: str, settings: Fleet, directory: Path, stop: Event, told: Told) -> None:
    """Follow the registry into a database."""
    path = directory / name / "lock.db"
    database.create(path, now=int(time.time()), host=name)
    config = Config(database=Database(path), fleet=replace(settings, host=name))
    before = known(path, "etcd")
    turn = before.turn
    for reading in EtcdSource(config).follow(before, stop):  # type: ignore[arg-type]
        with database.open_db(path) as lock_db:
            now = int(time.time())
            reconcile(lock_db, "etcd", reading, turn=turn, limits=Limits(), now=now)
            # Not when it is closed, which nobody waits for.
            for observation in reading.observations:
                told(observation.ref)
        if not turn:
            told("")
        turn += 1


def watch_plainly(name: str, settings: Fleet, directory: Path, stop: Event, told: Told) -> None:
    """Read lines."""
    client = Client(settings)
    for _ in range(sum(map(ord, name)) % len(settings.endpoints)):
        client.next_member()
    revision = client.get(b"nothing")[0].revision
    stream = client.watch([_KEYS.holds], revision + 1, silence=600)
    threading.Thread(target=_close_when, args=[stop, stream], daemon=True).start()
    for frame in stream:
        if frame.created:
            told("")
        for event in frame.events:
            told(_KEYS.name_of(event.item.key))


def _close_when(stop: Event, stream: Stream) -> None:
    stop.wait()
    stream.close()


def _several(
    follow: Callable[..., None],
    names: Sequence[str],
    settings: Fleet,
    directory: Path,
    arrived: multiprocessing.Queue[Arrival],
    stop: Event,
) -> None:
    # Not to the other process at once: that would take time from those who wait.
    kept: queue.SimpleQueue[Arrival] = queue.SimpleQueue()

    def told(ref: str) -> None:
        kept.put((ref, time.monotonic()))

    threads = [
        threading.Thread(target=follow, args=(name, settings, directory, stop, told), daemon=True)
        for name in names
    ]
    for thread in threads:
        thread.start()
    while not stop.wait(1.0):
        while not kept.empty():
            arrived.put(kept.get())
    for thread in threads:
        thread.join(20)


def _place(settings: Fleet, count: int) -> dict[str, float]:
    """Place so many holds; when each was begun."""
    client = Client(settings)
    registry = Registry(client, _KEYS)
    began = {}
    for at in range(count):
        hold_id = f"{at:016x}"
        order = Order(str(uuid.uuid4()), Kind.BOOT_LOCK, "benchmark", placed_by="benchmark")
        began[hold_id] = time.monotonic()
        registry.place(order, now=int(time.time()), hold_id=hold_id)
        time.sleep(PACE)
    client.close()
    return began


def _since(
    began: dict[str, float], arrived: multiprocessing.Queue[Arrival], expected: int
) -> list[float]:
    spent: list[float] = []
    try:
        while len(spent) < expected:
            ref, moment = arrived.get(timeout=20)
            spent.append(moment - began[ref])
    except queue.Empty:
        # It is said what is missing.
        pass
    return spent


def as_table(rows: dict[str, list[float]]) -> str:
    """Milliseconds."""
    cells = [
        [title, len(times), *(1000 * _percentile(times, part) for part in (50, 90, 99, 100))]
        for title, times in rows.items()
    ]
    return tabulate(cells, ["ms", "n", "median", "90 %", "99 %", "most"], floatfmt=".1f")


def _percentile(times: Sequence[float], part: int) -> float:
    if part == 100:
        return max(times)
    return statistics.quantiles(times, n=100, method="inclusive")[part - 1]


if __name__ == "__main__":
    sys.exit(main())
