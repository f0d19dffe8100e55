"""Takes the SHA-256 of preserved disks, one after the other, when nobody else reads.

A digest counts only if nobody wrote meanwhile: the disk is out of use, and its size and times are
the same before and after. Of a backing file, which others read meanwhile and libvirt gives to
QEMU's user, size and time of writing count. What was put aside at a restart is gone on with under
the same condition.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import platform
import stat
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bootlockd import custodylinks, hypervisor, imagelocks
from bootlockd.errors import Unreachable
from bootlockd.resumable import Sha256
from bootlockd.values import Wake
from lockdb import preserved
from lockdb.database import LockDB, open_db
from lockdb.errors import DatabaseError
from lockdb.preserved import Digest, Preserved, Role, Stage

log = logging.getLogger(__name__)

#: Bytes that are read at once.
PIECE = 1 << 22
#: Seconds between two notes of how far it is: what is read again after a power cut.
NOTE = 10.0
#: Seconds between two looks for disks without a digest, besides when one is kept.
LOOK = 60.0

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "s390x": 282}
_WHO_PROCESS = 1
_IDLE = 3 << 13

_MARKS = struct.Struct("=qqq")


class Digester:
    """``start`` and ``stop`` it; ``hurry`` when there is something new."""

    def __init__(self, database: Path, uris: tuple[str, ...]) -> None:
        self._database = database
        self._uris = uris
        self._stop = threading.Event()
        self._due = threading.Event()
        self._thread: threading.Thread | None = None
        self._wake: Callable[[Wake], None] = lambda _wake: None

    def start(self, wake: Callable[[Wake], None]) -> None:
        """Begin. ``wake`` is called when a digest was taken."""
        self._wake = wake
        self._thread = threading.Thread(target=self._run, name="digests", daemon=True)
        self._thread.start()

    def hurry(self) -> None:
        """Look now. From any thread."""
        self._due.set()

    def stop(self) -> None:
        """End, with what is under way put aside."""
        self._stop.set()
        self._due.set()
        if self._thread:
            self._thread.join(5)
            self._thread = None

    def _run(self) -> None:
        _be_idle()
        while not self._stop.is_set():
            self._due.clear()
            try:
                self.look()
            except DatabaseError as error:
                log.error("no digest is taken: %s", error)
            except Exception:
                # Disks are kept with or without; the next look tries again.
                log.exception("digests")
            self._due.wait(LOOK)

    def look(self) -> None:
        """Take what is missing, and end what was left of instances that are back."""
        with open_db(self._database, read_only=True) as lock_db:
            rows = preserved.standing(lock_db)
            left = preserved.left(lock_db)
        for row in rows:
            if self._stop.is_set():
                return
            if row.stage is Stage.KEPT and row.has_content and row.sha256 is None:
                self._take(row)
        for row in left:
            self._end_if_back(row)

    def _take(self, row: Preserved) -> None:
        try:
            descriptor = open_content(row)
            try:
                digest = self._digest(row, descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.error("instance=%s no digest of %r: %s", row.instance, row.path, error)
            return
        if digest:
            log.info("instance=%s sha256 of %r is %s", row.instance, row.path, digest.sha256)
            self._wake(Wake("a digest was taken", row.instance))

    def _digest(self, row: Preserved, descriptor: int) -> Digest | None:
        """None: it is in use, was written to, is kept no more, or we are to end."""
        before = _looks(row, descriptor)
        if _is_used(row, descriptor):
            return None
        state = _state_after(row, before)
        sha256 = Sha256(state)
        at = row.hashed if sha256.begun else 0
        noted = time.monotonic()
        while piece := os.pread(descriptor, PIECE, at):
            sha256.update(piece)
            # Nobody needs it a second time: what guests read stays in memory instead.
            os.posix_fadvise(descriptor, at, len(piece), os.POSIX_FADV_DONTNEED)
            at += len(piece)
            ends = self._stop.is_set()
            if ends or time.monotonic() > noted + NOTE:
                noted = time.monotonic()
                if not self._noted(row, at, _aside(before, sha256)) or ends:
                    return None
        if _looks(row, descriptor) != before or _is_used(row, descriptor):
            log.warning("instance=%s %r was written to: no digest", row.instance, row.path)
            self._noted(row, 0, None)
            return None
        digest = Digest(row.path, row.role, at, sha256.hexdigest(), int(time.time()))
        with open_db(self._database) as lock_db, lock_db.write():
            if not _is_kept(lock_db, row):
                return None
            preserved.digested(lock_db, row, digest, before[1])
        return digest

    def _noted(self, row: Preserved, at: int, state: bytes | None) -> bool:
        """False if it is no longer kept."""
        with open_db(self._database) as lock_db, lock_db.write():
            kept = _is_kept(lock_db, row)
            if kept:
                preserved.progress(lock_db, row, at, state)
            return kept

    def _end_if_back(self, row: Preserved) -> None:
        """Its instance was deleted when it was released, as it seemed, and is here again."""
        try:
            if hypervisor.observe(self._uris, row.instance) is None:
                return
            if not custodylinks.is_file(row.path, row.inode):
                return
            with open_db(self._database, read_only=True) as lock_db:
                sealed = preserved.are_linked_in(lock_db, os.path.dirname(row.link))
            custodylinks.remove(row.link, sealed=sealed)
        except (OSError, Unreachable) as error:
            log.info("instance=%s %r stays: %s", row.instance, row.link, error)
            return
        with open_db(self._database) as lock_db:
            preserved.end(lock_db, [replace(row, stage=Stage.ENDED)], now=int(time.time()))
        log.info("instance=%s it is here again: %r removed", row.instance, row.link)


def open_content(row: Preserved) -> int:
    """What is kept, by its own name or by its link: a descriptor for reading. Raises OSError."""
    name = row.path
    if row.inode and row.link and not custodylinks.is_file(name, row.inode):
        name = row.link
    flags = os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags if row.role is Role.DEVICE else flags | os.O_NOFOLLOW)
    status = os.fstat(descriptor)
    is_it = stat.S_ISBLK(status.st_mode) if row.role is Role.DEVICE else status.st_ino == row.inode
    if not is_it:
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "it was replaced by another", name)
    return descriptor


def size_of(descriptor: int) -> int:
    """Of a file or a block device."""
    return os.lseek(descriptor, 0, os.SEEK_END)


def _is_used(row: Preserved, descriptor: int) -> bool:
    return row.role is not Role.BACKING and imagelocks.is_used(descriptor)


def _looks(row: Preserved, descriptor: int) -> tuple[int, int, int]:
    """What any write changes: size, and the times of writing and of any change."""
    status = os.fstat(descriptor)
    if row.role is Role.DEVICE:
        # Its times are the node's. That nobody writes is what its being read-only is for.
        return size_of(descriptor), 0, 0
    changed = 0 if row.role is Role.BACKING else status.st_ctime_ns
    return status.st_size, status.st_mtime_ns, changed


def _aside(looks: tuple[int, int, int], sha256: Sha256) -> bytes | None:
    state = sha256.aside()
    return None if state is None else _MARKS.pack(*looks) + state


def _state_after(row: Preserved, looks: tuple[int, int, int]) -> bytes | None:
    """What was put aside, if nobody has written since."""
    state = row.hash_state
    if state is None or not state.startswith(_MARKS.pack(*looks)):
        return None
    return state[_MARKS.size :]


def _is_kept(lock_db: LockDB, row: Preserved) -> bool:
    rows = preserved.of_instance(lock_db, row.instance)
    return any(
        (now.path, now.inode, now.stage) == (row.path, row.inode, Stage.KEPT) for now in rows
    )


def _be_idle() -> None:
    """This thread reads when nobody else does (ioprio_set(2)), as far as its disk's scheduler can.

    Only where the kernel is asked by a number that is known here; elsewhere it reads as any other.
    """
    number = _IOPRIO_SET.get(platform.machine())
    if number is None or ctypes.CDLL(None).syscall(number, _WHO_PROCESS, 0, _IDLE) != 0:
        log.info("digests are taken at ordinary priority")
