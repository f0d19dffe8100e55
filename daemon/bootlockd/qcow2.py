"""What a qcow2 image says of other files that belong to it (qemu: docs/interop/qcow2.txt).

Only the header is read. It was written by the guest's owner at worst: of a disk whose format is raw
it is never read, since any guest can make its raw disk look like a qcow2 that names a file of the
host. For the same reason a backing file counts as qcow2 only if the image says so.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_MAGIC = b"QFI\xfb"
#: Magic, version, backing_file_offset, backing_file_size.
_START = struct.Struct(">4sIQI")
_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT = 0xE2792ACA
_DATA_FILE = 0x44415441
_EXTERNAL_DATA = 1 << 2
#: The smallest cluster; larger headers are legal, and all that is looked for stands at the start.
_READ = 64 * 1024
_NAME_MAX = 1023


@dataclass(frozen=True)
class Header:
    """Names as they stand in the image; empty where it names none."""

    backing: str = ""
    backing_format: str = ""
    data_file: str = ""


def read(descriptor: int) -> Header | None:
    """The header of an open image; None if it is none. Raises OSError."""
    start = os.pread(descriptor, _READ, 0)
    try:
        return _parsed(start)
    except (struct.error, UnicodeDecodeError):
        return None


def _parsed(start: bytes) -> Header | None:
    magic, version, offset, size = _START.unpack_from(start)
    if magic != _MAGIC or version not in {2, 3}:
        return None
    if size > _NAME_MAX or (size and offset + size > len(start)):
        return None
    features, length = 0, 72
    if version == 3:
        (features,) = struct.unpack_from(">Q", start, 72)
        (length,) = struct.unpack_from(">I", start, 100)
    found = dict(_extensions(start[:offset] if size else start, length))
    return Header(
        backing=start[offset : offset + size].decode() if size else "",
        backing_format=found.get(_BACKING_FORMAT, b"").decode() if size else "",
        data_file=found.get(_DATA_FILE, b"").decode() if features & _EXTERNAL_DATA else "",
    )


def _extensions(header: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + _EXTENSION.size <= len(header):
        kind, size = _EXTENSION.unpack_from(header, at)
        at += _EXTENSION.size
        if kind == 0 or at + size > len(header):
            return
        yield kind, header[at : at + size]
        at += -(-size // 8) * 8
