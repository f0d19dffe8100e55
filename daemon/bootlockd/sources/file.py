"""Holds from a directory of files, which configuration management fills.

Every ``*.toml`` and ``*.json`` in it is a file of holds, see ``holdfile``. What is there is held.
What is gone is released only if the directory is sound: it is the same directory as before and not
empty, each file in it can be read, and two looks, some time apart, found exactly the same.
Everything else - half a file, one with a fault, another directory in its place - releases nothing.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from bootlockd.inotify import Inotify, Mask
from bootlockd.sources.base import (
    Known,
    Observation,
    Reading,
    Said,
    SourceError,
    printable_line,
)
from bootlockd.sources.holdfile import NAME, Contents, parse

log = logging.getLogger(__name__)

#: A file of more bytes than that is a mistake: 200,000 holds are fewer.
MOST_BYTES = 64 << 20
#: Seconds between the two looks that a release needs, and how long a burst of changes may last.
SETTLE = 1.0
#: Seconds without a change after which a burst is over.
QUIET = 0.1
#: Nanoseconds in which a file can be written again without its times showing it.
_RACY = 2 * 10**9

_CHANGES = (
    Mask.MODIFY
    | Mask.ATTRIB
    | Mask.CLOSE_WRITE
    | Mask.MOVED_FROM
    | Mask.MOVED_TO
    | Mask.CREATE
    | Mask.DELETE
    | Mask.DELETE_SELF
    | Mask.MOVE_SELF
)

#: Device, inode, size, and the times of the last change of contents and of anything.
Signature = tuple[int, ...]


@dataclass(frozen=True)
class _File:
    """One file as it was seen. ``signature``: empty if it was not to be had."""

    signature: Signature
    contents: Contents
    #: Nothing could have changed it since without another signature.
    is_old: bool = False


@dataclass(frozen=True)
class _Look:
    """All files of the directory, seen once. ``identity``: of the directory itself."""

    identity: str
    files: Mapping[str, _File]

    @property
    def faults(self) -> list[str]:
        return [fault for file in self.files.values() for fault in file.contents.faults]

    def is_as(self, other: _Look) -> bool:
        """Nothing changed between the two."""
        mine = {name: file.signature for name, file in self.files.items()}
        return self.identity == other.identity and mine == {
            name: file.signature for name, file in other.files.items()
        }


class FileSource:
    """One directory. ``revision`` is which directory it is."""

    name = "file"

    def __init__(self, directory: Path, *, interval: float = 60.0, settle: float = SETTLE) -> None:
        self._directory = directory
        self._interval = interval
        self._settle = settle
        self._seen: Mapping[str, _File] = {}

    def read(self, known: Known) -> Reading:
        """See base.Source."""
        return self._read(known, time.sleep)

    def follow(self, known: Known, stop: threading.Event) -> Iterator[Reading]:
        """See base.Source. It looks when the directory changes, and each ``interval``."""
        with _Watch(self._directory) as watch:
            while not stop.is_set():
                reading = self._read(known, stop.wait)
                known = replace(known, revision=reading.revision)
                yield reading
                watch.wait(self._interval, stop)

    def _read(self, known: Known, wait: Callable[[float], object]) -> Reading:
        look = self._look()
        said = {
            observation.ref: observation
            for file in look.files.values()
            for observation in file.contents.observations
        }
        missing = [ref for ref in known.held if ref not in said]
        faults = look.faults
        revision = look.identity
        gone: list[Observation] = []
        if missing and not look.files:
            faults.append(f"{self._directory}: no files: that releases nothing")
        elif missing and known.revision not in {"", look.identity}:
            faults.append(f"{self._directory}: another directory than before: it releases nothing")
            revision = known.revision
        elif missing and faults:
            gone = [Observation(ref, Said.UNKNOWN, problem=faults[0]) for ref in missing]
        elif missing:
            wait(self._settle)
            if look.is_as(self._look()):
                gone = [self._released(ref, look) for ref in missing]
            else:
                faults.append(f"{self._directory}: it changes: releases wait until it does not")
                gone = [Observation(ref, Said.UNKNOWN, problem=faults[-1]) for ref in missing]
        return Reading((*said.values(), *gone), whole=True, revision=revision, faults=tuple(faults))

    def _released(self, ref: str, look: _Look) -> Observation:
        file = ref.partition(":")[0]
        what = "does not have it any more" if file in look.files else "is gone"
        others = f"{len(look.files)} files there are sound"
        evidence = f"{self._directory / file} {what}; {others}"
        return Observation(ref, Said.RELEASED, evidence=evidence)

    def _look(self) -> _Look:
        """Every file, as it is now. Raises SourceError if the directory can't be seen whole."""
        try:
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                identity = _identity(descriptor)
                if os.fstat(descriptor).st_mode & stat.S_IWOTH:
                    raise SourceError(
                        f"{self._directory}: everybody may write to it", "chmod o-w it"
                    )
                names = [name for name in os.listdir(descriptor) if _is_meant(name)]
                files = {name: self._file(descriptor, name) for name in sorted(names)}
            finally:
                os.close(descriptor)
            if _identity(self._directory) != identity:
                raise SourceError(f"{self._directory}: it was replaced while it was read")
        except OSError as error:
            raise SourceError(
                f"{self._directory}: {error.strerror}",
                "it must be a directory that root can read, without root's powers",
            ) from error
        self._seen = {name: file for name, file in files.items() if file.is_old}
        return _Look(identity, files)

    def _file(self, directory: int, name: str) -> _File:
        try:
            if not NAME.fullmatch(name):
                raise ValueError("its name may have letters, digits and . _ - only")
            # Before it is opened: opening a device or a pipe does something.
            signature = _signature(os.stat(name, dir_fd=directory))
            last = self._seen.get(name)
            if last and last.signature == signature:
                return last
            return _opened(directory, name, signature)
        except (OSError, ValueError) as error:
            problem = error.strerror if isinstance(error, OSError) else str(error)
            line = printable_line(f"{_safe(name)}: {problem}", 300)
            return _File((), Contents(faults=(line,)))


class _Watch:
    """Says when the directory changed. Where the kernel has no watch to give, it never does."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._changed = threading.Event()
        self._inotify: Inotify | None = None

    def __enter__(self) -> Self:
        try:
            self._inotify = Inotify()
            self._inotify.watch(self._directory, _CHANGES | Mask.ONLYDIR)
            threading.Thread(target=self._note, name="file changes", daemon=True).start()
        except OSError as error:
            log.warning("%s is looked at now and then, not watched: %s", self._directory, error)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._inotify:
            self._inotify.close()

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Until a burst of changes is over, the time is, or ``stop``."""
        end = time.monotonic() + seconds
        while not stop.is_set() and time.monotonic() < end:
            if self._changed.wait(0.5):
                end = min(end, time.monotonic() + SETTLE)
                while self._changed.is_set() and time.monotonic() < end:
                    self._changed.clear()
                    stop.wait(QUIET)
                return

    def _note(self) -> None:
        assert self._inotify
        with suppress(OSError):
            for change in self._inotify:
                self._changed.set()
                if change.mask & Mask.IGNORED:
                    # What has its name now, if anything, is seen at the next look.
                    return


def _is_meant(name: str) -> bool:
    """Not what editors and copying programs write to before they rename."""
    return name.endswith((".toml", ".json")) and not name.startswith(".")


def _identity(directory: int | Path) -> str:
    """Of a directory, over reboots: the device's number may be another then."""
    status = os.stat(directory)
    return f"{os.statvfs(directory).f_fsid:x}-{status.st_ino}"


def _signature(status: os.stat_result) -> Signature:
    """Of a file that is meant to be read. Raises ValueError."""
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no plain file")
    if status.st_mode & stat.S_IWOTH:
        raise ValueError("everybody may write to it: chmod o-w")
    if status.st_size > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB")
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_dev, status.st_ino, status.st_size, *times)


def _opened(directory: int, name: str, signature: Signature) -> _File:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=directory), "rb") as file:
        data = file.read(MOST_BYTES + 1)
        # Another file by now, or written to meanwhile.
        if _signature(os.fstat(file.fileno())) != signature or len(data) != signature[2]:
            raise ValueError("it is being written")
    is_old = 0 <= signature[4] < time.time_ns() - _RACY
    return _File(signature, parse(name, data), is_old)


def _safe(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
