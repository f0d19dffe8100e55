"""Held instances with disks, and the kernel's locks on files as another process sees them."""

import fcntl
import os
import struct
from pathlib import Path
from typing import Any

from bootlockd.fences.image_lock import ABOUT_TO
from bootlockd.values import Case
from fences.heldcases import case, row
from lockdb.enforcements import State

NAME = "image-lock"


def announced(*disks: Path | str, **more: Any) -> Case:
    """A held instance, with a row that says that it is about to be locked."""
    keys = [disk if isinstance(disk, str) else f"path:{disk}" for disk in disks]
    known = {"disks": keys, "rows": row(NAME, State.PENDING, ABOUT_TO)}
    return case(**known | more)


def lock_on(path: Path, first: int) -> tuple[int, int, int] | None:
    """Kind, first byte and length of the lock that keeps others from writing from ``first`` on."""
    with path.open("rb") as probe:
        ask = struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, first, 4, 0)
        kind, _, start, length, _ = struct.unpack(
            "@hhqqi4x", fcntl.fcntl(probe.fileno(), fcntl.F_OFD_GETLK, ask)
        )
    return None if kind == fcntl.F_UNLCK else (kind, start, length)


def is_locked(path: Path) -> bool:
    return lock_on(path, 200) == (fcntl.F_RDLCK, 200, 4)
