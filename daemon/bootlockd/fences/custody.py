"""custody: the saved RAM of a boot-locked instance is not lost.

libvirt unlinks a managed save before it asks the hook (``start --force-boot``), and on request
(``managedsave-remove``, ``undefine --managed-save``, Nova after a refused resume). So the image
gets a second name, a hard link in a directory that only root may enter, and from there its first
name back when that was taken.

RAM must never be restored onto disks that were written to after it was saved. When its instance
ran since, the RAM is set aside, and not put back: known from the disks where they are files, and
otherwise from having seen it run.

A hard link needs both directories under one mount of one file system.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from bootlockd import custodylinks, hostpath, hypervisor, savedimage
from bootlockd.errors import FenceError
from bootlockd.savedimage import SavedImage
from bootlockd.savewatch import SavedImageWatcher
from bootlockd.values import Case, Guest, Outcome, Power, Wake
from lockdb.durable import sync_directory
from lockdb.enforcements import State
from lockdb.values import Hold, Kind

log = logging.getLogger(__name__)

#: Where libvirt's system daemon keeps managed saves of QEMU guests; it can't be configured.
SAVE_DIRECTORY = Path("/var/lib/libvirt/qemu/save")

#: Seconds after which what changed under our hands is looked at again.
RETRY = 15

#: Seconds after the release of an undefined instance until its RAM goes. Nova undefines a domain
#: and defines it again within moments; and whoever releases it waits for this.
FAREWELL = 30


class Finding(StrEnum):
    """What is found, or what came of it: the rows' details, which are this fence's memory."""

    NOTHING = "no saved RAM"
    KEPT = "its saved RAM is in custody"
    TAKEN = "its managed save was taken away; its RAM is in custody"
    AWAY = "its saved RAM is in custody, its domain is not defined here"
    RUNS = "its saved RAM is in custody while it is active"
    NEW = "its managed save is not in custody"
    USED = "its saved RAM was used, or given up, by a permitted start"
    SPENT = "it ran since its RAM was saved: the RAM is set aside, and not put back"
    RAN = "it ran since its RAM was saved"
    RENAMED = "libvirt restores its RAM only under the name that it had when it was saved"
    UNREADABLE = "its managed save is not a complete image of this instance"
    LOST = "its saved RAM is gone, and its copy in custody too"
    LEAVING = "released; its domain is not defined here, its RAM goes soon"


_KEPT = {Finding.KEPT, Finding.AWAY, Finding.RUNS}


@dataclass(frozen=True)
class _Sight:
    """The image where libvirt looks for it, and the one in custody."""

    place: Path | None
    in_place: SavedImage | None
    kept: SavedImage | None


class CustodyFence:
    """Keeps hard links of managed saves."""

    name = "custody"

    def __init__(
        self, directory: Path, uris: Sequence[str], save_directory: Path = SAVE_DIRECTORY
    ) -> None:
        self._directory = directory
        self._uris = [uri for uri in uris if _is_qemu(uri)]
        self._save_directory = save_directory
        self._watcher = SavedImageWatcher(save_directory, directory)

    def start(self, wake: Callable[[Wake], None]) -> None:
        """Watch both directories."""
        self._watcher.start(wake)

    def prepare(self, _case: Case) -> Outcome | None:
        """Nothing: where its image lies is known from its domain's name."""

    def follow(self, _cases: Sequence[Case]) -> None:
        """The directories may have come, or been made anew."""
        self._watcher.watch()

    def stop(self) -> None:
        """Stop watching. The links stay."""
        self._watcher.stop()

    def asks(self, hold: Hold) -> bool:
        """A state-locked instance may come back by itself, and so use its RAM."""
        return hold.kind is Kind.BOOT_LOCK

    def wanted(self, case: Case) -> bool:
        """With a permit too: custody hinders no start, and gives the RAM to start with."""
        return bool(case.boot_locks)

    def reaches(self, case: Case) -> bool:
        """There is saved RAM, in its place or in custody."""
        place = self._place(case.guest)
        links = (self._link(case), self._aside(case))
        return any(path is not None and os.path.lexists(path) for path in (place, *links))

    def verify(self, case: Case) -> Outcome:
        """Whether what libvirt would restore is what is in custody."""
        with self._looking(case) as sight:
            return _outcome(self._find(case, sight), case, sight)

    def apply(self, case: Case) -> Outcome:
        """Take into custody, put back, or set aside."""
        with self._looking(case) as sight:
            finding = self._find(case, sight)
            if finding is Finding.NEW and sight.in_place:
                self._keep(case, sight.in_place)
            elif finding is Finding.TAKEN and sight.kept and sight.place:
                self._put_back(case, sight.kept, sight.place)
            elif finding is Finding.RAN:
                self._link(case).replace(self._aside(case))
                log.warning("instance=%s %s: %s", case.instance, Finding.SPENT, self._aside(case))
            elif finding is Finding.USED:
                self._end(case, finding)
                return Outcome(State.NOT_HERE, finding)
            else:
                return _outcome(finding, case, sight)
        return self.verify(case)

    def lift(self, case: Case) -> Outcome:
        """Give the image its own name back, then end custody. RAM that ran since goes."""
        with self._looking(case) as sight:
            finding = self._find(case, sight)
            if finding is Finding.AWAY and not self._may_go(case):
                return Outcome(State.PENDING, Finding.LEAVING, case.now + FAREWELL)
            if finding in {Finding.RENAMED, Finding.UNREADABLE} and sight.kept:
                return _outcome(finding, case, sight)
            if finding is Finding.TAKEN and sight.kept and sight.place:
                self._put_back(case, sight.kept, sight.place)
            self._end(case, finding)
        return Outcome(State.LIFTED, "its RAM is its managed save" if _is_there(finding) else "")

    # -- looking ------------------------------------------------------------------------------

    @contextmanager
    def _looking(self, case: Case) -> Iterator[_Sight]:
        place = self._place(case.guest)
        try:
            with savedimage.opened(self._link(case)) as kept:
                if place is None:
                    yield _Sight(None, None, kept)
                    return
                with savedimage.opened(place) as image:
                    ours = image if image and image.uuid == case.instance else None
                    yield _Sight(place, ours, kept)
        except OSError as error:
            raise _failure(error) from error

    def _find(self, case: Case, sight: _Sight) -> Finding:
        guest, kept = case.guest, sight.kept
        if sight.in_place:
            same = kept is not None and kept.inode == sight.in_place.inode
            return Finding.KEPT if same else Finding.NEW
        if kept is None:
            return self._without_any(case, sight)
        if guest is None:
            return Finding.AWAY
        if guest.is_active:
            return _while_active(case, guest)
        if _written_since(case, kept.saved_at):
            return Finding.USED if case.is_permitted else Finding.RAN
        if guest.name != kept.name:
            return Finding.RENAMED
        return Finding.UNREADABLE if _occupied(sight) else Finding.TAKEN

    def _without_any(self, case: Case, sight: _Sight) -> Finding:
        is_active = bool(case.guest and case.guest.is_active)
        if self._aside(case).exists():
            return Finding.SPENT
        # While it is active, an incomplete image is one that is being written.
        if _occupied(sight) and not is_active:
            return Finding.UNREADABLE
        had = any(
            row.state is State.ENFORCED and row.detail in _KEPT
            for (_, fence), row in case.rows.items()
            if fence == self.name
        )
        return Finding.LOST if had and not is_active else Finding.NOTHING

    def _may_go(self, case: Case) -> bool:
        """Its domain is, after the time to come back, proven not to be there."""
        said = any(
            row.detail == Finding.LEAVING and row.since + FAREWELL <= case.now
            for (_, fence), row in case.rows.items()
            if fence == self.name
        )
        # Asked of QEMU's driver itself: another one's answer hides that this one is down.
        return said and hypervisor.observe(self._uris, case.instance) is None

    # -- doing --------------------------------------------------------------------------------

    def _keep(self, case: Case, image: SavedImage) -> None:
        custodylinks.make_private(self._directory)
        self._watcher.watch()
        # libvirt does not: a power cut must not leave a link to half of the RAM.
        os.fsync(image.descriptor)
        new = self._directory / f".{case.instance}.new"
        new.unlink(missing_ok=True)
        _link(image, new)
        new.replace(self._link(case))
        sync_directory(self._directory)
        log.info("instance=%s %s", case.instance, Finding.KEPT)

    def _put_back(self, case: Case, kept: SavedImage, place: Path) -> None:
        _link(kept, place)
        sync_directory(place.parent)
        # A start that was under way has discarded the image on purpose, and must not find it again
        # as its next one. libvirt answers only after it; a later start finds the image.
        now = hypervisor.observe([case.guest.uri], case.instance) if case.guest else None
        if now and now.is_active:
            with savedimage.opened(place) as image:
                if image and image.inode == kept.inode:
                    place.unlink()
            return
        log.warning("instance=%s %s: put back", case.instance, Finding.TAKEN)

    def _end(self, case: Case, finding: Finding) -> None:
        links = (self._link(case), self._aside(case), self._directory / f".{case.instance}.new")
        there = [link for link in links if os.path.lexists(link)]
        if there:
            what = "its RAM is its managed save" if _is_there(finding) else "RAM removed"
            log.warning("instance=%s custody ends: %s; %s", case.instance, finding, what)
        for link in there:
            link.unlink(missing_ok=True)

    def _link(self, case: Case) -> Path:
        return self._directory / f"{case.instance}{savedimage.SUFFIX}"

    def _aside(self, case: Case) -> Path:
        return self._directory / f"{case.instance}.ran"

    def _place(self, guest: Guest | None) -> Path | None:
        if guest is None or not _is_qemu(guest.uri):
            return None
        return savedimage.path_of(self._save_directory, guest.name)


def _is_there(finding: Finding) -> bool:
    """libvirt will restore it."""
    return finding in {Finding.KEPT, Finding.TAKEN, Finding.NEW}


def _is_qemu(uri: str) -> bool:
    return urlsplit(uri).scheme.partition("+")[0] == "qemu"


def _outcome(finding: Finding, case: Case, sight: _Sight) -> Outcome:
    if finding in _KEPT:
        return Outcome(State.ENFORCED, finding)
    guest = case.guest
    if guest and guest.has_managed_save and not _is_qemu(guest.uri):
        return Outcome(State.FAILED, f"{guest.uri}: only QEMU's managed saves can be kept")
    if finding is Finding.NOTHING:
        return Outcome(State.NOT_HERE, finding)
    names = (sight.kept.name if sight.kept else "", guest.name if guest else "")
    mends = {
        Finding.RENAMED: f"{names[0]!r}, not {names[1]!r}: rename the domain back",
        Finding.UNREADABLE: f"move {str(sight.place)!r} away",
        Finding.SPENT: "release the hold to remove it",
    }
    detail = f"{finding}; {mends[finding]}" if finding in mends else finding
    return Outcome(State.FAILED, detail, case.now + RETRY)


def _while_active(case: Case, guest: Guest) -> Finding:
    # PAUSED is also how a start begins that may fail still.
    if guest.power is Power.PAUSED:
        return Finding.RUNS
    if case.is_permitted:
        return Finding.USED
    # What files can tell is asked of them when it is off.
    return Finding.RUNS if _files(case) is not None else Finding.RAN


def _written_since(case: Case, saved_at: int) -> bool:
    return any(os.stat(path).st_mtime_ns > saved_at for path in _files(case) or ())


def _files(case: Case) -> list[str] | None:
    """Its disks, if all are files, whose times tell when they were written to; else None."""
    found = []
    for key in case.disks:
        kind, _, path = key.partition(":")
        if kind != "path":
            return None
        path = hostpath.reachable(path)
        if os.path.isfile(path):
            found.append(path)
        elif os.path.lexists(path):
            return None
    return found


def _occupied(sight: _Sight) -> bool:
    return sight.place is not None and sight.in_place is None and os.path.lexists(sight.place)


def _link(image: SavedImage, path: Path) -> None:
    """Give the file that was looked at, whatever its name is by now, a further name."""
    directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # With a directory given Python calls linkat(), which follows /proc's link to the file.
        source = f"/proc/self/fd/{image.descriptor}"
        os.link(source, path, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.close(directory)


def _failure(error: OSError) -> FenceError:
    mends = {
        errno.EXDEV: "managed saves and [custody] directory must be under one mount of one file "
        "system; in a unit, name a directory above both in ReadWritePaths=",
        errno.EPERM: "the file system of the managed saves has no hard links: move it to one that "
        "has",
        errno.ENOSPC: "make room in the file system of [custody] directory",
        errno.EROFS: "the daemon may not write there: see ReadWritePaths= of its unit",
    }
    return FenceError(f"its saved RAM: {error}", mends.get(error.errno or 0, "see the log"))
