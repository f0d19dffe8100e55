"""inotify: what changes is reported; closing ends it; what was lost or ended is told."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from bootlockd.inotify import Change, Inotify, Mask

PATIENCE = 60.0


class Reader:
    """Iterates in a thread, as its users do."""

    def __init__(self, inotify: Inotify) -> None:
        self.seen: SimpleQueue[Change] = SimpleQueue()
        self._inotify = inotify
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        for change in self._inotify:
            self.seen.put(change)

    def next(self) -> Change:
        return self.seen.get(timeout=PATIENCE)


@pytest.fixture
def inotify() -> Iterator[Inotify]:
    with Inotify() as inotify:
        yield inotify


@pytest.fixture
def reader(inotify: Inotify) -> Iterator[Reader]:
    reader = Reader(inotify)
    yield reader
    inotify.close()
    reader.thread.join(PATIENCE)
    assert not reader.thread.is_alive()


def test_names_of_any_bytes_are_reported(inotify: Inotify, reader: Reader, tmp_path: Path) -> None:
    inotify.watch(tmp_path, Mask.CREATE | Mask.DELETE)
    for name in (b"-rf", b"a\nb", b"\xff\xfe", "Grüße".encode(), b"x" * 255):
        path = tmp_path / os.fsdecode(name)
        path.touch()
        assert reader.next() == Change(tmp_path, Mask.CREATE, os.fsdecode(name))
        path.unlink()
        assert reader.next() == Change(tmp_path, Mask.DELETE, os.fsdecode(name))


def test_a_watch_may_be_added_while_another_thread_waits(
    inotify: Inotify, reader: Reader, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    inotify.watch(tmp_path / "a", Mask.MOVED_TO)
    (tmp_path / "b").touch()
    (tmp_path / "b").rename(tmp_path / "a/c")
    assert reader.next() == Change(tmp_path / "a", Mask.MOVED_TO, "c")


def test_the_end_of_a_watch_is_told(inotify: Inotify, reader: Reader, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    inotify.watch(gone, Mask.DELETE_SELF)
    gone.rmdir()
    assert reader.next() == Change(gone, Mask.DELETE_SELF, "")
    assert reader.next() == Change(gone, Mask.IGNORED, "")
    gone.mkdir()
    inotify.watch(gone, Mask.CREATE)
    (gone / "new").touch()
    assert reader.next() == Change(gone, Mask.CREATE, "new")


def test_lost_events_are_told(inotify: Inotify, tmp_path: Path) -> None:
    inotify.watch(tmp_path, Mask.ATTRIB)
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    first, second = tmp_path / "1", tmp_path / "2"
    first.touch()
    second.touch()
    # Alternating: equal events in a row are made one by the kernel.
    for _ in range(limit // 2 + 2):
        os.chmod(first, 0o600)
        os.chmod(second, 0o600)
    reader = Reader(inotify)
    while not reader.next().mask & Mask.OVERFLOW:
        pass
    inotify.close()
    reader.thread.join(PATIENCE)
    assert not reader.thread.is_alive()


def test_closing_frees_its_descriptors_whether_or_not_somebody_reads(tmp_path: Path) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    unread = Inotify()
    unread.close()
    unread.close()
    assert list(unread) == []
    with pytest.raises(OSError, match="closed"):
        unread.watch(tmp_path, Mask.CREATE)
    read = Inotify()
    reader = Reader(read)
    read.close()
    reader.thread.join(PATIENCE)
    assert not reader.thread.is_alive()
    assert open_files() == before


def test_what_cannot_be_watched_is_an_error(inotify: Inotify, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        inotify.watch(tmp_path / "none", Mask.CREATE)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        inotify.watch(tmp_path / "file", Mask.CREATE | Mask.ONLYDIR)
