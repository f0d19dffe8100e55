"""How long a QEMU that was started past libvirt lives: ``python -m benchmarks.process_watch``.

Its guest's first instruction writes a byte to a file. Each row starts it a number of times with the
process watch on and tells how often that byte was there afterwards (target: never), and the times:
from exec to the kill, by the kernel's and the watch's own clock, and from before the start of the
process until it was reaped. The first row, without the watch, is how long the guest takes to its
first instruction: the time that there is.

Needs root in the host's own namespaces, and QEMU. Exit status 1: a guest ran.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tabulate import tabulate

from bootlockd.offenders import Finding
from bootlockd.qemus import file_id
from bootlockd.watchprocess import WatchProcess
from privatehost import PrivateHost
from rawqemu import QEMU, RawQemu
from waiting import PATIENCE, wait_until

_TRIES = 40
#: No guest has one of its own here: everything found is foreign.
_NOWHERE = Path("/nonexistent")


@dataclass(frozen=True)
class Row:
    """One way to start it. Times in milliseconds."""

    title: str
    tries: int
    ran: int
    killed_after: Sequence[float]
    lifetimes: Sequence[float]


@dataclass(frozen=True)
class Try:
    """A way to start it, and what else goes on meanwhile."""

    title: str
    start: Callable[[RawQemu], Sequence[str | Path]]
    program: Path = QEMU
    #: Threads of the watching process that compute in Python, as a large sync does.
    busy: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.process_watch", description=__doc__)
    parser.add_argument("--tries", type=int, default=_TRIES, help="of each row; default 40")
    parser.add_argument("--quick", action="store_true", help="four of each row")
    options = parser.parse_args(arguments)
    tries: int = 4 if options.quick else options.tries
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        rows = [unhindered(Path(name), tries), *watched(Path(name), tries)]
    print(as_table(rows))
    return 1 if any(row.ran for row in rows[1:]) else 0


def unhindered(directory: Path, tries: int) -> Row:
    """How long the guest takes to its first instruction."""
    times = []
    for _ in range(tries):
        qemu = RawQemu(directory)
        qemu.output.unlink(missing_ok=True)
        began = time.monotonic()
        process = qemu.start()
        try:
            while not qemu.ran:
                if time.monotonic() - began > PATIENCE:
                    raise TimeoutError("the guest does not run")
                time.sleep(0.0005)
            times.append((time.monotonic() - began) * 1000)
        finally:
            process.kill()
            process.wait()
    return Row("not watched: until its guest runs", tries, tries, [], times)


def watched(directory: Path, tries: int) -> Iterator[Row]:
    """The rows with the watch on."""
    instance = str(uuid.uuid4())
    disk = directory / "disk"
    disk.write_bytes(bytes(1 << 20))
    renamed = directory / "renamed"
    shutil.copy(QEMU, renamed)
    drive = f"file={disk},format=raw,if=virtio,file.locking=off"
    by_uuid: Callable[[RawQemu], Sequence[str]] = lambda _qemu: ["-uuid", instance]  # noqa: E731
    by_disk: Callable[[RawQemu], Sequence[str]] = lambda _qemu: ["-drive", drive]  # noqa: E731
    found: SimpleQueue[Finding] = SimpleQueue()
    watcher = WatchProcess(_NOWHERE, True, found.put, lambda: None)
    watcher.start()
    try:
        status = file_id(disk.stat())
        assert status
        watcher.guard(instance, {status: disk})
        watcher.prove()
        for way in (
            Try("held UUID", by_uuid),
            Try("held UUID, the daemon computes in 2 threads", by_uuid, busy=2),
            Try("held disk, renamed binary, locking=off", by_disk, renamed),
            Try("the same, the daemon computes in 2 threads", by_disk, renamed, busy=2),
        ):
            with _computing(way.busy):
                yield _measure(way, directory, tries, found)
        yield embedded(instance, max(1, tries // 4), found)
    finally:
        watcher.stop()


def _measure(way: Try, directory: Path, tries: int, found: SimpleQueue[Finding]) -> Row:
    ran, killed_after, lifetimes = 0, [], []
    for _ in range(tries):
        qemu = RawQemu(directory)
        qemu.output.unlink(missing_ok=True)
        began = time.monotonic()
        process = qemu.start(*way.start(qemu), program=[way.program])
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
        lifetimes.append((time.monotonic() - began) * 1000)
        wait_until(lambda: not found.empty(), "the finding is passed on")
        finding = found.get()
        if finding.after is not None:
            killed_after.append(finding.after)
        ran += qemu.ran
    return Row(way.title, tries, ran, killed_after, lifetimes)


def embedded(instance: str, tries: int, found: SimpleQueue[Finding]) -> Row:
    """Started by libvirt's embedded driver (qemu:///embed), as its own program does it."""
    ran, killed_after, lifetimes = 0, [], []
    # The driver wants a virtlogd, and QEMU's user.
    with PrivateHost() as host:
        qemu = RawQemu(host.images)
        root, domain = host.root / "embedded", host.images / "domain.xml"
        (root / "etc").mkdir(parents=True)
        shutil.copy(host.outside("/etc/libvirt/qemu.conf"), root / "etc")
        domain.write_text(qemu.domain_xml("embedded", instance))
        for _ in range(tries):
            began = time.monotonic()
            host.run(["virt-qemu-run", "-r", root, domain], check=False)
            lifetimes.append((time.monotonic() - began) * 1000)
            wait_until(lambda: not found.empty(), "the finding is passed on")
            after = found.get().after
            killed_after += [] if after is None else [after]
            ran += qemu.ran
    return Row("held UUID, by qemu:///embed", tries, ran, killed_after, lifetimes)


@contextmanager
def _computing(threads: int) -> Iterator[None]:
    ends = threading.Event()

    def compute() -> None:
        while not ends.is_set():
            sum(range(1000))

    computers = [threading.Thread(target=compute) for _ in range(threads)]
    for computer in computers:
        computer.start()
    try:
        yield
    finally:
        ends.set()
        for computer in computers:
            computer.join()


def as_table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    return tabulate(
        [
            (
                row.title,
                f"{row.ran} of {row.tries}",
                _times(row.killed_after),
                _times(row.lifetimes),
            )
            for row in rows
        ],
        (
            "QEMU past libvirt",
            "its guest ran",
            "exec to kill, ms: p50 / max",
            "life, ms: p50 / max",
        ),
        tablefmt="github",
    )


def _times(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} / {max(values):.2f}" if values else ""


if __name__ == "__main__":
    sys.exit(main())
