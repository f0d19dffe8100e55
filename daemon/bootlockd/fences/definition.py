"""definition: a held instance that was undefined, or changed, is defined again as it was.

Root's ``virsh undefine`` asks nobody. So the definition of an instance whose hold blocks ``delete``
or ``define`` is kept in a file of root's own (bootlockd.keptdefinition), and the files beside it,
firmware variables and TPM state, by second names (bootlockd.statefiles). What a permit lets through
is not undone: of an undefine custody ends, a permitted change is kept in place of what was.

Some managers undefine and define again by themselves: Nova at each start, a refused one too. Theirs
are left to them, and defined here at the release if they are missing then; see ``Restore``.

A migration takes a definition along. What ran when it was last seen is defined again only if
libvirt's events, heard without a gap since, told of no migration (bootlockd.departures).
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from bootlockd import (
    custodylinks,
    definitions,
    hostpath,
    hypervisor,
    inodeflags,
    keptdefinition,
    statefiles,
)
from bootlockd.config import Definition, Restore
from bootlockd.definitions import Seen
from bootlockd.departures import departures
from bootlockd.errors import FenceError
from bootlockd.fences.base import Quiet
from bootlockd.keptdefinition import KeptDefinition
from bootlockd.statefiles import TPM_DIRECTORY, Standing, StateFile
from bootlockd.values import Case, Guest, Outcome, Power
from lockdb import definitions as record
from lockdb import disks, permits
from lockdb.database import LockDB, open_db
from lockdb.enforcements import State
from lockdb.errors import DatabaseError
from lockdb.values import Hold, Operation

log = logging.getLogger(__name__)

NAME = "definition"

#: Seconds after which what failed is tried again.
RETRY = 15

#: Seconds until it counts that no migration was heard of: an answer may be ahead of its event.
SETTLING = 1.0

#: How often within ``HOUR`` an instance is defined again at once. From then on the time between two
#: doubles, up to ``LONGEST``: whoever changes it again and again is not to be kept busy by us.
AT_ONCE = 5
HOUR = 3600.0
LONGEST = 600.0

#: By a permit for one of these the instance may go.
_GOING = {Operation.DELETE, Operation.MIGRATE}
#: By a permit for one of these its definition may become another.
_CHANGING = {Operation.DEFINE, Operation.ATTACH, Operation.REVERT, Operation.MIGRATE}
#: While one of these is permitted a manager may undefine and define it for that.
_STARTING = {Operation.START, Operation.RESTORE}


class Finding(StrEnum):
    """What is found, or what came of it: the rows' details, which are this fence's memory."""

    NOTHING = "no definition"
    TRANSIENT = "it is transient: there is no definition that could be kept"
    KEPT = "its definition is kept"
    RUNS = "its definition is kept while it is active"
    AWAY = "its definition is kept; it is not defined here, and is to be at its release"
    OTHER = "its definition is kept; the one in libvirt is its manager's"
    WAITS = "its definition is kept; nothing is put back while its start is permitted"
    GIVEN_UP = "it was undefined, which was permitted"
    LEFT = "it migrated, and its definition with it"
    NEW = "its definition is not kept"
    CHANGED = "its definition was changed"
    REMOVED = "it was undefined"
    SETTLING = "it ran when it was last seen, and is not defined here any more"
    UNSURE = "it ran when it was last seen, and is not defined here: it may have migrated"


#: What is wrong with firmware variables or TPM state, from the worst on.
_PROBLEMS = {
    Standing.REMOVED: "firmware variables or TPM state were removed",
    Standing.REPLACED: "firmware variables or TPM state were replaced",
    Standing.NEW: "firmware variables or TPM state have no second name",
}

_PROVEN = {Finding.KEPT, Finding.RUNS, Finding.AWAY, Finding.OTHER, Finding.WAITS}
_NOT_HERE = {Finding.NOTHING, Finding.TRANSIENT, Finding.GIVEN_UP, Finding.LEFT}


class _Entry(Protocol):
    """A function of lockdb.definitions."""

    def __call__(self, lock_db: LockDB, instance: str, *, now: int, **facts: str | int) -> None:
        """Append it to the journal."""


@dataclass(frozen=True)
class _Sight:
    """What is kept, and what libvirt has."""

    kept: KeptDefinition | None
    seen: Seen | None
    files: Sequence[StateFile]


class DefinitionFence(Quiet):
    """Keeps definitions, and puts them back."""

    name = NAME

    def __init__(
        self,
        settings: Definition,
        directory: Path,
        database: Path,
        tpm_directory: Path = TPM_DIRECTORY,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._database = database
        self._tpm_directory = tpm_directory
        self._memory = threading.Lock()
        #: By instance: when it was defined again, by the clock that nobody sets.
        self._restored: dict[str, deque[float]] = {}
        #: By instance: the time of hearing in which it was last seen active.
        self._heard: dict[str, int | None] = {}
        #: By instance: since when one that was active is missing.
        self._missing: dict[str, float] = {}

    def asks(self, hold: Hold) -> bool:
        """It says that the instance may not be deleted, or not changed."""
        is_on = self._settings.restore is not Restore.OFF
        return is_on and not hold.blocked.isdisjoint({Operation.DELETE, Operation.DEFINE})

    def wanted(self, case: Case) -> bool:
        """With a permit too: what it lets through is noted, and the rest is kept."""
        return any(self.asks(hold) for hold in case.holds)

    def reaches(self, case: Case) -> bool:
        """It is known here, or was."""
        return case.guest is not None or os.path.lexists(self._path(case))

    def verify(self, case: Case) -> Outcome:
        """Whether what is kept is what libvirt has."""
        with self._looking(case) as sight:
            return self._outcome(case, self._find(case, sight), sight)

    def apply(self, case: Case) -> Outcome:
        """Keep it, or define it as it was kept."""
        with self._looking(case) as sight:
            finding = self._find(case, sight)
            is_new = finding is Finding.NEW and self._keep(case, sight.kept)
            if finding in {Finding.REMOVED, Finding.CHANGED} and sight.kept:
                self._restore(case, sight.kept, sight.seen, finding)
                guest = hypervisor.observe([sight.kept.uri], case.instance)
                case = replace(case, guest=guest)
        with self._looking(case, is_new=is_new) as sight:
            after = self._keep_files(case, sight)
            finding = self._find(case, after)
            if finding in {Finding.GIVEN_UP, Finding.LEFT} and after.kept:
                self._end(case, after.kept, finding, leave=finding is Finding.LEFT)
            return self._outcome(case, finding, after)

    def lift(self, case: Case) -> Outcome:
        """End custody; of one that is missing by defining it as it was."""
        # What other holds let through is no matter: it is missing since this one forbade it.
        case = replace(case, holds=())
        with self._looking(case) as sight:
            kept = sight.kept
            if kept is None:
                statefiles.end(case.instance, self._directory)
                return Outcome(State.LIFTED)
            finding = self._find(case, sight)
            if finding is Finding.SETTLING:
                return Outcome(State.PENDING, finding, case.now + 1)
            if finding is not Finding.GIVEN_UP and sight.seen is not None:
                self._keep_files(case, sight)
            is_missing = sight.seen is None or kept.restoring
            leave = is_missing and self._why_left(case, kept, finding)
            if is_missing and not leave and finding is not Finding.GIVEN_UP:
                self._restore(case, kept, sight.seen, Finding.REMOVED)
            self._end(case, kept, leave or "released", leave=bool(leave))
        where = f"{leave}; how it was is in {str(self._left(case))!r}" if leave else ""
        return Outcome(State.LIFTED, where)

    # -- looking ------------------------------------------------------------------------------

    @contextmanager
    def _looking(self, case: Case, *, is_new: bool = False) -> Iterator[_Sight]:
        """``is_new``: what is kept is of just now, no row tells of it yet."""
        try:
            # What is left of an earlier time is nobody's word on how it is to be.
            is_valid = is_new or _is_remembered(case)
            kept = keptdefinition.read(self._path(case)) if is_valid else None
            seen = definitions.see(case.guest) if case.guest else None
            yield _Sight(kept, seen, self._files(kept) if kept else [])
        except OSError as error:
            raise _failure(error) from error

    def _find(self, case: Case, sight: _Sight) -> Finding:
        if sight.kept is None:
            if sight.seen is not None:
                return Finding.NEW
            is_transient = case.guest is not None and not case.guest.persistent
            return Finding.TRANSIENT if is_transient else Finding.NOTHING
        if sight.kept.restoring:
            return Finding.REMOVED
        if sight.seen is None:
            return self._without(case, sight.kept)
        return self._with(case, sight.kept, sight.seen)

    def _without(self, case: Case, kept: KeptDefinition) -> Finding:
        """It is kept, and libvirt has none."""
        if not _blocks(case, Operation.DELETE) or self._was_permitted(case, kept, _GOING):
            return Finding.GIVEN_UP
        if departures.has_left(case.instance):
            return Finding.LEFT
        if self._at_release(kept):
            return Finding.AWAY
        if case.permits_any(_STARTING):
            return Finding.WAITS
        if case.guest is None and _ran(case):
            return self._gone_while_active(case, kept)
        return Finding.REMOVED

    def _gone_while_active(self, case: Case, kept: KeptDefinition) -> Finding:
        with self._memory:
            then = self._heard.get(case.instance)
            missing_since = self._missing.setdefault(case.instance, time.monotonic())
        if then is None or then != departures.hearing(kept.uri):
            # A migration may have been missed.
            return Finding.UNSURE
        settles = time.monotonic() < missing_since + SETTLING
        return Finding.SETTLING if settles else Finding.REMOVED

    def _with(self, case: Case, kept: KeptDefinition, seen: Seen) -> Finding:
        """It is kept, and libvirt has one."""
        is_active = case.guest is not None and case.guest.is_active
        with self._memory:
            self._missing.pop(case.instance, None)
            if is_active:
                self._heard[case.instance] = departures.hearing(kept.uri)
        is_same = (seen.document, seen.autostart) == (kept.document, kept.autostart)
        if not is_same:
            if not _blocks(case, Operation.DEFINE) or self._was_permitted(case, kept, _CHANGING):
                return Finding.NEW
            if self._at_release(kept):
                return Finding.OTHER
            return Finding.WAITS if case.permits_any(_STARTING) else Finding.CHANGED
        names = tuple(snapshot.name for snapshot in kept.snapshots)
        if (seen.snapshots, seen.current_snapshot) != (names, kept.current_snapshot):
            return Finding.NEW
        return Finding.RUNS if is_active else Finding.KEPT

    def _was_permitted(self, case: Case, kept: KeptDefinition, operations: set[Operation]) -> bool:
        """A permit for one of them was in force since it was last proven."""
        if case.permits_any(operations):
            return True
        proven = [
            row.at
            for (_, fence), row in case.rows.items()
            if fence == NAME and row.state is State.ENFORCED
        ]
        since = max([kept.kept_at, *proven])
        try:
            with open_db(self._database, read_only=True) as lock_db:
                known = permits.history(lock_db, instance=case.instance)
        except DatabaseError as error:
            raise FenceError(f"its permits can't be read: {error}", error.hint) from error
        return any(
            permit.operation in operations
            and permit.granted_at <= case.now
            and min(permit.until, permit.revoked_at or permit.until) > since
            for permit in known
        )

    def _at_release(self, kept: KeptDefinition) -> bool:
        if self._settings.restore is Restore.AUTO:
            return definitions.is_novas(kept.document)
        return self._settings.restore is not Restore.AT_ONCE

    def _why_left(self, case: Case, kept: KeptDefinition, finding: Finding) -> str:
        """Why one that is missing is not defined here at its release; empty: it is."""
        if finding in {Finding.LEFT, Finding.UNSURE}:
            return finding
        if self._settings.restore is Restore.OFF:
            return "it is not defined here"
        if self._at_release(kept) and (missing := _absent_disk(kept.document)):
            return f"it is not defined here, and {missing}"
        return ""

    def _outcome(self, case: Case, finding: Finding, sight: _Sight) -> Outcome:
        if finding in _NOT_HERE:
            return Outcome(State.NOT_HERE, "" if finding is Finding.NOTHING else finding)
        again = case.now + RETRY
        if finding in _PROVEN:
            for standing, problem in _PROBLEMS.items():
                wrong = [file for file in sight.files if file.standing is standing]
                if wrong and sight.seen:
                    names = statefiles.described(wrong)
                    return Outcome(State.FAILED, f"{finding}; {problem}: {names}", again)
            return Outcome(State.ENFORCED, finding)
        if finding is Finding.SETTLING:
            return Outcome(State.PENDING, finding, case.now + 1)
        if finding is Finding.UNSURE:
            hint = "define it from 'bootlock show INSTANCE --xml --secrets', or permit delete"
            return Outcome(State.FAILED, f"{finding}; {hint}", again)
        return Outcome(State.FAILED, finding, again)

    # -- doing --------------------------------------------------------------------------------

    def _keep(self, case: Case, before: KeptDefinition | None) -> bool:
        """Keep what libvirt has; whether there still was anything."""
        kept = definitions.take(case.guest, case.now) if case.guest else None
        if kept is None:
            return False
        custodylinks.make_private(self._directory)
        if before is None or before.nvram != kept.nvram:
            # Of another file, or left of an earlier hold.
            statefiles.end(case.instance, self._directory)
        keptdefinition.write(self._path(case), kept)
        why = "changed" if before else "held"
        log.info("instance=%s %s: %s", case.instance, Finding.KEPT, why)
        self._journal(case, kept, record.kept, why=why, snapshots=len(kept.snapshots))
        return True

    def _restore(
        self, case: Case, kept: KeptDefinition, before: Seen | None, finding: Finding
    ) -> None:
        self._check_turn(case)
        # What of it is missing after a power cut was not removed by anybody.
        keptdefinition.write(self._path(case), replace(kept, restoring=True))
        for file in self._files(kept):
            if file.standing is Standing.REMOVED:
                statefiles.put_back(file)
        definitions.define(kept)
        with self._memory:
            self._restored.setdefault(case.instance, deque()).append(time.monotonic())
        # What is there now may be another's again: it is kept only if it says the same as before.
        if before and before.versions != kept.versions and (new := _in_new_words(kept, before)):
            self._journal(case, new, record.kept, why="libvirt writes it otherwise")
            kept = new
        else:
            log.warning("instance=%s %s: it is defined as it was", case.instance, finding)
            self._journal(case, kept, record.restored, what=finding)
        # Last: what was cut short before this is done, and told, again.
        keptdefinition.write(self._path(case), replace(kept, restoring=False))

    def _check_turn(self, case: Case) -> None:
        """Raises FenceError while it is too early to define it once more."""
        now = time.monotonic()
        with self._memory:
            times = self._restored.get(case.instance, deque())
            while times and now - times[0] > HOUR:
                times.popleft()
            count, last = len(times), max(times, default=now)
        wait = min(LONGEST, 2.0 ** (count - AT_ONCE)) if count >= AT_ONCE else 0.0
        if now < last + wait:
            raise FenceError(
                f"it was defined again {count} times within an hour, and is not as it was again",
                "find out who does it; 'bootlock permit --op define', or delete, lets him",
            )

    def _keep_files(self, case: Case, sight: _Sight) -> _Sight:
        """Of a definition that is here: give files their second names, or their own ones again."""
        if sight.kept is None or sight.seen is None:
            return sight
        is_active = case.guest is not None and case.guest.is_active
        # A start may have put others in their place.
        ran = is_active or _ran(case) or self._was_permitted(case, sight.kept, _STARTING)
        for file in sight.files:
            if file.standing is Standing.NEW or (file.standing is Standing.REPLACED and ran):
                statefiles.keep(file)
            elif file.standing is Standing.REMOVED:
                statefiles.put_back(file)
                what = f"removed: {str(file.path)!r}"
                log.warning("instance=%s %s; put back", case.instance, what)
                self._journal(case, sight.kept, record.restored, what=what)
        return replace(sight, files=self._files(sight.kept))

    def _files(self, kept: KeptDefinition) -> list[StateFile]:
        tpms = self._tpm_directory
        return statefiles.find(kept.instance, kept.nvram, self._directory, tpms)

    def _end(self, case: Case, kept: KeptDefinition, why: str, *, leave: bool) -> None:
        self._journal(case, kept, record.ended, why=why)
        path = self._path(case)
        if leave:
            path.replace(self._left(case))
        else:
            path.unlink(missing_ok=True)
            statefiles.end(case.instance, self._directory)
        with self._memory:
            self._restored.pop(case.instance, None)
            self._heard.pop(case.instance, None)
            self._missing.pop(case.instance, None)
        log.info("instance=%s its definition is kept no more: %s", case.instance, why)

    def _journal(self, case: Case, kept: KeptDefinition, write: _Entry, **facts: str | int) -> None:
        """What was done stands, also where it can't be recorded: the log has it."""
        try:
            with open_db(self._database) as lock_db:
                about = {"name": kept.name, "uri": kept.uri, "sha256": kept.sha256}
                write(lock_db, case.instance, now=case.now, **about, **facts)
        except DatabaseError as error:
            log.error("instance=%s this is not in the journal: %s", case.instance, error)

    def _path(self, case: Case) -> Path:
        return keptdefinition.path_for(self._directory, case.instance)

    def _left(self, case: Case) -> Path:
        return self._directory / f"{case.instance}.left"


def _blocks(case: Case, operation: Operation) -> bool:
    """With no hold left, as at a release, what the last one blocked is not known: it did."""
    return not case.holds or any(operation in hold.blocked for hold in case.holds)


def _is_remembered(case: Case) -> bool:
    """There is a row by which it has been kept since, without an end."""
    ended = {State.LIFTED, State.NOT_HERE}
    return any(fence == NAME and row.state not in ended for (_, fence), row in case.rows.items())


def _ran(case: Case) -> bool:
    """It was active when it was last seen here."""
    remembered = {Finding.RUNS, Finding.SETTLING, Finding.UNSURE}
    return any(
        fence == NAME and row.detail.partition(";")[0] in remembered
        for (_, fence), row in case.rows.items()
    )


def _as_kept(kept: KeptDefinition) -> Guest:
    """For questions about it, where libvirt did not know it a moment ago."""
    return Guest(kept.uri, kept.name, kept.instance, Power.OFF, None, True, False)


def _in_new_words(kept: KeptDefinition, before: Seen) -> KeptDefinition | None:
    """How another version of libvirt has it, if to define it again changed nothing."""
    after = definitions.take(_as_kept(kept), kept.kept_at)
    if after and (before.document, before.autostart) == (after.document, kept.autostart):
        return after
    return None


def _absent_disk(document: str) -> str:
    """Which disk is not here, and on this host alone; empty: all are. Raises OSError.

    A manager may have taken the instance to another host, and its disks with it.
    """
    for key in sorted(disks.keys_of(document)):
        kind, _, path = key.partition(":")
        path = hostpath.reachable(path)
        if kind != "path" or not os.path.exists(path):
            return f"{key!r} is no file here"
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            is_device = stat.S_ISBLK(os.fstat(descriptor).st_mode)
            if not is_device and inodeflags.is_immutable(descriptor) is None:
                # NFS and the like have no such flag.
                return f"{key!r} may be another host's as well"
        finally:
            os.close(descriptor)
    return ""


def _failure(error: OSError) -> FenceError:
    mends = {
        errno.EXDEV: "firmware variables, TPM state and [custody] directory must be under one "
        "mount of one file system",
        errno.ENOSPC: "make room in the file system of [custody] directory",
        errno.EROFS: "the daemon may not write there: see ReadWritePaths= of its unit",
    }
    return FenceError(f"its definition: {error}", mends.get(error.errno or 0, "see the log"))
