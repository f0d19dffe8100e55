"""QEMU's own locks on disk images, taken from outside of QEMU (qemu: block/file-posix.c).

QEMU marks what it does with an image by read locks on single bytes: 100+n "I use this", 200+n "I
share this with nobody", and refuses an image of which somebody else has marked the opposite. Read
locks on 200-203 make every other opener fail: libvirt, a clone, qemu-img, QEMU run by hand.

The locks belong to the open file (open file description locks, fcntl(2)), not to a process: they
last as long as any process or systemd's store has it open, unless they are let go explicitly.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from bootlockd import hostpath

_FIRST_USE = 100
_FIRST_UNSHARED = 200
_BYTES = 4

#: struct flock: type, whence, start, length, pid.
_FLOCK = struct.Struct("@hhqqi4x")

#: As /proc/PID/fdinfo shows our lock.
_SHOWN = ["OFDLCK", "ADVISORY", "READ"]
_SHOWN_RANGE = [str(_FIRST_UNSHARED), str(_FIRST_UNSHARED + _BYTES - 1)]


@dataclass(frozen=True)
class Inode:
    """What a lock is on: a name may lead to another file tomorrow."""

    device: int
    number: int


def inode_at(path: str) -> Inode | None:
    """The disk at ``path``, or None if there is no file or block device. Raises OSError."""
    try:
        status = os.stat(hostpath.reachable(path))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return _inode(status)


def inode_of(descriptor: int) -> Inode | None:
    """The disk that is open; None if it is no file or block device, or has no name any more."""
    status = os.fstat(descriptor)
    return _inode(status) if status.st_nlink else None


def open_disk(path: str) -> int:
    """A read-only descriptor, which is enough for read locks. Raises OSError."""
    return os.open(
        hostpath.reachable(path), os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
    )


def is_used(descriptor: int) -> bool:
    """Whether some QEMU uses the image now. Raises OSError."""
    probe = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _FIRST_USE, _BYTES, 0)
    found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, probe)
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


def take(descriptor: int) -> bool:
    """Lock the image unless it is in use. Can be called again. Raises OSError."""
    if is_used(descriptor):
        return False
    _set(descriptor, fcntl.F_RDLCK)
    # Whoever came between the look and the lock has marked its use before it looked for ours.
    if is_used(descriptor):
        let_go(descriptor)
        return False
    return True


def let_go(descriptor: int) -> None:
    """End the lock, whoever else has the same open file. Raises OSError."""
    _set(descriptor, fcntl.F_UNLCK)


def is_taken(descriptor: int) -> bool:
    """Whether the kernel shows our lock on this open file. Raises OSError."""
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
        words = line.split()
        if words[:1] == ["lock:"] and words[2:5] == _SHOWN and words[-2:] == _SHOWN_RANGE:
            return True
    return False


def _set(descriptor: int, kind: int) -> None:
    lock = _FLOCK.pack(kind, os.SEEK_SET, _FIRST_UNSHARED, _BYTES, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)


def _inode(status: os.stat_result) -> Inode | None:
    if stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode):
        return Inode(status.st_dev, status.st_ino)
    return None
