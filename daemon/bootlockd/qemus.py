"""Which processes are QEMUs that can run a guest, whose they are, and what they use.

*A QEMU* is a process whose program contains what every QEMU system emulator contains: the texts of
its ``-version`` and of its ``-uuid`` help. Its file's name, path and arguments decide nothing: a
renamed copy, a link and a deleted file are found; qemu-img, qemu-nbd, backup tools, shells and
wrappers with the same arguments, libvirtd and this daemon are not QEMUs. A program that was started
through the dynamic linker (``ld.so PROGRAM``) counts as that program.

*libvirt's own* QEMU is one that holds the write lock on its PID file in libvirt's directory, which
only root can make. Its parent and its cgroup prove nothing: it is reparented, and moved later.

Everything read of a process may be read of another one that got its number meanwhile: hold a pidfd,
and look afterwards whether the process still lives. Nothing here touches the files that a QEMU
names: they may lie on storage that hangs.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from bootlockd import hostpath

#: In every build of every version; together in nothing else.
_QEMU_MARKS = (b"QEMU emulator version ", b"specify machine UUID")
_LOADER_MARKS = (b"--library-path", b"--inhibit-cache")
#: The smallest system emulators have several MiB; larger than the second is no emulator at all.
_QEMU_SIZES = range(1 << 20, 256 << 20)
_LOADER_SIZES = range(1 << 16, 1 << 20)
_CHUNK = 1 << 20
#: More programs than a host runs in a day; afterwards they are read again.
_CACHE_MAX = 10_000
#: Arguments of a dynamic linker among which the program is looked for.
_LOADER_ARGUMENTS = 16

#: The process or the file is no more; any other error says nothing of either.
_GONE = (FileNotFoundError, ProcessLookupError)

#: Device and inode; for a block device its number, whatever node it was opened by.
FileId = tuple[int, int]


class Program(Enum):
    """What a program file is."""

    QEMU = 1
    LOADER = 2
    OTHER = 3


@dataclass(frozen=True)
class Held:
    """What no QEMU but libvirt's may use."""

    uuids: frozenset[str] = frozenset()
    #: The instance and the path by which the disk is known.
    disks: Mapping[FileId, tuple[str, Path]] = field(default_factory=dict)

    @cached_property
    def inodes(self) -> frozenset[int]:
        """Of all disks."""
        return frozenset(inode for _, inode in self.disks)


@dataclass(frozen=True)
class Match:
    """Why a QEMU is about an instance. ``what``: ``uuid`` or ``disk PATH``."""

    instance: str
    what: str


def file_id(status: os.stat_result) -> FileId | None:
    """The identity of a disk; None for what is neither a file nor a block device."""
    if stat.S_ISBLK(status.st_mode):
        return (-1, status.st_rdev)
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def uuids_of(arguments: list[bytes]) -> frozenset[str]:
    """The UUIDs that a QEMU's command line gives its guest."""
    found = set()
    for option, value in pairwise(arguments):
        name = b"-" + option.lstrip(b"-")
        if name == b"-uuid":
            found.add(value)
        elif name == b"-smbios":
            found.update(part[5:] for part in value.split(b",") if part.startswith(b"uuid="))
    return frozenset(uuid.decode("ascii", "replace").strip().lower() for uuid in found)


class Programs:
    """What program files are; each is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], Program] = {}

    def of(self, path: str | bytes) -> Program:
        """What the file at ``path`` is. Raises OSError."""
        status = os.stat(path)
        key = (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )
        known = self._known.get(key)
        if known is None:
            known = _read_program(path, status)
            if len(self._known) >= _CACHE_MAX:
                self._known.clear()
            self._known[key] = known
        return known


class Qemus:
    """The QEMUs of this host. ``pid_directory``: where libvirt keeps its guests' PID files."""

    def __init__(self, pid_directory: Path) -> None:
        self._directory = os.fsencode(pid_directory)
        self._programs = Programs()

    def warm_up(self) -> None:
        """Read the programs that run and the likely emulators: their next start costs nothing."""
        for _ in self.all():
            pass
        # Not all that are installed: with those of every architecture it would be gigabytes.
        system = f"qemu-system-{os.uname().machine}"
        for path in (f"/usr/bin/{system}", f"/usr/local/bin/{system}", "/usr/libexec/qemu-kvm"):
            with suppress(OSError):
                self._programs.of(path)

    def all(self) -> Iterator[int]:
        """The PIDs of all QEMUs, libvirt's own included."""
        for name in os.listdir("/proc"):
            if name.isdigit() and self.is_qemu(int(name)):
                yield int(name)

    def is_qemu(self, pid: int) -> bool:
        """Whether this process is a QEMU; False if it has ended."""
        try:
            program = self._programs.of(f"/proc/{pid}/exe")
            return program is Program.QEMU or (
                program is Program.LOADER and self._loads_qemu(arguments_of(pid))
            )
        except OSError:
            return False

    def matches(self, pid: int, held: Held) -> Iterator[Match]:
        """What this QEMU uses of what is held, the quickest to find out first."""
        with suppress(OSError):
            for uuid in uuids_of(arguments_of(pid)) & held.uuids:
                yield Match(uuid, "uuid")
            for disk in _open_disks(pid, held.inodes) & held.disks.keys():
                instance, path = held.disks[disk]
                yield Match(instance, f"disk {path}")

    def is_libvirts(self, pid: int) -> bool:
        """Whether libvirt started this process: see above. Raises OSError if that can't be told."""
        with suppress(*_GONE):
            for descriptor, link in _descriptors(pid):
                name = os.path.basename(link)
                if name.endswith(b".pid") and self._is_pid_file(pid, descriptor, name):
                    return True
        return False

    def _is_pid_file(self, pid: int, descriptor: bytes, name: bytes) -> bool:
        path = os.path.join(self._directory, name)
        with suppress(*_GONE):
            wanted = os.lstat(path)
            if not stat.S_ISREG(wanted.st_mode) or wanted.st_uid != 0:
                return False
            if file_id(os.stat(descriptor)) != file_id(wanted):
                return False
            with open(path, "rb") as file:
                written = file.read(32).strip()
            return written == _innermost_pid(pid) and _has_write_lock(pid, wanted.st_ino)
        return False

    def _loads_qemu(self, arguments: list[bytes]) -> bool:
        for argument in arguments[1:_LOADER_ARGUMENTS]:
            if argument.startswith(b"/"):
                with suppress(OSError):
                    if self._programs.of(hostpath.reachable(os.fsdecode(argument))) is Program.QEMU:
                        return True
        return False


def arguments_of(pid: int) -> list[bytes]:
    """Its command line. Raises OSError."""
    with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
        return file.read().split(b"\0")


def start_of(pid: int) -> int:
    """When it began, in the kernel's ticks: tells a process from the next of its number."""
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def printable(text: bytes, limit: int = 400) -> str:
    """Bytes of a process's making as one line of plain text."""
    shown = text.decode("utf-8", "backslashreplace")[:limit]
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)


def _read_program(path: str | bytes, status: os.stat_result) -> Program:
    if not stat.S_ISREG(status.st_mode):
        return Program.OTHER
    if status.st_size in _LOADER_SIZES and _contains(path, _LOADER_MARKS):
        return Program.LOADER
    if status.st_size in _QEMU_SIZES and _contains(path, _QEMU_MARKS):
        return Program.QEMU
    return Program.OTHER


def _contains(path: str | bytes, marks: tuple[bytes, ...]) -> bool:
    """Whether it is an ELF file with all marks. Read, not mapped: it may be truncated meanwhile."""
    missing = set(marks)
    overlap = max(map(len, marks)) - 1
    before = b""
    with open(path, "rb", buffering=0) as file:
        while missing and (chunk := file.read(_CHUNK)):
            if not before and not chunk.startswith(b"\x7fELF"):
                return False
            window = before + chunk
            missing = {mark for mark in missing if mark not in window}
            before = window[-overlap:]
    return not missing


def _descriptors(pid: int) -> Iterator[tuple[bytes, bytes]]:
    """Each open descriptor's path in /proc and what it links to. Raises OSError."""
    directory = b"/proc/%d/fd" % pid
    for number in os.listdir(directory):
        path = os.path.join(directory, number)
        with suppress(FileNotFoundError):
            yield path, os.readlink(path)


def _open_disks(pid: int, inodes: frozenset[int]) -> set[FileId]:
    """The files and block devices that it has open, as far as they may be of these inodes."""
    found = set()
    for path, link in _descriptors(pid):
        with suppress(OSError):
            # A stat asks the file system, which may hang; the inode's number does not.
            if link.startswith(b"/dev/") or _may_be(pid, path, inodes):
                found.add(file_id(os.stat(path)))
    return {disk for disk in found if disk}


def _may_be(pid: int, descriptor: bytes, inodes: frozenset[int]) -> bool:
    with open(b"/proc/%d/fdinfo/%s" % (pid, os.path.basename(descriptor)), "rb") as file:
        for line in file:
            if line.startswith(b"ino:"):
                return int(line[4:]) in inodes
    # Kernels before 5.14 don't tell.
    return True


def _innermost_pid(pid: int) -> bytes:
    """The number that it has in its own PID namespace, which is what it writes down."""
    with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
        for line in file.read().splitlines():
            if line.startswith(b"NSpid:"):
                return line.split()[-1]
    return b"%d" % pid


def _has_write_lock(pid: int, inode: int) -> bool:
    with open("/proc/locks", "rb") as file:
        for line in file:
            # 1: POSIX  ADVISORY  WRITE 4711 00:17:1234 0 EOF
            words = line.split()
            is_its = words[1:2] == [b"POSIX"] and words[3:5] == [b"WRITE", b"%d" % pid]
            if is_its and int(words[5].rpartition(b":")[2]) == inode:
                return True
    return False
