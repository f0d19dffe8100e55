"""preserve: the disks of a boot-locked instance that is off can't be removed or written to.

What is done to each, undone when no hold orders it any more:

    its own files      a hard link in a sealed directory (bootlockd.custodylinks), and the
                       immutable flag, which stops root as well (bootlockd.inodeflags)
    its own directory  the flag, where the directory is this instance's alone, as Nova's
                       instances/UUID: Nova renames it, and removes what it can in it
    block devices      read-only
    backing files      the link alone. Others start from them, and libvirt has to be able to give
                       them to QEMU's user

Everything is noted in the database before it is done (lockdb.preserved): killed anywhere, by a
power cut too, this goes on from the note. So each step can be made again, and none before its note.

A permit does not lift it: a start would write to what is to be kept.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from bootlockd import custodylinks, preservable
from bootlockd.digests import Digester, open_content, size_of
from bootlockd.errors import FenceError
from bootlockd.fences.base import Quiet
from bootlockd.namewatch import NameWatch
from bootlockd.preservable import Found, Others, Target
from bootlockd.values import Case, Outcome, Wake, strictest
from lockdb import enforcements, preserved
from lockdb.database import open_db
from lockdb.enforcements import Enforcement, State
from lockdb.errors import DatabaseError
from lockdb.preserved import Preserved, Role, Stage
from lockdb.values import Hold, OnRunning

log = logging.getLogger(__name__)

NAME = "preserve"
ABOUT_TO = "about to preserve its disks"
RUNS_ON = "it runs on, as ordered: its disks are preserved when it is off"
RUNS = "it runs: its disks are preserved when it is off"
RUNS_ANYWAY = "it runs, though its disks are preserved"
NO_DISK = "it has no disk here"

#: Seconds after which disks that were in use are looked at again.
RETRY = 5


class PreserveFence(Quiet):
    """Keeps the disks of instances that are off as they are."""

    name = NAME

    def __init__(self, database: Path, uris: Sequence[str]) -> None:
        self._database = database
        self._uris = tuple(uris)
        self._others = Others(database, self._uris)
        self._digester = Digester(database, self._uris)
        self._names = NameWatch()
        # Two instances may have one file: whose flag it is must not be asked and changed at once.
        self._flags = threading.Lock()

    def start(self, wake: Callable[[Wake], None]) -> None:
        """Begin to take digests, and to watch for names that go."""
        self._names.start(wake)
        self._digester.start(wake)

    def stop(self) -> None:
        """End that. What is preserved stays so."""
        self._digester.stop()
        self._names.stop()

    def asks(self, hold: Hold) -> bool:
        """The provider's, where it says so; none that lets it start, and so write."""
        return hold.preserve and hold.bars_start

    def wanted(self, case: Case) -> bool:
        """With a permit too: it is for a start, and a start would write."""
        return any(self.asks(hold) for hold in case.boot_locks)

    def reaches(self, case: Case) -> bool:
        """It is or was known here. Its disks are not looked at: a hung NFS would hang us all."""
        return case.guest is not None or bool(case.disks)

    def verify(self, case: Case) -> Outcome:
        """Whether everything is, just now, as it is to be."""
        with ExitStack() as stack, _complaining():
            rows = self._rows(case)
            self._watch(case, rows)
            found = preservable.find(case, rows, self._uris, stack, whole=False)
            return self._judged(case, rows, found, self._faults(rows, found))

    def apply(self, case: Case) -> Outcome:
        """Note what is to be done, do it, and look whether it is so."""
        with ExitStack() as stack, _complaining():
            rows = self._rows(case)
            if case.guest and case.guest.is_active:
                return _while_active(case, rows)
            self._put_back(rows, case.now)
            found = preservable.find(case, rows, self._uris, stack, whole=True)
            directories = preservable.find_directories(case, rows, found, self._others, stack)
            pairs = [(self._row(case, one, rows), one) for one in [*found.targets, *directories]]
            self._intend(case, [row for row, _ in pairs if row not in rows])
            undone = _undone([row for row, _ in pairs])
            problems = [why for row, target in pairs if (why := self._keep(row, target))]
            self._confirm([row for row, _ in pairs], case.now)
            self._note_mended(undone, case.now)
            rows = self._rows(case)
            self._watch(case, rows)
            self._digester.hurry()
            return self._judged(case, rows, found, [*problems, *self._faults(rows, found)])

    def prepare(self, case: Case) -> Outcome | None:
        """Have nobody write to devices, which forget that at a boot. Of all else libvirt tells."""
        with _complaining():
            devices = [row for row in self._rows(case) if row.role is Role.DEVICE]
            undone = _undone(devices)
            for row in undone:
                descriptor = _opened_again(row)
                if descriptor is None:
                    continue
                try:
                    Target(row.path, row.role, descriptor, row.inode).set_flag(wanted=True)
                finally:
                    os.close(descriptor)
            self._note_mended(undone, case.now)
        return None

    def lift(self, case: Case) -> Outcome:
        """Give up what was done, and no more; a deleted instance's data stays as a link."""
        with _complaining():
            rows = [row for row in self._rows(case) if row.stands]
            self._watch(case, [])
            # Nothing can be unlinked from a directory before its flag is gone.
            rows.sort(key=lambda row: row.role is not Role.DIRECTORY)
            ended: list[Preserved] = []
            try:
                for row in rows:
                    ended.append(self._undo(row, is_defined=case.guest is not None))
            finally:
                # One that can't be undone now keeps no other.
                self._end(ended, case.now)
        left = [row.link for row in ended if row.stage is Stage.LEFT]
        if not left:
            return Outcome(State.LIFTED)
        log.warning("instance=%s was deleted meanwhile; its data is kept: %s", case.instance, left)
        return Outcome(State.LIFTED, f"it was deleted meanwhile, its data is kept: {_list(left)}")

    # -- looking ------------------------------------------------------------------------------

    def _rows(self, case: Case) -> list[Preserved]:
        with open_db(self._database, read_only=True) as lock_db:
            return preserved.of_instance(lock_db, case.instance)

    def _faults(self, rows: Sequence[Preserved], found: Found) -> list[str]:
        """What is not as the rows say, and disks that no row is about."""
        faults = [fault for row in rows if row.stands for fault in _faults_of(row)]
        noted = {(row.path, row.inode) for row in rows if row.stands}
        return faults + [
            f"not preserved yet: {target.path!r}"
            for target in found.targets
            if (target.path, target.inode) not in noted
        ]

    def _judged(
        self, case: Case, rows: Sequence[Preserved], found: Found, faults: Sequence[str]
    ) -> Outcome:
        standing = [row for row in rows if row.stands]
        problems = [*faults, *(f"NOT PRESERVED: {why}" for why in found.refused)]
        if problems:
            also = f"; preserved: {_summary(standing)}" if standing else ""
            return Outcome(State.FAILED, "; ".join(problems) + also)
        if found.used:
            return Outcome(State.PENDING, f"in use: {_list(found.used)}", case.now + RETRY)
        if not standing:
            return Outcome(State.NOT_HERE, NO_DISK)
        return Outcome(State.ENFORCED, _summary(standing))

    # -- doing --------------------------------------------------------------------------------

    def _row(self, case: Case, target: Target, rows: Sequence[Preserved]) -> Preserved:
        """As it was noted; or, if it never was, what is to be noted."""
        for row in rows:
            if row.stands and (row.path, row.inode) == (target.path, target.inode):
                return row
        had_flag = target.has_flag() and not self._is_anothers(case.instance, target)
        link = ""
        if target.role in {Role.DISK, Role.BACKING} and not had_flag:
            link = custodylinks.name_for(target.path, case.instance, target.inode)
        size = None if target.role is Role.DIRECTORY else size_of(target.descriptor)
        return Preserved(
            instance=case.instance,
            path=target.path,
            role=target.role,
            inode=target.inode,
            link=link,
            had_flag=had_flag,
            size=size,
        )

    def _is_anothers(self, instance: str, target: Target) -> bool:
        """Whether another preserved instance has this too, and the flag is ours for its sake."""
        with open_db(self._database, read_only=True) as lock_db:
            rows = preserved.standing(lock_db)
        return any(
            row.instance != instance and not row.had_flag and _is_of(row, target) for row in rows
        )

    def _intend(self, case: Case, rows: Sequence[Preserved]) -> None:
        """Durably, with a row of ours: by that one a later release knows that there is to undo."""
        if not rows:
            return
        orders = [
            Enforcement(hold.id, NAME, case.instance, State.PENDING, ABOUT_TO, case.now, case.now)
            for hold in case.holds
            if self.asks(hold)
        ]
        with open_db(self._database) as lock_db, lock_db.write():
            enforcements.record(lock_db, orders)
            preserved.intend(lock_db, rows, now=case.now)

    def _confirm(self, rows: Sequence[Preserved], now: int) -> None:
        """Those of which it is seen."""
        done = [row for row in rows if row.stage is Stage.INTENDED and not [*_faults_of(row)]]
        if done:
            with open_db(self._database) as lock_db:
                preserved.confirm(lock_db, done, now=now)

    def _note_mended(self, undone: Mapping[Preserved, list[str]], now: int) -> None:
        """Somebody undid it, past the flag, or a boot; it is so again."""
        for row, found in undone.items():
            if not [*_faults_of(row)]:
                with open_db(self._database) as lock_db:
                    preserved.restored(lock_db, row, now=now, found=found)

    def _end(self, rows: Sequence[Preserved], now: int) -> None:
        if rows:
            with open_db(self._database) as lock_db:
                preserved.end(lock_db, rows, now=now)

    def _watch(self, case: Case, rows: Sequence[Preserved]) -> None:
        self._names.watch(case.instance, [row.path for row in rows if row.stands])

    def _keep(self, row: Preserved, target: Target) -> str:
        """Do what was noted; why not, if that fails."""
        try:
            with self._flags:
                if row.link and not custodylinks.is_file(row.link, row.inode):
                    with target.linkable():
                        custodylinks.make(target.descriptor, row.link)
                elif row.link:
                    custodylinks.seal(row.link)
                target.set_flag(wanted=True)
        except (OSError, FenceError) as error:
            if row.role is Role.DISK:
                # The flag is worth more than the link.
                target.set_flag(wanted=True)
            return f"{row.path!r}: {error}"
        return ""

    def _put_back(self, rows: Sequence[Preserved], now: int) -> None:
        """Give files that lost their names, past the flag, those names again."""
        for row in rows:
            if not row.stands or not row.link or os.path.lexists(row.path):
                continue
            if not custodylinks.is_file(row.link, row.inode):
                continue
            try:
                self._link_again(row, rows)
            except OSError as error:
                log.error("instance=%s %r is not put back: %s", row.instance, row.path, error)
                continue
            with open_db(self._database) as lock_db:
                preserved.restored(lock_db, row, now=now, found=["it was removed"])
            log.warning("instance=%s %r was removed: put back", row.instance, row.path)

    def _link_again(self, row: Preserved, rows: Sequence[Preserved]) -> None:
        """By its own name, into a directory that is immutable for its sake as well."""
        with ExitStack() as stack:
            target = Target(row.path, row.role, open_content(row), row.inode)
            stack.callback(os.close, target.descriptor)
            immutable = [target]
            for one in _directories_of(row, rows):
                descriptor = _opened_again(one)
                if descriptor is not None:
                    stack.callback(os.close, descriptor)
                    immutable.append(Target(one.path, one.role, descriptor, one.inode))
            stack.enter_context(self._flags)
            with ExitStack() as unflagged:
                for one_target in immutable:
                    unflagged.enter_context(one_target.linkable())
                custodylinks.give_name(target.descriptor, row.path)
            target.set_flag(wanted=True)

    def _undo(self, row: Preserved, *, is_defined: bool) -> Preserved:
        """Undo it; the row as it is to be noted then. Raises OSError."""
        descriptor = _opened_again(row)
        if descriptor is None and row.role is Role.DISK and not row.had_flag and not row.discard:
            # Its flag may still be set, where it is: nobody could remove it as it was.
            raise FenceError(
                f"neither {row.path!r} nor {row.link!r} is there",
                "mount its file system; if it is gone for good, place a hold with --preserve and "
                "release it with --discard",
            )
        if descriptor is not None:
            try:
                target = Target(row.path, row.role, descriptor, row.inode)
                with self._flags:
                    return self._undo_open(row, target, is_defined=is_defined)
            finally:
                os.close(descriptor)
        with self._flags:
            return self._without_link(row, is_defined=is_defined)

    def _undo_open(self, row: Preserved, target: Target, *, is_defined: bool) -> Preserved:
        if row.had_flag:
            return self._without_link(row, is_defined=is_defined)
        if self._is_anothers(row.instance, target):
            with target.linkable():
                return self._without_link(row, is_defined=is_defined)
        target.set_flag(wanted=False)
        return self._without_link(row, is_defined=is_defined)

    def _without_link(self, row: Preserved, *, is_defined: bool) -> Preserved:
        """Remove its second name, unless it is to be left: to whoever may then remove it."""
        if not row.link:
            return row
        directory = os.path.dirname(row.link)
        with open_db(self._database, read_only=True) as lock_db:
            sealed = preserved.are_linked_in(lock_db, directory, but=row.instance)
        is_linked = custodylinks.is_file(row.link, row.inode)
        lives = is_defined and custodylinks.is_file(row.path, row.inode)
        if is_linked and not lives and not row.discard:
            custodylinks.seal(row.link, wanted=sealed)
            return replace(row, stage=Stage.LEFT)
        if is_linked or not os.path.lexists(row.link):
            # Where there is no link any more, its directory may be left of an interrupted undo.
            custodylinks.remove(row.link, sealed=sealed)
        return row


def _undone(rows: Sequence[Preserved]) -> dict[Preserved, list[str]]:
    """What is not as it was made, of each that is kept."""
    kept = [row for row in rows if row.stage is Stage.KEPT]
    return {row: faults for row in kept if (faults := [*_faults_of(row)])}


def _directories_of(row: Preserved, rows: Sequence[Preserved]) -> Iterator[Preserved]:
    """The one that it lies in, if its flag is ours."""
    for one in rows:
        is_its = one.role is Role.DIRECTORY and one.path == os.path.dirname(row.path)
        if is_its and one.stands and not one.had_flag:
            yield one


def _while_active(case: Case, rows: Sequence[Preserved]) -> Outcome:
    if any(row.stands for row in rows):
        return Outcome(State.FAILED, RUNS_ANYWAY, case.now + RETRY)
    if strictest(case.boot_locks) in {OnRunning.LEAVE, OnRunning.PAUSE}:
        return Outcome(State.NOT_HERE, RUNS_ON)
    return Outcome(State.PENDING, RUNS, case.now + RETRY)


def _faults_of(row: Preserved) -> Iterator[str]:
    """What is not as this row says."""
    descriptor = _opened_again(row, by_link=False)
    if descriptor is None:
        kept = row.link and custodylinks.is_file(row.link, row.inode)
        where = f", it is kept as {row.link!r}" if kept else ""
        yield f"{row.path!r} is gone{where}"
        return
    try:
        target = Target(row.path, row.role, descriptor, row.inode)
        if row.role is not Role.BACKING and not target.has_flag():
            yield f"{row.path!r} can be written to"
    finally:
        os.close(descriptor)
    if row.link and not custodylinks.is_file(row.link, row.inode):
        yield f"{row.path!r} has no second name {row.link!r}"
    elif row.link and not custodylinks.is_sealed(row.link):
        yield f"{row.link!r}, its second name, can be removed"


def _opened_again(row: Preserved, *, by_link: bool = True) -> int | None:
    """What the row is about; None if it is gone."""
    try:
        if row.role is Role.DIRECTORY:
            descriptor = custodylinks.open_directory(row.path)
            if os.fstat(descriptor).st_ino == row.inode:
                return descriptor
            os.close(descriptor)
            return None
        return open_content(row if by_link else replace(row, link=""))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_of(row: Preserved, target: Target) -> bool:
    """Whether that row sets the flag of this very file, directory or device."""
    if row.inode != target.inode or row.role is Role.BACKING:
        return False
    descriptor = _opened_again(row)
    if descriptor is None:
        return False
    try:
        ours, theirs = os.fstat(target.descriptor), os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if target.role is Role.DEVICE:
        return ours.st_rdev == theirs.st_rdev
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def _summary(rows: Sequence[Preserved]) -> str:
    counts = Counter(row.role for row in rows)
    words = {
        Role.DISK: ("disk", "disks"),
        Role.DEVICE: ("device", "devices"),
        Role.BACKING: ("backing file by a link", "backing files by links"),
        Role.DIRECTORY: ("directory", "directories"),
    }
    parts = [f"{counts[role]} {words[role][counts[role] > 1]}" for role in words if counts[role]]
    missing = any(row.has_content and row.sha256 is None for row in rows)
    return ", ".join(parts) + ("; digests under way" if missing else "; digests taken")


@contextmanager
def _complaining() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        name = f"{error.filename!r}" if error.filename else "its disks"
        hint = "see docs/fences/preservation.md"
        raise FenceError(f"{name}: {error.strerror}", hint) from error
    except DatabaseError as error:
        # Nothing is done that can't be noted first, and what is done stays.
        raise FenceError(str(error), error.hint) from error


def _list(names: Sequence[str]) -> str:
    """Names are the guests' owners' text."""
    return ", ".join(repr(name) for name in sorted(names))
