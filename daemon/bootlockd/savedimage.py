"""QEMU guests' saved RAM: libvirt's image files, which tell whose RAM they hold.

libvirt writes ``NAME.save`` in its save directory: a header with the domain's XML, then the RAM.
While it writes, the magic says so; it is made right last. Nothing here changes a file.
"""

from __future__ import annotations

import os
import stat
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".save"

#: magic, version, length of what follows the header; then 17 numbers that are not needed here.
_HEADER = struct.Struct("=16sII68x")
_COMPLETE = b"LibvirtQemudSave"
#: libvirt's own limit for XML is 10 MiB.
_LENGTH_MAX = 16 << 20


@dataclass(frozen=True)
class SavedImage:
    """A complete image, as it was while ``descriptor`` was open."""

    descriptor: int
    uuid: str
    name: str
    #: st_dev and st_ino: what makes two names the same file.
    inode: tuple[int, int]
    #: When the RAM was saved, in nanoseconds of the file system's clock.
    saved_at: int


@contextmanager
def opened(path: Path) -> Iterator[SavedImage | None]:
    """The complete image at ``path``, or None for nothing or anything else. Raises OSError."""
    try:
        # NOFOLLOW: QEMU's own user may be able to write in this directory.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        yield _read(descriptor)
    finally:
        os.close(descriptor)


def path_of(directory: Path, name: str) -> Path | None:
    """Where libvirt saves the domain of this name; None if there can be no such file."""
    if not name or "/" in name or "\0" in name:
        return None
    return directory / f"{name}{SUFFIX}"


def _read(descriptor: int) -> SavedImage | None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return None
    header = os.pread(descriptor, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        return None
    magic, _version, length = _HEADER.unpack(header)
    if magic != _COMPLETE or length > _LENGTH_MAX:
        return None
    # After the XML come a zero byte, libvirt's cookie and padding.
    document = os.pread(descriptor, length, _HEADER.size).partition(b"\0")[0]
    try:
        domain = ET.fromstring(document)  # noqa: S314 - libvirt wrote it
    except ET.ParseError:
        return None
    return SavedImage(
        descriptor=descriptor,
        uuid=domain.findtext("uuid", "").strip().lower(),
        name=domain.findtext("name", ""),
        inode=(status.st_dev, status.st_ino),
        saved_at=status.st_mtime_ns,
    )
