"""bootlockd --sync: a thread for each source, none in another's way, none that dies unheard."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bootlockd.config import Config, Database, Sync
from bootlockd.sources import runner
from bootlockd.sources.base import Known, Reading, Source, SourceError
from bootlockd.sources.reconcile import known, reconcile
from bootlockd.sources.runner import SyncFailed, SyncService
from database.soundness import log
from lockdb import database
from lockdb.errors import DatabaseFull
from manager import Manager
from samples import NOW
from sources.said import UNGUARDED, held, instances, part, state, take, uuid, whole
from waiting import PATIENCE, wait_until

PROGRAM = Path(sys.executable).with_name("bootlockd")


@dataclass
class Scripted:
    """A source that does what it is told, one thing at a time."""

    name: str
    then: list[Callable[[], Reading]] = field(default_factory=list)
    followed: int = 0
    told: threading.Condition = field(default_factory=threading.Condition)

    def tell(self, what: Callable[[], Reading]) -> None:
        with self.told:
            self.then.append(what)
            self.told.notify()

    def read(self, known: Known) -> Reading:
        return self.then.pop(0)()

    def follow(self, known: Known, stop: threading.Event) -> Iterator[Reading]:
        self.followed += 1
        while not stop.is_set():
            with self.told:
                if self.told.wait_for(lambda: self.then, 0.05):
                    what = self.then.pop(0)
                else:
                    continue
            yield what()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(runner, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(runner, "LOOK", 0.05)
    monkeypatch.setattr(runner, "END_LIMIT", 0.3)


@contextmanager
def serving(path: Path, *found: Source) -> Iterator[list[BaseException]]:
    """What it raised, if anything, is in the list."""
    service = SyncService(Config(database=Database(path)), found)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            service.run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield raised
    finally:
        service.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def fails(error: BaseException) -> Callable[[], Reading]:
    def fail() -> Reading:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SourceError("no answer", "look\nthere"), "no answer; look there"),
        (ZeroDivisionError("a defect"), "ZeroDivisionError: a defect"),
        (StopIteration(), "RuntimeError: generator raised StopIteration"),
    ],
)
def test_a_source_that_fails_is_followed_anew_and_no_other_notices(
    path: Path, error: Exception, said: str
) -> None:
    good, bad = Scripted("good"), Scripted("bad")
    with serving(path, good, bad) as raised:
        bad.tell(lambda: whole(held(1)))
        bad.tell(fails(error))
        wait_until(lambda: state(path, "bad").error == said, "the error is noted")
        good.tell(lambda: whole(held(2)))
        wait_until(lambda: instances(path, "good") == [uuid(2)], "the other goes on")
        assert instances(path, "bad") == [uuid(1)]
        bad.tell(lambda: whole(held(1), held(3)))
        wait_until(lambda: len(instances(path, "bad")) == 2, "it is followed again")
        assert (state(path, "bad").error, good.followed, bad.followed) == ("", 1, 2)
    assert raised == []


def test_a_source_that_ends_without_a_word_has_failed(path: Path) -> None:
    class Silent(Scripted):
        def follow(self, known: Known, stop: threading.Event) -> Iterator[Reading]:
            yield from ()

    with serving(path, Silent("s")):
        wait_until(lambda: state(path, "s").error, "it is noted")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_takes_the_process_with_it(path: Path) -> None:
    source = Scripted("s")
    with serving(path, source) as raised:
        source.tell(fails(SystemExit()))
        wait_until(lambda: raised, "it is noticed")
    assert isinstance(raised[0], SyncFailed)
    assert "thread of source s has died" in str(raised[0])


def test_a_source_that_hangs_takes_the_process_with_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "LEAST_PATIENCE", 0.5)
    config = Config(database=Database(path), sync=Sync(interval=0, stale_after=0))
    let_go = threading.Event()
    source = Scripted("s")

    def hang() -> Reading:
        let_go.wait(PATIENCE)
        return whole()

    source.tell(hang)
    with pytest.raises(SyncFailed, match="has been silent"):
        SyncService(config, [source]).run()
    let_go.set()


def test_a_reading_that_was_overtaken_is_read_anew(path: Path) -> None:
    source = Scripted("s")
    with serving(path, source):
        source.tell(lambda: whole(held(1)))
        wait_until(lambda: instances(path, "s") == [uuid(1)], "the first")
        take(path, whole(held(1), held(2)), source="s")
        source.tell(lambda: whole(held(1)))
        wait_until(lambda: source.followed == 2, "it is followed anew")
        source.tell(lambda: part(held(3)))
        wait_until(lambda: len(instances(path, "s")) == 3, "from what is known now")
        assert state(path, "s").error == ""


def test_a_database_that_is_full_is_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [True]

    def fill(*arguments: object, **named: object) -> object:
        if full:
            raise DatabaseFull(path, "disk full", "make space")
        return genuine(*arguments, **named)  # type: ignore[arg-type]

    genuine = reconcile
    monkeypatch.setattr(runner, "reconcile", fill)
    source = Scripted("s")
    with serving(path, source):
        source.tell(lambda: whole(held(1)))
        wait_until(lambda: "disk full; make space" in state(path, "s").error, "it is noted")
        full.clear()
        source.tell(lambda: whole(held(1)))
        wait_until(lambda: instances(path, "s") == [uuid(1)], "it is placed")


def test_what_is_read_after_the_end_is_not_taken_in(path: Path) -> None:
    source = Scripted("slow")
    asked, let_go = threading.Event(), threading.Event()

    def slow() -> Reading:
        asked.set()
        let_go.wait(PATIENCE)
        return whole(held(1))

    source.tell(slow)
    with serving(path, source):
        assert asked.wait(PATIENCE)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "slow"]
    let_go.set()
    thread.join(PATIENCE)
    assert instances(path, "slow") == []


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


def configured(path: Path, directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    config = path.with_name("bootlock.toml")
    config.write_text(
        f'[database]\npath = "{path}"\n[sources.file]\ndirectory = "{directory}"\n', "utf-8"
    )
    return config


def hold_file(number: int) -> str:
    return f'[[hold]]\ninstance = "{uuid(number)}"\nreason = "unpaid"\n'


#: Root without root's powers, as the unit has it.
POWERLESS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")


@contextmanager
def program(config: Path, manager: Manager, *prefix: str) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "900000"}
    command = [*prefix, str(PROGRAM), "--sync", "--config", str(config)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: manager.count("READY=1"), "it is ready")
            yield process
        finally:
            process.kill()


def test_the_program_keeps_files_and_holds_in_step_until_told_to_end(
    path: Path, tmp_path: Path, manager: Manager
) -> None:
    """Without root's powers; systemd hears that it is ready, alive, reloading and stopping."""
    os.chown(path, -1, 4711)
    os.chown(path.parent, -1, 4711)
    path.parent.chmod(0o2750)
    first, second = tmp_path / "first", tmp_path / "second"
    config = configured(path, first)
    with program(config, manager, *POWERLESS) as process:
        (first / "a.toml").write_text(hold_file(1))
        wait_until(lambda: instances(path) == [uuid(1)], "the hold is placed")
        wal = path.with_name(path.name + "-wal")
        if wal.exists():
            assert wal.stat().st_gid == 4711, "whoever may read the database may go on to"
        pings = manager.count("WATCHDOG=1")
        wait_until(lambda: manager.count("WATCHDOG=1") > pings + 1, "the watchdog is fed")
        configured(path, second)
        (second / "b.toml").write_text(hold_file(2))
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(instances(path)) == 2, "the settings were read again")
        assert "RELOADING=1" in manager.lines()
        second.rename(tmp_path / "gone")
        wait_until(lambda: "STATUS=1 sources; not read: file" in manager.lines(), "it is said")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert manager.lines()[-1] == "STOPPING=1"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with database.open_db(path) as lock_db:
        events = [entry["event"] for entry in log(lock_db)]
    assert events[:2] == ["created", "placed"]
    assert "released" not in events


def test_without_sources_it_idles(path: Path, manager: Manager) -> None:
    config = path.with_name("bootlock.toml")
    config.write_text(f'[database]\npath = "{path}"\n', "utf-8")
    with program(config, manager) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_a_turn_that_was_never_taken_is_zero(path: Path) -> None:
    before = known(path, "file")
    with database.open_db(path) as lock_db:
        reconcile(lock_db, "file", whole(), turn=before.turn, limits=UNGUARDED, now=NOW)
    assert (before.turn, known(path, "file").turn) == (0, 1)
