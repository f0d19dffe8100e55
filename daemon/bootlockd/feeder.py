"""Notices what was written to the lock database by others: the CLI, a restore, an editor.

The file's directory is watched with inotify. A write says that something changed, not what; the
journal says it, since every change of a hold or a permit is an entry. The daemon's own entries and
the hook's spool wake nobody, and a burst of writes is read at most once in ``PAUSE`` seconds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlite_utils import Database

from bootlockd.inotify import Inotify, Mask
from lockdb import journal
from lockdb.database import open_db

log = logging.getLogger(__name__)

#: Seconds between two looks into the file, however often it is written to.
PAUSE = 1.0
#: Seconds until a directory that is not there is looked for again.
RETRY = 5.0

#: What changes nobody's orders; all of these are the daemon's own, or follow an order.
UNIMPORTANT = (
    "armed",
    "break_glass_off",
    "break_glass_on",
    "definition_ended",
    "definition_kept",
    "definition_restored",
    "disarmed",
    "digest",
    "disks_recorded",
    "enforcement",
    "preserve_left",
    "preserve_undone",
    "preserved",
    "preserved_again",
    "preserving",
    "refused",
    "release_accepted",
    "release_stopped",
    "seen",
    "source_failed",
    "source_faults",
    "source_recovered",
    "source_vanished",
)

_CHANGES = Mask.MODIFY | Mask.CREATE | Mask.DELETE | Mask.MOVED_TO | Mask.MOVED_FROM


@dataclass(frozen=True)
class _Mark:
    """How far the journal of one file was read. ``file``: its device and inode, or None."""

    file: tuple[int, int] | None = None
    seq: int = 0


class DatabaseFeeder:
    """Watches one lock database until stopped.

    ``changed`` is called with the instances whose holds or permits changed; with none when another
    file is in place, or none at all.
    """

    def __init__(self, path: Path, changed: Callable[[Sequence[str]], None]) -> None:
        self._path = path
        self._changed = changed
        self._written = threading.Event()
        self._stop = threading.Event()
        self._changes = Inotify()

    def start(self) -> None:
        """Begin to watch. Returns at once."""
        for name, target in (("inotify", self._watch), ("database", self._read)):
            threading.Thread(target=target, name=name, daemon=True).start()

    def stop(self) -> None:
        """End the watch."""
        self._stop.set()
        self._changes.close()
        self._written.set()

    def _watch(self) -> None:
        """Note that something was written; again and again where the directory comes and goes."""
        while not self._stop.is_set():
            try:
                self._changes.watch(self._path.parent, _CHANGES | Mask.ONLYDIR)
                # It may have been written to before it was watched.
                self._written.set()
                self._note_until_gone()
            except OSError as error:
                if not self._stop.is_set():
                    log.error("%s is not watched: %s", self._path.parent, error)
                self._stop.wait(RETRY)

    def _note_until_gone(self) -> None:
        log_name = f"{self._path.name}-wal"
        for change in self._changes:
            # SQLite makes and removes the log as connections come and go: that changes nothing.
            lost = change.mask & (Mask.OVERFLOW | Mask.IGNORED)
            logged = change.name == log_name and change.mask & Mask.MODIFY
            if lost or logged or change.name == self._path.name:
                self._written.set()
            if change.mask & Mask.IGNORED:
                return

    def _read(self) -> None:
        mark = _Mark()
        while not self._stop.is_set():
            self._written.wait()
            self._written.clear()
            if self._stop.is_set():
                return
            mark = self._look(mark)
            self._stop.wait(PAUSE)

    def _look(self, last: _Mark) -> _Mark:
        try:
            status = self._path.stat()
            with open_db(self._path, read_only=True) as lock_db, lock_db.read() as db:
                mark = _Mark((status.st_dev, status.st_ino), journal.head(db).seq)
                same = mark.file == last.file and mark.seq >= last.seq
                touched = _touched(db, last.seq) if same else []
        except Exception as error:
            # The cycle says why it can't be read. This thread goes on, whatever it was.
            log.debug("the database can't be read: %s", error)
            if last.file:
                self._changed([])
            return _Mark()
        if touched or not same:
            self._changed(touched)
        return mark


def _touched(db: Database, since: int) -> list[str]:
    """The instances that entries after ``since`` are about, as far as they are orders."""
    marks = ", ".join("?" * len(UNIMPORTANT))
    rows = db.execute(
        f"SELECT DISTINCT ifnull(instance, '') FROM journal "
        f"WHERE seq > ? AND event NOT IN ({marks})",
        [since, *UNIMPORTANT],
    )
    return [str(instance) for (instance,) in rows]
