"""Whether a process of ours that has no socket runs: it holds a lock on a file of root's own.

The kernel lets the lock go with the process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from bootlockd.errors import BootlockdError


def lock_of(database: Path) -> Path:
    """The file of the process that preserves by this database."""
    return database.with_name("preserve.lock")


def claim(lock: Path) -> int:
    """Be the one process. Raises BootlockdError if there is another, or it can't be told."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BootlockdError(f"{lock}: {error.strerror}", "see database.path") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise BootlockdError(f"{lock}: another process has it", "end that one first") from error
    return descriptor


def is_running(lock: Path) -> bool | None:
    """None: it can't be told, by others than root."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
