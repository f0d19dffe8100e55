"""image-lock: while a boot-locked instance is off, nobody else opens its local disks with QEMU.

The hook answers libvirt on this host. QEMU's own image locks answer everybody who uses the same
file here: a clone with another UUID, a hook directory that was emptied, a QEMU run by hand. They
are held in this process and in systemd's descriptor store, see ``bootlockd.descriptors``.

Only an instance's own disks are locked, never a backing file that others start from; and only
files and block devices. A disk that is in use is left alone: the lock would not end that use.

Nothing is locked before a row says so. Otherwise, killed at the wrong moment and its hold released
meanwhile, the daemon would hold the lock for ever.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bootlockd import imagelocks
from bootlockd.descriptors import Descriptors
from bootlockd.errors import FenceError
from bootlockd.fences.base import Quiet
from bootlockd.imagelocks import Inode
from bootlockd.values import Case, Outcome, Wake, strictest
from lockdb.enforcements import State
from lockdb.values import Hold, OnRunning

log = logging.getLogger(__name__)

ABOUT_TO = "about to lock its disks"
RUNS_ON = "it runs on, as ordered: its disks are locked when it is off"
NO_DISK = "no disk here that can be locked"

#: Seconds after which disks that were in use are looked at again.
RETRY = 5


@dataclass
class _Found:
    """The disks of an instance by what can be done about them."""

    #: By what they are, not by name: one disk may be recorded under several.
    here: dict[Inode, str] = field(default_factory=dict)
    remote: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


class ImageLockFence(Quiet):
    """Holds QEMU's locks on the disks of instances that are off."""

    name = "image-lock"

    def __init__(self, descriptors: Descriptors, *, enabled: bool = True) -> None:
        self._descriptors = descriptors
        self._enabled = enabled

    def start(self, _wake: Callable[[Wake], None]) -> None:
        """Each disk takes a descriptor: the usual limit, 1024, is not enough for them."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def asks(self, hold: Hold) -> bool:
        """A state lock is the customer's: imaging and backup go on."""
        return self._enabled and hold.bars_start

    def wanted(self, case: Case) -> bool:
        """Held, and nobody may start it now."""
        return self._enabled and bool(case.boot_locks) and not case.is_permitted

    def reaches(self, case: Case) -> bool:
        """It is known here, with disks. They are not looked at: a hung NFS would hang us all."""
        return case.guest is not None and any(key.startswith("path:") for key in case.disks)

    def verify(self, case: Case) -> Outcome:
        """Whether the kernel shows our lock on what each disk's name leads to now."""
        disks, held = _find(case), self._held(case)
        open_to = [path for inode, path in disks.here.items() if inode not in held]
        if open_to:
            return Outcome(State.FAILED, f"not locked: {_list(open_to)}", case.now + RETRY)
        if not held:
            return Outcome(State.NOT_HERE, NO_DISK)
        return Outcome(State.ENFORCED, _locked(disks, held))

    def apply(self, case: Case) -> Outcome:
        """Lock every disk that is not in use."""
        disks, held = _find(case), self._held(case)
        free, used = _by_use([(i, path) for i, path in disks.here.items() if i not in held])
        if free and not self._is_announced(case):
            # Not at once: without a database to announce it in, this would go round and round.
            return Outcome(State.PENDING, ABOUT_TO, case.now + 1)
        for inode, path in free:
            taken = _take(path)
            if taken is None:
                used.append(path)
            else:
                held[inode] = taken
        self._keep(case, held)
        if not used:
            return self.verify(case)
        if not held and _may_run(case):
            return Outcome(State.NOT_HERE, RUNS_ON)
        return Outcome(State.PENDING, f"in use: {_list(used)}", case.now + RETRY)

    def prepare(self, case: Case) -> Outcome | None:
        """Lock what is not in use: libvirt may be about to start who knows what."""
        outcome = self.apply(case)
        # That a disk is in use, or none is here, is said once libvirt has told of the guest.
        said = outcome.is_enforced or outcome.detail == ABOUT_TO
        return outcome if said else None

    def lift(self, case: Case) -> Outcome:
        """Let all of them go: for a permitted start, or for good."""
        name = _group(case)
        for descriptor in self._descriptors.of(name):
            # Closing would not do: systemd has the same open file.
            imagelocks.let_go(descriptor)
        self._descriptors.replace(name, [])
        return Outcome(State.LIFTED)

    def _held(self, case: Case) -> dict[Inode, int]:
        """What is locked, as the kernel shows it just now."""
        held: dict[Inode, int] = {}
        for descriptor in self._descriptors.of(_group(case)):
            inode = imagelocks.inode_of(descriptor)
            if inode and imagelocks.is_taken(descriptor):
                held[inode] = descriptor
        return held

    def _keep(self, case: Case, held: dict[Inode, int]) -> None:
        name = _group(case)
        if sorted(held.values()) != sorted(self._descriptors.of(name)):
            self._descriptors.replace(name, list(held.values()))
            log.info("instance=%s disks locked: %d", case.instance, len(held))

    def _is_announced(self, case: Case) -> bool:
        return any(
            fence == self.name and row.state not in {State.LIFTED, State.NOT_HERE}
            for (_, fence), row in case.rows.items()
        )


def _by_use(disks: list[tuple[Inode, str]]) -> tuple[list[tuple[Inode, str]], list[str]]:
    """Those that no QEMU uses, and the paths of those that one does. Raises FenceError."""
    free, used = [], []
    for inode, path in disks:
        with _complaining(path):
            descriptor = imagelocks.open_disk(path)
            try:
                in_use = imagelocks.is_used(descriptor)
            finally:
                os.close(descriptor)
        if in_use:
            used.append(path)
        else:
            free.append((inode, path))
    return free, used


def _take(path: str) -> int | None:
    """A descriptor with the lock, or None if the disk is in use. Raises FenceError."""
    with _complaining(path):
        descriptor = imagelocks.open_disk(path)
        try:
            taken = imagelocks.take(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        if taken:
            return descriptor
        os.close(descriptor)
        return None


@contextmanager
def _complaining(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FenceError(
            f"{path!r} can't be locked: {error.strerror}",
            "the hook holds it still; see docs/fences/image-lock.md",
        ) from error


def _may_run(case: Case) -> bool:
    order = strictest(case.boot_locks)
    is_active = case.guest is not None and case.guest.is_active
    return is_active and order in {OnRunning.LEAVE, OnRunning.PAUSE}


def _find(case: Case) -> _Found:
    found = _Found()
    for key in case.disks:
        kind, _, name = key.partition(":")
        if kind == "net":
            found.remote.append(key)
        elif kind == "path":
            with _complaining(name):
                inode = imagelocks.inode_at(name)
            if inode is None:
                found.absent.append(name)
            else:
                found.here.setdefault(inode, name)
    return found


def _group(case: Case) -> str:
    return f"image-lock.{case.instance}"


def _locked(disks: _Found, held: dict[Inode, int]) -> str:
    parts = [f"{len(held)} locked"]
    if disks.remote:
        parts.append(f"not on this host: {_list(disks.remote)}")
    if disks.absent:
        parts.append(f"no such file: {_list(disks.absent)}")
    return "; ".join(parts)


def _list(names: list[str]) -> str:
    """Names are the guests' owners' text."""
    return ", ".join(repr(name) for name in sorted(names))
