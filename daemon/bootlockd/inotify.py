"""The kernel's file change events (inotify(7)), which Python's standard library does not offer.

    with Inotify() as changes:
        changes.watch(Path("/var/lib/libvirt/qemu/save"), Mask.MOVED_TO | Mask.DELETE)
        for event in changes:          # blocks
            ...

One thread iterates; ``watch`` and ``close`` may be called from any other. The iteration ends after
``close``. What a reader must not forget: events can be lost, which it is told by an event with
OVERFLOW, and a watch ends with what it watches, which it is told by one with IGNORED. After either
the only way to know is to look.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from types import TracebackType
from typing import Self


class Mask(IntFlag):
    """What to report, and what is reported (linux/inotify.h)."""

    MODIFY = 0x2
    ATTRIB = 0x4
    CLOSE_WRITE = 0x8
    OPEN = 0x20
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATE = 0x100
    DELETE = 0x200
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800
    #: Only reported: its file system was unmounted.
    UNMOUNT = 0x2000
    #: Only reported: events were lost. Such an event has no path.
    OVERFLOW = 0x4000
    #: Only reported: this watch has ended.
    IGNORED = 0x8000
    #: Only asked for: fail unless it is a directory.
    ONLYDIR = 0x1000000
    #: Only reported: ``name`` is a directory.
    ISDIR = 0x40000000


@dataclass(frozen=True)
class Change:
    """One event. ``name``: what changed in the directory watched; empty for that itself."""

    #: As given to ``watch``; None for OVERFLOW.
    path: Path | None
    mask: Mask
    name: str


#: struct inotify_event up to its name: wd, mask, cookie, len.
_HEADER = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """One inotify instance. Raises OSError if the kernel has no more of them to give."""

    def __init__(self) -> None:
        # CLOEXEC and NONBLOCK have the same values as for open(2).
        self._fd = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        self._paths: dict[int, Path] = {}
        # Whether the descriptors are open, and that nobody closes them in the middle of a use.
        self._lock = threading.Lock()
        self._closed = False
        self._reading = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def watch(self, path: Path, mask: Mask) -> None:
        """Report ``mask`` of this file or directory; of one watched already, this mask instead.

        Raises OSError.
        """
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, "closed", str(path))
            descriptor = _checked(
                _libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(mask)), path
            )
            self._paths[descriptor] = path

    def unwatch(self, path: Path) -> None:
        """Report nothing more of this path; nothing happens if it is not watched."""
        with self._lock:
            found = [number for number, known in self._paths.items() if known == path]
            for descriptor in found if not self._closed else ():
                # It may have ended by itself meanwhile.
                _libc.inotify_rm_watch(self._fd, descriptor)

    def close(self) -> None:
        """End the iteration, and all watches. Can be called again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.eventfd_write(self._end, 1)
            if not self._reading:
                self._release()

    def __iter__(self) -> Iterator[Change]:
        """The events as they come, until closed. For one thread. Raises OSError."""
        with self._lock:
            if self._closed:
                return
            self._reading = True
        try:
            while self._wait():
                # Large enough for any one event; the kernel hands out whole ones.
                yield from self._changes(os.read(self._fd, 1 << 16))
        finally:
            with self._lock:
                self._reading = False
                if self._closed:
                    self._release()

    def _wait(self) -> bool:
        """Block until there are events. False once closed."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._end, select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll()]
        return self._end not in ready

    def _changes(self, data: bytes) -> Iterator[Change]:
        at = 0
        while at < len(data):
            descriptor, mask, _cookie, length = _HEADER.unpack_from(data, at)
            at += _HEADER.size
            name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
            at += length
            with self._lock:
                path = self._paths.get(descriptor)
                if mask & Mask.IGNORED:
                    self._paths.pop(descriptor, None)
            if path is not None or mask & Mask.OVERFLOW:
                yield Change(path, Mask(mask), name)

    def _release(self) -> None:
        os.close(self._fd)
        os.close(self._end)


def _checked(result: int, path: Path | None = None) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), None if path is None else str(path))
    return result
