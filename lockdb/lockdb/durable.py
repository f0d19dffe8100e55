"""Files that are there, whole, after a power cut. The database's own SQLite sees to."""

from __future__ import annotations

import os
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Have the names in a directory outlast a power cut. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes, mode: int, *, draft: Path) -> os.stat_result:
    """Put a file in place whole, durably, instead of what is there. Raises OSError.

    ``draft``: its name until it is whole, on the same file system. Who may write at the same time
    needs another. Returns the file's status from before it got its place: there it is anybody's who
    may write to the directory.
    """
    try:
        draft.unlink(missing_ok=True)
        # The directory may be another's: a link that was left there must lead us nowhere.
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
            status = os.fstat(descriptor)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_directory(path.parent)
    return status
