"""The one directory that outlives a run, and who uses what in it.

Whoever uses a directory in it holds a lock on that, which goes with the process, however it ends.
So what is left of a run that was killed, or of an older machine, can be told and removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def cache() -> Path:
    """``$BOOTLOCK_E2E_CACHE``, or ``bootlock/e2e`` in the user's cache directory."""
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = Path(os.environ.get("BOOTLOCK_E2E_CACHE") or users / "bootlock/e2e")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextmanager
def alone() -> Iterator[None]:
    """Nobody else makes or removes anything in it."""
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def use(directory: Path) -> int:
    """Keep others from removing it, until the descriptor is closed."""
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def remove_unused(*keep: Path) -> None:
    """Of all directories but these."""
    for directory in cache().iterdir():
        if directory.is_dir() and directory not in keep:
            fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory)
            os.close(fd)
