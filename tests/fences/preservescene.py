"""A preserved instance, and a file system whose power can be cut between any two steps."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import struct
import subprocess
import sys
import threading
import time
import uuid as uuids
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database

from bootlockd import custodylinks, inodeflags
from bootlockd.fences.preserve import PreserveFence
from bootlockd.worker import Job, Worker
from domainxml import domain_xml
from lockdb import database, enforcements, holds, journal, preserved
from lockdb.database import LockDB, open_db
from lockdb.enforcements import Enforcement
from lockdb.preserved import Preserved
from lockdb.values import Hold, NewHold
from privatehost import PrivateHost

#: EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH: from then on nothing reaches the disk.
_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = struct.pack("I", 2)
_SIZE = 48 << 20
_NEW_MOUNTS = 0x20000
_libc = ctypes.CDLL(None, use_errno=True)


class PowerCut(BaseException):
    """Nothing catches it, as nothing outlives a power cut."""


def in_own_mounts(action: Callable[[], None]) -> None:
    """Do it in a thread that has a mount namespace of its own.

    Whoever makes one for himself meanwhile, as each private host does, would keep a copy of what is
    mounted in ours: unmounted here, it would go on there.
    """

    def apart() -> None:
        if _libc.unshare(_NEW_MOUNTS) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        action()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(apart).result()


class Box:
    """An ext4 of its own, mounted; ``cut`` loses what was not written to the disk."""

    def __init__(self, directory: Path) -> None:
        image = directory / "box.img"
        self.root = directory / "box"
        self.root.mkdir()
        with image.open("wb") as file:
            file.truncate(_SIZE)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        # One device for all mounts: the kernel takes its time to end one, and two would not agree.
        find: list[str | Path] = ["losetup", "--find", "--show", image]
        self._device = subprocess.check_output(find, text=True).strip()

    def mount(self) -> None:
        subprocess.run(["mount", self._device, self.root], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", self.root], check=True)

    def detach(self) -> None:
        subprocess.run(["losetup", "--detach", self._device], check=True)

    def cut(self) -> None:
        """The power goes. What follows fails, until ``boot``."""
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, _NO_LOG_FLUSH)
        finally:
            os.close(descriptor)

    def boot(self) -> None:
        self.unmount()
        self.mount()


@contextmanager
def mounted(directory: Path) -> Iterator[Box]:
    box = Box(directory)
    try:
        box.mount()
        try:
            yield box
        finally:
            box.unmount()
    finally:
        box.detach()


class Scene:
    """One instance with a directory of its own, and its holds; ``state``: where these are kept."""

    def __init__(self, host: PrivateHost, root: Path, state: Path | None = None) -> None:
        self.host = host
        self.uuid = str(uuids.uuid4())
        self.directory = root / "instances" / self.uuid
        self.directory.mkdir(parents=True)
        self.disk = self.directory / "disk"
        self.disk.write_bytes(b"the customer's" * 1000)
        self.database = (state or root / "state") / "lock.db"
        if not self.database.exists():
            database.create(self.database, now=1, host="test")
        os.sync()

    @property
    def links(self) -> Path:
        return self.directory.parent / custodylinks.NAME

    def define(self, *disks: str | Path) -> None:
        with closing(self.host.connect()) as connection:
            connection.defineXML(domain_xml(self.uuid, self.uuid, disks=disks or [self.disk]))

    def undefine(self) -> None:
        with closing(self.host.connect()) as connection:
            connection.lookupByUUIDString(self.uuid).undefine()

    def place(self) -> Hold:
        with open_db(self.database) as lock_db:
            new = NewHold(self.uuid, "a court order", "a test", preserve=True)
            return holds.place(lock_db, new, now=int(time.time()))

    def release(self, hold: Hold, *, discard: bool = False) -> None:
        with open_db(self.database) as lock_db, lock_db.write() as db:
            holds.release(lock_db, hold.id, reason="done", by="a test", now=int(time.time()))
            if discard:
                preserved.discard(db, self.uuid)

    def treat(self, *, looks: bool = True) -> None:
        """One job, as the cycle would have it run; the fence knows nothing of any before.

        ``looks``: as everywhere but at a service's start, before libvirt answers.
        """
        fence = PreserveFence(self.database, [self.host.uri])
        Worker(self.database, [self.host.uri], [fence]).run(Job(self.uuid, (), looks=looks))

    def mended(self) -> list[dict[str, Any]]:
        """The journal's entries about what was not as it had been made."""
        with open_db(self.database, read_only=True) as lock_db, lock_db.read() as db:
            found = journal.entries(db, instance=self.uuid, event="preserved_again")
            return [json.loads(entry) for entry in found]

    def outcome(self, hold: Hold) -> Enforcement:
        with open_db(self.database, read_only=True) as lock_db:
            (row,) = enforcements.of_hold(lock_db, hold.id)
        return row

    def rows(self) -> list[Preserved]:
        with open_db(self.database, read_only=True) as lock_db:
            return preserved.of_instance(lock_db, self.uuid)


def is_immutable(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        return bool(inodeflags.is_immutable(descriptor))
    finally:
        os.close(descriptor)


def make_immutable(path: Path, wanted: bool = True) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        inodeflags.set_immutable(descriptor, wanted)
    finally:
        os.close(descriptor)


def overlay(path: Path, base: Path, base_format: str = "raw") -> Path:
    command: list[str | Path] = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        base_format,
        "-b",
        base,
        path,
    ]
    subprocess.run(command, check=True)
    return path


#: What Python tells an audit hook of that changes a file system, or may: whatever is new is found.
_CHANGES = {
    "os.chflags",
    "os.chmod",
    "os.chown",
    "os.exec",
    "os.link",
    "os.mkdir",
    "os.posix_spawn",
    "os.remove",
    "os.removexattr",
    "os.rename",
    "os.rmdir",
    "os.setxattr",
    "os.symlink",
    "os.system",
    "os.truncate",
    "os.utime",
    "subprocess.Popen",
}
_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Boundaries:
    """Everything of one thread that changes the disk, in the order in which it is done."""

    def __init__(self, box: Box, patch: pytest.MonkeyPatch) -> None:
        #: How many steps since it was armed, and of which kinds they ever were.
        self._crossed = 0
        self.kinds: set[str] = set()
        self._box = box
        self._thread = threading.get_ident()
        self._fatal = 0
        self.was_cut = False
        self._sync(patch)
        self._write(patch)
        # A hook is there until the process ends.
        self.is_open = True
        sys.addaudithook(self._audit)

    def arm(self, fatal: int) -> None:
        """Cut the power before the nth change from now on; 0: never."""
        self._crossed = 0
        self._fatal = fatal
        self.was_cut = False

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_open:
            return
        if event == "open":
            # A descriptor that is open already is no new file.
            is_new = not isinstance(arguments[0], int)
            changes = is_new and bool((arguments[2] or 0) & _TO_WRITE)
        elif event == "fcntl.ioctl":
            changes = arguments[1] not in inodeflags.GETTING
        else:
            changes = event in _CHANGES
        if changes:
            self.cross(event)

    def _sync(self, patch: pytest.MonkeyPatch) -> None:
        call = os.fsync

        def counted(descriptor: int) -> None:
            self.cross("fsync")
            call(descriptor)

        patch.setattr(os, "fsync", counted)

    def _write(self, patch: pytest.MonkeyPatch) -> None:
        """A transaction is one step: it is there or it is not."""
        call = LockDB.write

        @contextmanager
        def counted(lock_db: LockDB) -> Iterator[Database]:
            if not lock_db.db.conn.in_transaction:
                self.cross("transaction")
            with call(lock_db) as db:
                yield db

        patch.setattr(LockDB, "write", counted)

    def cross(self, name: str) -> None:
        """A step is about to be done."""
        if threading.get_ident() != self._thread:
            return
        self._crossed += 1
        if self._fatal:
            self.kinds.add(name)
        if self._crossed == self._fatal:
            self._fatal, self.was_cut = 0, True
            self._box.cut()
            raise PowerCut


def cut_in(act: Callable[[], None], box: Box, boundaries: Boundaries, at: int) -> bool:
    """Let it act with the power cut before its nth step; whether there are so many."""
    boundaries.arm(at)
    # What is in its way meanwhile fails as well, and may fail in words of its own.
    with suppress(PowerCut):
        act()
    was_cut = boundaries.was_cut
    boundaries.arm(0)
    if was_cut:
        box.boot()
    return was_cut
