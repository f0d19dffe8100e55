"""Watching managed saves: a new one is taken into custody, a removed one put back, at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from bootlockd import savedimage
from bootlockd.inotify import Change, Inotify, Mask
from bootlockd.values import Wake
from lockdb.values import looks_like_uuid

log = logging.getLogger(__name__)

_CAME = Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.CREATE
_WENT = Mask.DELETE | Mask.MOVED_FROM
_ENDED = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.UNMOUNT | Mask.IGNORED | Mask.OVERFLOW


class SavedImageWatcher:
    """Wakes for what happens in libvirt's directory of managed saves, and in that of custody.

    Keeps no state: whose image has gone is found in the images that are in custody.
    """

    def __init__(self, saves: Path, custody: Path) -> None:
        self._saves = saves
        self._custody = custody
        self._inotify: Inotify | None = None
        self._thread: threading.Thread | None = None

    def start(self, wake: Callable[[Wake], None]) -> None:
        """Begin. A directory that doesn't exist yet is watched from the next ``watch`` on."""
        self._inotify = Inotify()
        self._thread = threading.Thread(
            target=self._run, args=[self._inotify, wake], name="managed saves", daemon=True
        )
        self._thread.start()
        self.watch()

    def watch(self) -> None:
        """Make sure that both are watched, as far as they exist. From any thread."""
        if self._inotify is None:
            return
        for directory in (self._saves, self._custody):
            try:
                self._inotify.watch(directory, _CAME | _WENT | Mask.DELETE_SELF | Mask.MOVE_SELF)
            except FileNotFoundError:
                log.debug("no %s yet", directory)
            except OSError as error:
                log.error("%s is looked at by the timer only: %s", directory, error)

    def stop(self) -> None:
        """End."""
        if self._inotify and self._thread:
            self._inotify.close()
            self._thread.join(5)
        self._inotify = self._thread = None

    def _run(self, inotify: Inotify, wake: Callable[[Wake], None]) -> None:
        for change in inotify:
            try:
                for found in self._wakes(change):
                    wake(found)
            except Exception:
                # Whatever it was: what this can't tell apart, a look at everything can.
                log.exception("managed saves: %s", change)
                wake(Wake("a managed save changed"))

    def _wakes(self, change: Change) -> Iterator[Wake]:
        if change.mask & _ENDED:
            yield Wake(f"no longer watched: {change.path}")
        elif change.path == self._custody:
            instance = change.name.removesuffix(savedimage.SUFFIX)
            if change.mask & _WENT and looks_like_uuid(instance):
                yield Wake("an image was taken from custody", instance)
        elif change.mask & _CAME:
            with savedimage.opened(self._saves / change.name) as image:
                if image:
                    yield Wake("RAM was saved", image.uuid)
        else:
            for path in self._custody.glob(f"*{savedimage.SUFFIX}"):
                with savedimage.opened(path) as image:
                    if image and f"{image.name}{savedimage.SUFFIX}" == change.name:
                        yield Wake("a managed save was removed", image.uuid)
