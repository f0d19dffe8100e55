"""One held instance for the tests of the process watch, and a QEMU by hand to try it with.

The kernel tells of processes only in the host's own namespaces, so the watch runs beside the tests'
process, not in a private host. It guards made-up UUIDs and a test's own files: nobody else's.
"""

from __future__ import annotations

import json
import subprocess
import uuid as uuids
from pathlib import Path
from typing import Self

from bootlockd.config import ProcessWatch, WatchAction
from bootlockd.errors import FenceError
from bootlockd.fences.process_watch import ProcessWatchFence
from bootlockd.values import Case, Wake
from lockdb import database, enforcements, holds, journal, permits
from lockdb.enforcements import State
from lockdb.values import Kind, NewHold, OnRunning
from rawqemu import RawQemu
from waiting import wait_until

NOW = 1_700_000_000


class Bench:
    """One held instance with one disk, its database, and a QEMU to try it with."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.instance = str(uuids.uuid4())
        self.disk = directory / "disk.raw"
        self.disk.write_bytes(bytes(1 << 20))
        self.database = directory / "lock.db"
        database.create(self.database, now=NOW, host="here")
        self.qemu = RawQemu(directory)
        self.wakes: list[Wake] = []
        self.started: list[subprocess.Popen[bytes]] = []
        self.fences: list[ProcessWatchFence] = []

    def fence(
        self,
        action: WatchAction = WatchAction.KILL,
        pid_directory: Path = Path("/run/libvirt/qemu"),
    ) -> ProcessWatchFence:
        fence = ProcessWatchFence(ProcessWatch(action, pid_directory), self.database)
        self.fences.append(fence)
        fence.start(self.wakes.append)
        return fence

    def place(self, on_running: OnRunning = OnRunning.DESTROY, kind: Kind = Kind.BOOT_LOCK) -> None:
        new = NewHold(
            instance=self.instance,
            reason="unpaid",
            placed_by="tester",
            on_running=on_running,
            kind=kind,
        )
        with database.open_db(self.database) as lock_db:
            holds.place(lock_db, new, now=NOW)

    def release(self) -> None:
        with database.open_db(self.database) as lock_db:
            (hold,) = holds.active(lock_db, now=NOW)
            holds.release(lock_db, hold.id, reason="paid", by="tester", now=NOW)

    def rows(self) -> list[tuple[State, str]]:
        with database.open_db(self.database) as lock_db:
            found = enforcements.of_instance(lock_db, self.instance)
        return [(row.state, row.detail) for row in found]

    def case(self, *, disks: bool = True, **more: object) -> Case:
        with database.open_db(self.database) as lock_db:
            found = holds.active(lock_db, now=NOW, instance=self.instance)
            allowed = permits.active(lock_db, now=NOW, instance=self.instance)
        return Case(
            instance=self.instance,
            now=NOW,
            holds=found,
            permits=allowed,
            disks=[f"path:{self.disk}"] if disks else [],
            **more,  # type: ignore[arg-type]
        )

    def watched(self, on_running: OnRunning = OnRunning.DESTROY) -> ProcessWatchFence:
        """A fence that is up for the instance."""
        self.place(on_running)
        fence = self.fence()
        assert fence.apply(self.case()).state is State.ENFORCED
        return fence

    def start(self, *more: str | Path, **how: object) -> subprocess.Popen[bytes]:
        process = self.qemu.start(*more, **how)  # type: ignore[arg-type]
        self.started.append(process)
        return process

    def run(self, *argv: str | Path, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Something that is not a QEMU."""
        process = subprocess.Popen(list(map(str, argv)), stdin=stdin, stdout=subprocess.DEVNULL)
        self.started.append(process)
        return process

    def entries(self) -> list[dict[str, object]]:
        with database.open_db(self.database, read_only=True) as lock_db, lock_db.read() as db:
            return [json.loads(text) for text in journal.entries(db, event="foreign_process")]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for process in self.started:
            process.kill()
            process.wait()
            if process.stdin:
                process.stdin.close()
        for fence in self.fences:
            fence.stop()


def assert_killed(bench: Bench, process: subprocess.Popen[bytes], matched: str) -> None:
    assert process.wait(60) == -9
    assert not bench.qemu.ran
    wait_until(bench.entries, "the kill is in the journal")
    (entry,) = bench.entries()
    assert entry["instance"] == bench.instance
    assert entry["pid"] == process.pid
    assert entry["matched"] == matched
    assert entry["action"] == "killed"
    assert Wake("foreign process", bench.instance) in bench.wakes


def assert_runs(bench: Bench, process: subprocess.Popen[bytes]) -> None:
    wait_until(lambda: bench.qemu.ran or process.poll() is not None, "the guest runs")
    assert process.poll() is None
    assert not bench.entries()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def is_watched_for(fence: ProcessWatchFence, bench: Bench) -> bool:
    try:
        return fence.verify(bench.case(disks=False)).state is State.NOT_HERE
    except FenceError:
        return False
