"""The process watch when something fails: it goes on, or says that it does not watch."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import pytest

from bootlockd.errors import FenceError
from bootlockd.offenders import Finding
from bootlockd.proc_events import EventsLost, Exec, ProcEvents
from bootlockd.qemus import Qemus
from bootlockd.values import Wake
from bootlockd.watcher import Watcher
from fences.watchscene import Bench, assert_killed, assert_runs, is_alive, is_watched_for
from lockdb.enforcements import State
from waiting import wait_until

pytestmark = pytest.mark.live


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


# -- faults ---------------------------------------------------------------------------------------


def test_lost_events_are_made_up_for_by_looking(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ProcEvents.read

    def lose(events: ProcEvents) -> list[Exec]:
        read(events)
        raise EventsLost

    monkeypatch.setattr(ProcEvents, "read", lose)
    found: SimpleQueue[Finding] = SimpleQueue()
    watcher = Watcher(Path("/run/libvirt/qemu"), kill=True, found=found.put)
    watcher.start()
    try:
        watcher.guard(bench.instance, {})
        process = bench.start(uuid=bench.instance)
        assert process.wait(60) == -9
        assert found.get(timeout=60).offender.pid == process.pid
    finally:
        watcher.stop()


def test_one_that_can_not_be_told_from_libvirts_is_left_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def out_of_descriptors(qemus: Qemus, pid: int) -> bool:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(Qemus, "is_libvirts", out_of_descriptors)
    watcher = Watcher(Path("/run/libvirt/qemu"), kill=True, found=print)
    watcher.start()
    try:
        watcher.guard(bench.instance, {})
        assert_runs(bench, bench.start(uuid=bench.instance))
        assert "is it libvirt's?" in caplog.text
    finally:
        watcher.stop()


def test_a_thread_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(events: ProcEvents) -> list[Exec]:
        raise RuntimeError("a defect")

    monkeypatch.setattr(ProcEvents, "read", fail)
    failed: SimpleQueue[str] = SimpleQueue()
    watcher = Watcher(Path("/nonexistent"), kill=True, found=print, failed=failed.put)
    watcher.start()
    try:
        subprocess.run(["/bin/true"], check=True)
        assert failed.get(timeout=60) == "RuntimeError: a defect"
        with pytest.raises(FenceError, match="not watched: RuntimeError: a defect"):
            watcher.prove()
    finally:
        watcher.stop()


def test_a_watch_that_is_killed_is_told_and_begins_again(bench: Bench) -> None:
    fence = bench.watched()
    (child,) = _children()
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: Wake("the process watch has ended") in bench.wakes, "it is noticed")
    with pytest.raises(FenceError, match="the watch has ended"):
        fence.verify(bench.case())
    assert fence.reaches(bench.case())
    # As the cycle does after such a wake.
    fence.follow([bench.case()])
    wait_until(_children, "another one is there")
    wait_until(partial(is_watched_for, fence, bench), "it watches")
    assert fence.verify(bench.case()).state is State.FAILED  # without the disk
    assert fence.apply(bench.case()).state is State.ENFORCED
    assert_killed(bench, bench.start(uuid=bench.instance), "uuid")


def test_the_watch_ends_with_a_daemon_that_is_killed(bench: Bench) -> None:
    program = (
        "import sys, time; from pathlib import Path; from bootlockd.watchprocess import *;"
        "watch = WatchProcess(Path('/nonexistent'), True, print, print); watch.start();"
        "print(watch._process.pid, flush=True); time.sleep(600)"
    )
    daemon = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    bench.started.append(daemon)
    assert daemon.stdout
    with daemon.stdout:
        child = int(daemon.stdout.readline())
    assert is_alive(child)
    daemon.kill()
    wait_until(lambda: not is_alive(child), "it ends")


def test_a_journal_that_can_not_be_written_delays_no_kill(bench: Bench) -> None:
    bench.watched()
    aside = bench.database.rename(bench.directory / "aside")
    process = bench.start(uuid=bench.instance)
    assert process.wait(60) == -9
    assert not bench.qemu.ran
    aside.rename(bench.database)
    wait_until(bench.entries, "it is written when it can be")


_ELSEWHERE = """
import sys
from pathlib import Path
from bootlockd.config import ProcessWatch
from bootlockd.errors import FenceError
from bootlockd.fences.process_watch import ProcessWatchFence
from bootlockd.values import Case
fence = ProcessWatchFence(ProcessWatch(), Path("/nonexistent"))
fence.start(print)
try:
    print(fence.apply(Case("11111111-2222-4333-8444-555555555555", 0)))
except FenceError as error:
    print("FenceError", error, error.hint)
finally:
    fence.stop()
"""


@pytest.mark.parametrize(
    ("namespace", "says"),
    [
        (["--net"], "the host's own network namespace"),
        (["--pid", "--fork", "--mount-proc"], "an exec of our own was not seen"),
    ],
)
def test_where_the_kernel_tells_nothing_it_does_not_claim_to_watch(
    namespace: list[str], says: str
) -> None:
    command = ["unshare", *namespace, sys.executable, "-c", _ELSEWHERE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.startswith("FenceError processes are not watched"), done
    assert says in done.stdout


def test_nothing_is_left_when_it_stops(bench: Bench) -> None:
    before = len(os.listdir("/proc/self/fd"))
    names = {thread.name for thread in threading.enumerate()}
    fence = bench.watched()
    assert len(_children()) == 1
    fence.stop()
    assert not _children()
    assert len(os.listdir("/proc/self/fd")) == before
    assert {thread.name for thread in threading.enumerate()} == names
    assert_runs(bench, bench.start(uuid=bench.instance))


def _children() -> list[int]:
    """The watching processes of this one."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [
        int(pid)
        for pid in pids
        if b"watchprocess" in Path(f"/proc/{pid}/cmdline").read_bytes() and is_alive(int(pid))
    ]
