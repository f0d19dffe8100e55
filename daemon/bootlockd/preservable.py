"""What of an instance can be preserved on this host: its disks, and what they are overlays of.

Everything is opened once, for reading, and acted on through that descriptor: a name may lead to
another file by then. Who looks closes them all by closing the ``ExitStack``.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bootlockd import custodylinks, diskfiles, hypervisor, imagelocks, inodeflags
from bootlockd.errors import FenceError, NoSuchDriver, Unreachable
from bootlockd.values import Case
from lockdb import disks
from lockdb.database import open_db
from lockdb.errors import InvalidValue
from lockdb.preserved import Preserved, Role, Stage

log = logging.getLogger(__name__)

#: Device mapper's numbers change from boot to boot: next time it may be another guest's disk.
_PASSING = re.compile(r"/dev/dm-\d+")


@dataclass(frozen=True)
class Target:
    """Something that is to be preserved, open for reading. Its methods raise OSError."""

    path: str
    role: Role
    descriptor: int
    inode: int

    def has_flag(self) -> bool:
        """Nobody can write to it."""
        if self.role is Role.DEVICE:
            return inodeflags.is_read_only(self.descriptor)
        return bool(inodeflags.is_immutable(self.descriptor))

    def set_flag(self, wanted: bool) -> None:
        """Have nobody, or whoever may, write to it. Backing files are others' too: never."""
        if self.role is Role.DEVICE:
            inodeflags.set_read_only(self.descriptor, wanted)
        elif self.role is not Role.BACKING:
            inodeflags.set_immutable(self.descriptor, wanted)

    @contextmanager
    def linkable(self) -> Iterator[None]:
        """An immutable file gets no name and loses none: it is not, meanwhile.

        The flag is ours, for this instance or another; after a power cut the next look sets it.
        """
        is_set = self.role is not Role.DEVICE and self.has_flag()
        if is_set:
            inodeflags.set_immutable(self.descriptor, wanted=False)
        try:
            yield
        finally:
            if is_set:
                inodeflags.set_immutable(self.descriptor, wanted=True)


@dataclass
class Found:
    """What the disks of an instance are here."""

    targets: list[Target] = field(default_factory=list)
    #: Why something is not, and can't be, preserved.
    refused: list[str] = field(default_factory=list)
    #: Names of disks that something uses.
    used: list[str] = field(default_factory=list)


def find(
    case: Case, rows: Sequence[Preserved], uris: Sequence[str], stack: ExitStack, *, whole: bool
) -> Found:
    """Its own disks; ``whole``: with what they are overlays of, as far as libvirt says.

    Raises Unreachable or FenceError.
    """
    search = _Search(rows, stack)
    kinds = _kinds(case, search) if whole else {}
    for key in case.disks:
        kind, _, name = key.partition(":")
        if kind == "net":
            search.refused.append(f"{key!r} is not on this host")
            continue
        if kind == "volume":
            known = hypervisor.volume_path(uris, key)
            if known is None or not known.startswith("/"):
                search.refused.append(f"{key!r} is no file or device that libvirt knows here")
                continue
            name = known
        search.look(name, Role.DISK)
        if kinds.get(key, "raw") != "raw":
            search.look_behind(name, kinds[key])
    return search.sorted()


def find_directories(
    case: Case, rows: Sequence[Preserved], found: Found, others: Others, stack: ExitStack
) -> list[Target]:
    """Those that are this instance's alone: by their names, and by whose disks are in them."""
    own = {os.path.dirname(one.path) for one in found.targets if one.role is Role.DISK}
    own = {path for path in own if custodylinks.is_own(path, case.instance)}
    known = {row.path for row in rows if row.stands and row.role is Role.DIRECTORY}
    targets = []
    for path in sorted(own):
        try:
            if path not in known and others.are_in(path, case.instance):
                log.warning("instance=%s %r has other guests' disks", case.instance, path)
                continue
        except Unreachable as error:
            found.refused.append(f"{path!r}, its directory, may be others' too: {error}")
            continue
        descriptor = custodylinks.open_directory(path)
        stack.callback(os.close, descriptor)
        targets.append(Target(path, Role.DIRECTORY, descriptor, os.fstat(descriptor).st_ino))
    return targets


@dataclass(frozen=True)
class Others:
    """The disks of all other guests: of those held, by the database, and those that are defined."""

    database: Path
    uris: Sequence[str]

    def are_in(self, directory: str, instance: str) -> bool:
        """Whether one of them is below this directory. Raises Unreachable."""
        return any(
            os.path.realpath(name).startswith(f"{directory}/") for name in self._names(instance)
        )

    def _names(self, instance: str) -> Iterator[str]:
        with open_db(self.database, read_only=True) as lock_db:
            held = disks.by_instance(lock_db)
        for other, keys in held.items():
            if other != instance:
                yield from (key.partition(":")[2] for key in keys if key.startswith("path:"))
        for uri in self.uris:
            try:
                documents = hypervisor.documents(uri)
            except NoSuchDriver:
                continue
            for other, document in documents.items():
                if other != instance:
                    yield from diskfiles.paths(document)


class _Search:
    """Looks at one name after the other. Of several names of one file the first counts."""

    def __init__(self, rows: Sequence[Preserved], stack: ExitStack) -> None:
        self.refused: list[str] = []
        self._rows = [row for row in rows if row.stands]
        self._stack = stack
        self._seen: dict[tuple[str, int, int], Target] = {}

    def look(self, name: str, role: Role) -> None:
        """Open it; say why, if it can't be preserved."""
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            self.refused.append(f"{name!r}: {getattr(error, 'strerror', None) or error}")
            return
        self._stack.callback(os.close, descriptor)
        status = os.fstat(descriptor)
        if stat.S_ISBLK(status.st_mode):
            identity = ("device", status.st_rdev, 0)
            if identity not in self._seen or _PASSING.fullmatch(self._seen[identity].path):
                self._seen[identity] = Target(name, Role.DEVICE, descriptor, 0)
        elif stat.S_ISREG(status.st_mode):
            target = Target(os.path.realpath(name), role, descriptor, status.st_ino)
            identity = ("file", status.st_dev, status.st_ino)
            if identity not in self._seen and self._is_fit(target):
                self._seen[identity] = target
        else:
            self.refused.append(f"{name!r} is neither a file nor a block device")

    def look_behind(self, path: str, kind: str) -> None:
        """At what an image of this format names."""
        try:
            chain = diskfiles.chain_of(path, kind)
        except OSError as error:
            self.refused.append(f"what {path!r} is an overlay of: {error.strerror}")
            return
        self.refused += chain.faults
        for name in chain.data:
            self.look(name, Role.DISK)
        for name in chain.backing:
            self.look(name, Role.BACKING)

    def sorted(self) -> Found:
        """What was found, by what can be done about it."""
        found = Found(refused=self.refused)
        kept = {(row.path, row.inode) for row in self._rows if row.stage is Stage.KEPT}
        for target in self._seen.values():
            if (target.path, target.inode) in kept:
                # Whoever reads it now may.
                found.targets.append(target)
            elif _PASSING.fullmatch(target.path):
                found.refused.append(
                    f"{target.path!r} is another device after a reboot: give it as /dev/VG/LV"
                )
            elif target.role is not Role.BACKING and _is_used(target.descriptor):
                found.used.append(target.path)
            else:
                found.targets.append(target)
        return found

    def _is_fit(self, target: Target) -> bool:
        problem = self._problem(target)
        if problem:
            self.refused.append(problem)
        return not problem

    def _problem(self, target: Target) -> str:
        if not _is_text(target.path):
            return f"{target.path!r}: its name is not UTF-8"
        for row in self._rows:
            if row.path == target.path and row.inode != target.inode:
                return (
                    f"{row.path!r} was replaced by another file; what is preserved is {row.link!r}"
                )
        is_known = inodeflags.is_immutable(target.descriptor) is not None
        if target.role is Role.DISK and not is_known:
            return f"{target.path!r}: its file system has no immutable flag"
        return ""


def _kinds(case: Case, search: _Search) -> dict[str, str]:
    """The formats of its disks. Undefined, it has had its backing files noted before."""
    if case.guest is None:
        return {}
    document = hypervisor.document_of(case.guest, inactive=True)
    if document is None:
        return {}
    try:
        search.refused += diskfiles.elsewhere(document)
        return diskfiles.formats(document)
    except (ET.ParseError, InvalidValue) as error:
        raise FenceError(f"libvirt's XML of it: {error}", "see 'virsh dumpxml'") from error


def _is_used(descriptor: int) -> bool:
    """By a QEMU, which marks what it uses; or, a block device, by a mount or another device."""
    if imagelocks.is_used(descriptor):
        return True
    if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
        return False
    try:
        # What is mounted, or part of another device, can't be opened for oneself alone.
        os.close(os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError:
        return True
    return False


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
