"""A second name of the file in which a guest's firmware keeps its variables (NVRAM).

``undefine --nvram`` removes it, and with it what the guest boots from. A hard link in the directory
of custody keeps it, where that is under the same mount. QEMU writes into the file as it is, so the
link follows what the guest changes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from pathlib import Path

from bootlockd import custodylinks
from bootlockd.errors import FenceError


class Standing(Enum):
    """What became of the file and its second name."""

    NONE = auto()
    KEPT = auto()
    #: It has no second name yet.
    NEW = auto()
    #: Its own name was removed.
    REMOVED = auto()
    #: Its own name leads to another file.
    REPLACED = auto()


def link_for(directory: Path, instance: str) -> Path:
    """Where an instance's file has its second name."""
    return directory / f"{instance}.nvram"


def look(path: str | None, link: Path) -> Standing:
    """Raises OSError."""
    if path is None:
        return Standing.NONE
    file, second = _status(path), _status(link)
    if file is None:
        # Without either: libvirt makes it at the first start.
        return Standing.NONE if second is None else Standing.REMOVED
    if second is None:
        return Standing.NEW
    same = (file.st_dev, file.st_ino) == (second.st_dev, second.st_ino)
    return Standing.KEPT if same else Standing.REPLACED


def keep(path: str, link: Path) -> None:
    """Give the file at ``path`` the second name, in place of what had it. Raises OSError."""
    with _opened(path) as descriptor:
        link.unlink(missing_ok=True)
        custodylinks.give_name(descriptor, str(link))


def put_back(path: str, link: Path) -> None:
    """Give the file its own name again. Raises OSError."""
    with _opened(link) as descriptor, suppress(FileExistsError):
        custodylinks.give_name(descriptor, path)


def _status(path: str | Path) -> os.stat_result | None:
    try:
        return os.stat(path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextmanager
def _opened(path: str | Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FenceError(f"{str(path)!r} is no file", "see the domain's <nvram>")
        yield descriptor
    finally:
        os.close(descriptor)
