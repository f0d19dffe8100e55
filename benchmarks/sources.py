"""How fast a source of holds is taken in: ``python -m benchmarks.sources``.

100,000 holds in 100 files of JSON. Measured in turns, with the same files:

- reading and parsing the payload alone: what the source does, which checks each field; and, for
  comparison, ``json.loads`` of the same bytes and nothing else;
- the same and reconciling it with as many holds in the database, none of which has changed
  (target: at most twice the former);
- the same with one hold changed; how many rows that writes (target: no more than ten).

Then a change of one hold that its source names alone, as the fleet's watch does, beside the same
among a hundredth of the holds (target: at most twice).

Then the memory of a process that does it. Exit status 1: a target was missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path

from tabulate import tabulate

from bootlockd.sources.base import Observation, Order, Reading, Said
from bootlockd.sources.file import FileSource
from bootlockd.sources.reconcile import Limits, Plan, known, reconcile
from lockdb import database
from lockdb.values import Kind

RATIO_TARGET = 2.0
ROWS_TARGET = 10
CHANGE_TARGET = 2.0

_FILES = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sources")
    parser.add_argument("--holds", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few of each; enforces no target")
    options = parser.parse_args(arguments)
    if options.quick:
        options.holds, options.rounds = 2000, 1
    with tempfile.TemporaryDirectory(prefix="bootlock-bench-") as name:
        scene = Scene(Path(name), options.holds)
        began = time.perf_counter()
        scene.sync()
        print(f"placing {options.holds} holds: {time.perf_counter() - began:.1f} s")
        missed = _times(scene, options.rounds) + _rows(scene)
        fewer = Scene(Path(name, "fewer"), max(1, options.holds // 100))
        fewer.sync()
        missed += _changes(scene, fewer, 20 * options.rounds)
        for what, work in (("reading alone", scene.read), ("a sync", scene.sync)):
            print(f"memory of a process after {what}: {_memory(work):.0f} MiB")
    return 0 if options.quick else min(1, missed)


class Scene:
    """A directory of holds and the database that has them."""

    def __init__(self, root: Path, holds: int) -> None:
        self.path = root / "db/lock.db"
        self._directory = root / "holds.d"
        self._directory.mkdir(parents=True)
        database.create(self.path, now=1, host="bench")
        for number in range(_FILES):
            self._write(number, range(number, holds, _FILES))
        self._first = range(0, holds, _FILES)
        self._changes = 0

    def _write(self, number: int, instances: range, grace: int = 60) -> None:
        entries = [
            {
                "instance": f"00000000-0000-4000-8000-{instance:012x}",
                "reason": f"invoice {instance} is unpaid since the end of the last month",
                "notice": "please call billing",
                "on_running": "shutdown",
                "grace": grace if instance == instances[0] else 60,
            }
            for instance in instances
        ]
        (self._directory / f"{number:03}.json").write_text(json.dumps({"hold": entries}), "utf-8")

    def change(self) -> None:
        """Another order for one hold."""
        self._changes += 1
        self._write(0, self._first, 60 + self._changes)

    def loads(self) -> None:
        """The least that reading JSON can be."""
        for file in sorted(self._directory.iterdir()):
            json.loads(file.read_bytes())

    def read(self) -> Reading:
        """As a process does that has just started: nothing is remembered."""
        return FileSource(self._directory).read(known(self.path, "file"))

    def sync(self) -> Plan:
        """Read and reconcile."""
        with database.open_db(self.path) as lock_db:
            turn = known(self.path, "file").turn
            now = int(time.time())
            return reconcile(lock_db, "file", self.read(), turn=turn, limits=Limits(), now=now)

    def changed_sync(self) -> Plan:
        """With one change."""
        self.change()
        return self.sync()

    def told(self) -> None:
        """One change of one hold, as a source says it that says no more than that."""
        self._changes += 1
        with database.open_db(self.path) as lock_db:
            (ref, instance) = lock_db.db.execute(
                "SELECT ref, instance FROM hold WHERE source = 'file' LIMIT 1"
            ).fetchone()
            order = Order(instance, Kind.BOOT_LOCK, f"the {self._changes}th reason")
            reading = Reading((Observation(ref, Said.HELD, order),), whole=False)
            turn = known(self.path, "file").turn
            plan = reconcile(
                lock_db, "file", reading, turn=turn, limits=Limits(), now=int(time.time())
            )
        assert len(plan.steps.change) == 1


def _times(scene: Scene, rounds: int) -> int:
    cases: dict[str, Callable[[], object]] = {
        "json.loads alone": scene.loads,
        "reading and parsing": scene.read,
        "and reconciling, nothing changed": scene.sync,
        "and reconciling, one changed": scene.changed_sync,
    }
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            began = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    base = medians["reading and parsing"]
    rows = [[name, f"{median:.2f}", f"{median / base:.2f}"] for name, median in medians.items()]
    print(tabulate(rows, ["", "median s", "to reading and parsing"], disable_numparse=True))
    ratio = medians["and reconciling, nothing changed"] / base
    return _judge("a sync without a change, to reading alone", ratio, RATIO_TARGET)


def _rows(scene: Scene) -> int:
    scene.change()
    with database.open_db(scene.path) as lock_db:
        before = lock_db.db.conn.total_changes
        turn = known(scene.path, "file").turn
        plan = reconcile(
            lock_db, "file", scene.read(), turn=turn, limits=Limits(), now=int(time.time())
        )
        written = lock_db.db.conn.total_changes - before
    assert len(plan.steps.change) == 1
    return _judge("rows written for one change", written, ROWS_TARGET)


def _changes(scene: Scene, fewer: Scene, rounds: int) -> int:
    taken: list[list[float]] = [[], []]
    for _ in range(rounds):
        for at, each in enumerate((scene, fewer)):
            began = time.perf_counter()
            each.told()
            taken[at].append(time.perf_counter() - began)
    of_all, of_few = map(statistics.median, taken)
    print(f"one change told: {1000 * of_all:.1f} ms, among a hundredth: {1000 * of_few:.1f} ms")
    return _judge("one change told, to one among a hundredth", of_all / of_few, CHANGE_TARGET)


def _judge(what: str, value: float, target: float) -> int:
    print(f"{what}: {value:.2f}, at most {target:g}: {'met' if value <= target else 'MISSED'}")
    return int(value > target)


def _memory(work: Callable[[], object]) -> float:
    """The most that a new process used, in MiB."""
    context = get_context("spawn")
    reading, writing = context.Pipe(duplex=False)
    child = context.Process(target=_measured, args=(work, writing))
    child.start()
    answer: float = reading.recv()
    child.join()
    return answer


def _measured(work: Callable[[], object], writing: object) -> None:
    kept = work()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    writing.send(used)  # type: ignore[attr-defined]
    del kept


if __name__ == "__main__":
    sys.exit(main())
