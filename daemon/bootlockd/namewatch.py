"""Notices when a file of a preserved instance loses its name, to put it back at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from bootlockd.inotify import Inotify, Mask
from bootlockd.values import Wake

log = logging.getLogger(__name__)

_WENT = Mask.DELETE | Mask.MOVED_FROM | Mask.ATTRIB
_ENDED = Mask.OVERFLOW | Mask.IGNORED


class NameWatch:
    """Watches the directories of names; who has one in them is woken."""

    def __init__(self) -> None:
        self._inotify: Inotify | None = None
        self._lock = threading.Lock()
        #: By directory: the names in it, and whose they are.
        self._names: dict[Path, dict[str, str]] = {}

    def start(self, wake: Callable[[Wake], None]) -> None:
        """Begin."""
        self._inotify = Inotify()
        threading.Thread(
            target=self._run, args=[self._inotify, wake], name="names", daemon=True
        ).start()

    def stop(self) -> None:
        """End."""
        if self._inotify:
            self._inotify.close()
            self._inotify = None

    def watch(self, instance: str, names: Iterable[str]) -> None:
        """Watch these, and no others, for this instance. From any thread."""
        wanted: dict[Path, dict[str, str]] = {}
        for name in names:
            wanted.setdefault(Path(name).parent, {})[Path(name).name] = instance
        with self._lock:
            for directory, known in [*self._names.items()]:
                rest = {name: whose for name, whose in known.items() if whose != instance}
                self._names[directory] = rest
                if not rest and directory not in wanted:
                    del self._names[directory]
                    if self._inotify:
                        self._inotify.unwatch(directory)
            for directory, found in wanted.items():
                self._names.setdefault(directory, {}).update(found)
                self._add(directory)

    def _add(self, directory: Path) -> None:
        try:
            if self._inotify:
                self._inotify.watch(directory, _WENT | Mask.ONLYDIR)
        except OSError as error:
            # The timer looks as well.
            log.info("%s is not watched: %s", directory, error)

    def _run(self, inotify: Inotify, wake: Callable[[Wake], None]) -> None:
        for change in inotify:
            if change.path is None or change.mask & _ENDED:
                wake(Wake("a directory is no longer watched"))
                continue
            with self._lock:
                instance = self._names.get(change.path, {}).get(change.name)
            if instance:
                wake(Wake("a preserved file changed its name or its mode", instance))
