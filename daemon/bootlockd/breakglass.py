"""Watches the break-glass file, which lets undecided starts through, and has it journalled.

It is made when the database is broken, so the record often can't be written at that moment: what
was seen is kept, with its time, until it can.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from queue import SimpleQueue

from bootlockd.inotify import Inotify, Mask
from lockdb import breakglass
from lockdb.database import open_db

log = logging.getLogger(__name__)

#: Seconds until a directory or a database that can't be used is tried again.
RETRY = 5.0

_COMES = Mask.CREATE | Mask.MOVED_TO
_GOES = Mask.DELETE | Mask.MOVED_FROM


class BreakGlassWatch:
    """Watches until stopped; ``present`` is what was seen last."""

    def __init__(self, database: Path, path: Path = breakglass.PATH) -> None:
        self.present = False
        self._database = database
        self._path = path
        self._changes = Inotify()
        self._stop = threading.Event()
        #: Presence and when it was seen; None ends the recorder.
        self._seen: SimpleQueue[tuple[bool, int] | None] = SimpleQueue()

    def start(self) -> None:
        """Begin to watch. Returns at once."""
        threading.Thread(target=self._watch, name="break-glass", daemon=True).start()
        threading.Thread(target=self._record, name="break-glass record", daemon=True).start()

    def stop(self) -> None:
        """End the watch."""
        self._stop.set()
        self._changes.close()
        self._seen.put(None)

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                self._changes.watch(self._path.parent, _COMES | _GOES | Mask.ONLYDIR)
                self._note(self._path.exists())
                self._follow()
            except OSError as error:
                if not self._stop.is_set():
                    log.warning("%s is not watched: %s", self._path.parent, error)
                self._stop.wait(RETRY)

    def _follow(self) -> None:
        """Until the directory is gone, and the watch with it."""
        for change in self._changes:
            if change.name == self._path.name:
                # Not a look: a file that came and went at once was there nevertheless.
                self._note(bool(change.mask & _COMES))
            elif change.mask & (Mask.OVERFLOW | Mask.IGNORED):
                self._note(self._path.exists())
            if change.mask & Mask.IGNORED:
                return

    def _note(self, present: bool) -> None:
        if present and not self.present:
            log.critical("%s exists: starts that can't be decided go through", self._path)
        elif self.present and not present:
            log.warning("%s is gone", self._path)
        self.present = present
        self._seen.put((present, int(time.time())))

    def _record(self) -> None:
        while seen := self._seen.get():
            while not self._stop.is_set() and not self._recorded(*seen):
                self._stop.wait(RETRY)

    def _recorded(self, present: bool, seen: int) -> bool:
        try:
            with open_db(self._database) as lock_db:
                breakglass.record(lock_db, present=present, seen=seen, now=int(time.time()))
        except Exception as error:
            # Whatever it is: it is to be recorded once that is over.
            log.debug("the break-glass file is not journalled yet: %s", error)
            return False
        return True
