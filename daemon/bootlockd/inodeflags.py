"""What the kernel lets nobody write to: immutable files and directories, read-only block devices.

Both are set through a descriptor that is open for reading alone. The numbers of the calls are those
of asm-generic/ioctl.h (x86, ARM, RISC-V, s390).

An immutable file (ioctl_iflags(2)) can't be written, truncated, renamed, linked or unlinked by
anybody, root included, until somebody with CAP_LINUX_IMMUTABLE takes the flag off. In an immutable
directory nothing can be made, renamed or unlinked. The flag is the file's, whatever its names.

Nobody can write to a read-only device (BLKROSET, blockdev(8)), though it can be opened for it;
file systems and devices that are on it already can. It is forgotten at a reboot.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_GET_FLAGS = 0x80086601
_SET_FLAGS = 0x40086602
_IMMUTABLE = 0x10
_GET_READ_ONLY = 0x125E
_SET_READ_ONLY = 0x125D
#: Those that change nothing.
GETTING = frozenset({_GET_FLAGS, _GET_READ_ONLY})
_INT = struct.Struct("i")

#: How file systems say that they have no such flag.
_NONE = {errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def is_immutable(descriptor: int) -> bool | None:
    """None: its file system has no such flag. Raises OSError."""
    try:
        return bool(_flags(descriptor) & _IMMUTABLE)
    except OSError as error:
        if error.errno in _NONE:
            return None
        raise


def set_immutable(descriptor: int, wanted: bool) -> None:
    """Set or clear it, durably. Raises OSError."""
    flags = _flags(descriptor)
    new = flags | _IMMUTABLE if wanted else flags & ~_IMMUTABLE
    if new != flags:
        fcntl.ioctl(descriptor, _SET_FLAGS, _INT.pack(new))
    # Also where it was so already: whoever set it may have been cut short before this.
    os.fsync(descriptor)


def is_read_only(descriptor: int) -> bool:
    """Of a block device. Raises OSError."""
    return bool(_INT.unpack(fcntl.ioctl(descriptor, _GET_READ_ONLY, _INT.pack(0)))[0])


def set_read_only(descriptor: int, wanted: bool) -> None:
    """Of a block device. Raises OSError."""
    fcntl.ioctl(descriptor, _SET_READ_ONLY, _INT.pack(int(wanted)))


def _flags(descriptor: int) -> int:
    return int(_INT.unpack(fcntl.ioctl(descriptor, _GET_FLAGS, _INT.pack(0)))[0])
