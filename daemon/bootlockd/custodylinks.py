"""Second names of files, in a directory of root's own on the same file system: ``.bootlock``.

A hard link keeps a file's data when its first name is removed. It can't cross a file system, nor
two mounts of one; so the directory lies beside the file, or, where that is in a directory of one
instance's own, beside that directory: then an ``rm -rf`` of it does not reach the link.

The directory is *sealed*, immutable, while something in it is kept: an ``rm -rf`` of what it lies
in would remove both names of a file that may not be immutable itself. Where the file system has no
such flag it is not.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bootlockd import inodeflags
from bootlockd.errors import FenceError
from lockdb.values import looks_like_uuid

NAME = ".bootlock"

#: The directory comes with the first link and goes with the last: not both at once.
_one_at_a_time = threading.Lock()


def make_private(directory: Path) -> None:
    """Have this directory, for root alone. Raises OSError, or FenceError if it is not safe."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise FenceError(f"{directory} is not a directory of root's own", "move it away")
    if status.st_mode & 0o077:
        raise FenceError(f"{directory} is open to others", f"chmod 700 {directory}")


def is_own(directory: str, instance: str) -> bool:
    """By its name it is this instance's, as Nova's ``instances/UUID``."""
    return os.path.basename(directory) == instance


def open_directory(path: str) -> int:
    """A descriptor of it. Raises OSError, also where a link has taken its place."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def name_for(path: str, instance: str, inode: int) -> str:
    """The second name for the file at ``path``, which has no links in it. Raises OSError."""
    directory = os.path.dirname(path)
    above = os.path.dirname(directory)
    # Another instance's may be immutable by now; this one's will be.
    if looks_like_uuid(os.path.basename(directory)) and _mount_of(directory) == _mount_of(above):
        directory = above
    return os.path.join(directory, NAME, f"{instance}.{inode}")


def make(descriptor: int, link: str) -> None:
    """Give an open file this further name, durably, and seal it. It may have it already.

    Raises OSError, or FenceError if the directory is not safe.
    """
    with _one_at_a_time:
        _make(descriptor, link)


def _make(descriptor: int, link: str) -> None:
    parent = os.path.dirname(link)
    Path(parent).mkdir(mode=0o700, exist_ok=True)
    with _opened(parent) as directory:
        _must_be_private(parent, os.fstat(directory))
        _seal(directory, wanted=False)
        try:
            found = os.stat(os.path.basename(link), dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            _link(descriptor, os.path.basename(link), directory)
        else:
            if found.st_ino != os.fstat(descriptor).st_ino:
                raise FenceError(f"{link!r} is another file", "move it away")
        os.fsync(directory)
        _seal(directory, wanted=True)
    with _opened(os.path.dirname(parent)) as above:
        os.fsync(above)


def seal(link: str, *, wanted: bool = True) -> None:
    """Have nobody, or whoever may, remove what is beside this link. Raises OSError."""
    with _one_at_a_time, _opened(os.path.dirname(link)) as directory:
        _seal(directory, wanted=wanted)


def is_sealed(link: str) -> bool:
    """Nobody can remove it; or nothing could keep anybody from it. Raises OSError."""
    with _opened(os.path.dirname(link)) as directory:
        return inodeflags.is_immutable(directory) is not False


def give_name(descriptor: int, path: str) -> None:
    """Give an open file this name, or give it back, durably. Raises OSError."""
    with _opened(os.path.dirname(path)) as directory:
        _link(descriptor, os.path.basename(path), directory)
        os.fsync(directory)


def remove(link: str, *, sealed: bool) -> None:
    """End the second name, durably; the directory too if it is empty. Raises OSError.

    ``sealed``: whether the directory is, if there are others in it.
    """
    parent = os.path.dirname(link)
    with _one_at_a_time, suppress(FileNotFoundError):
        with _opened(parent) as directory:
            _seal(directory, wanted=False)
            with suppress(FileNotFoundError):
                os.unlink(os.path.basename(link), dir_fd=directory)
            os.fsync(directory)
            try:
                os.rmdir(parent)
            except OSError:
                # There are others.
                if sealed:
                    _seal(directory, wanted=True)
        with _opened(os.path.dirname(parent)) as above:
            os.fsync(above)


def is_file(path: str, inode: int) -> bool:
    """This name leads to that file. Raises OSError, but not for a file that is not there."""
    try:
        return os.stat(path, follow_symlinks=False).st_ino == inode
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextmanager
def _opened(directory: str) -> Iterator[int]:
    descriptor = open_directory(directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _seal(directory: int, *, wanted: bool) -> None:
    if inodeflags.is_immutable(directory) is not None:
        inodeflags.set_immutable(directory, wanted)


def _link(descriptor: int, name: str, directory: int) -> None:
    # With a directory given Python calls linkat(), which follows /proc's link to the open file:
    # whatever its name leads to by now.
    os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=directory, dst_dir_fd=directory)


def _must_be_private(path: str, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise FenceError(f"{path!r} is not a directory of root's own", "move it away")


def _mount_of(directory: str) -> str:
    with _opened(directory) as descriptor:
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    return next(line for line in lines if line.startswith("mnt_id:"))
