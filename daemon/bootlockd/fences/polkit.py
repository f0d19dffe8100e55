"""polkit: who is not root can't do to a held instance what its holds block.

libvirt's access driver, where an admin turned it on, asks polkit about each call of each client.
This fence keeps one file of polkit's rules (see ``polkitrules``) in step with the lock database:
at every change of a hold or a permit, and when somebody else has changed the file. It is the same
file for all instances and holds those that are elsewhere too: they may arrive tomorrow.

It stays as it is when the daemon ends, and when the database can't be read. A hold that is gone
from the database without a trace stays in it, as everywhere.

Root is not held back, and the daemon is root: what a boot lock orders is done whatever a state lock
blocks. The row of an instance says that it is enforced only if the file is ours and has what its
holds order, polkit was seen to run it, and libvirt asks polkit.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from bootlockd import accessdriver, polkitproof, polkitrules
from bootlockd.config import Polkit
from bootlockd.errors import FenceError
from bootlockd.feeder import DatabaseFeeder
from bootlockd.inotify import Inotify, Mask
from bootlockd.polkitrules import Entry, Privileged
from bootlockd.values import Case, Outcome, Wake
from lockdb import disks, holds, permits
from lockdb.database import open_db
from lockdb.durable import replace_file
from lockdb.enforcements import State
from lockdb.errors import DatabaseError
from lockdb.values import Hold, Permit
from lockdb.when import iso

log = logging.getLogger(__name__)

IN_RULES = "refused to all but root"
NO_POLKIT = "polkit is not installed here: nothing but starts is refused"
NOT_ASKED = "libvirt does not ask polkit, nothing but starts is refused"

#: Seconds after which what failed is tried again, and a directory that was lost looked for.
RETRY = 15

#: Seconds that polkit has to read a new file, and between two questions whether it has.
LOADED_IN = 5.0
PAUSE = 0.01
#: Seconds for which its answer is believed: that it runs the rules, and that it does not.
PROVEN_FOR = 20.0
UNASKED_FOR = 5.0

_CHANGES = Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE | Mask.ATTRIB

T = TypeVar("T", Hold, Permit)

#: What tells one state of a file from another.
Look = tuple[int, ...]


class PolkitFence:
    """Keeps one rules file."""

    name = "polkit"

    def __init__(
        self,
        settings: Polkit,
        database: Path,
        why_off: Callable[[], str] = accessdriver.why_off,
        why_not_run: Callable[[str], str] = polkitproof.why_not,
    ) -> None:
        self._enabled = settings.enabled
        self._file = settings.rules_file
        self._privileged = Privileged(settings.privileged_users, settings.privileged_groups)
        self._database = database
        self._why_off = why_off
        self._why_not_run = why_not_run
        # One at a time makes the file: jobs of all instances, and the watchers.
        self._lock = threading.RLock()
        self._asking = threading.Lock()
        #: By id: every hold read and not seen to end since.
        self._holds: dict[str, Hold] = {}
        self._entries: dict[str, Entry] = {}
        self._text = ""
        self._look: Look | None = None
        self._put_back: int | None = None
        #: The proof that polkit was asked for last, its answer, and until when that is believed.
        self._answer = ("", "", 0.0)
        self._wake: Callable[[Wake], None] = lambda _wake: None
        self._feeder: DatabaseFeeder | None = None
        self._changes: Inotify | None = None
        self._stopped = threading.Event()

    # -- as every fence -----------------------------------------------------------------------

    def asks(self, _hold: Hold) -> bool:
        """Each hold blocks something."""
        return self._enabled

    def wanted(self, case: Case) -> bool:
        """What is permitted the rules know by themselves."""
        return self._enabled and bool(case.holds)

    def reaches(self, case: Case) -> bool:
        """There is a domain. The rules name it in any case."""
        return case.guest is not None

    def apply(self, case: Case) -> Outcome:
        """Make the rules anew from all that is held."""
        if not self._is_here():
            return Outcome(State.NOT_HERE, NO_POLKIT)
        with self._lock:
            if not self._says(case) or self._fault():
                self._read(case.now)
                self._write()
        return self.verify(case)

    def verify(self, case: Case) -> Outcome:
        """Look whether the file is ours and says this, and whether libvirt asks."""
        if not self._is_here():
            return Outcome(State.NOT_HERE, NO_POLKIT)
        with self._lock:
            fault = self._fault()
            if not fault and not self._says(case):
                fault = "the rules are not those that its holds order"
            put_back, text = self._put_back, self._text
        if fault:
            return Outcome(State.FAILED, fault, case.now + RETRY)
        off = self._why_off()
        if off:
            return Outcome(State.NOT_HERE, f"{NOT_ASKED}: {off}")
        if case.guest is None:
            return Outcome(State.NOT_HERE)
        fault = self._unproven(text)
        if fault:
            return Outcome(State.FAILED, fault, case.now + RETRY)
        when = f"; the rules were put back at {iso(put_back)}" if put_back else ""
        return Outcome(State.ENFORCED, IN_RULES + when)

    def lift(self, case: Case) -> Outcome:
        """Make the rules anew, without it."""
        with self._lock:
            if not self._enabled:
                self._remove()
            elif self._is_here():
                self._read(case.now)
                self._write()
            else:
                self._entries = {}
            if case.instance in self._entries:
                raise FenceError(f"the rules name {case.instance} still: its holds did not end")
            text = self._text
        if text and self._is_here() and not self._why_off():
            # Who released it may start it at once. If polkit does not answer, nobody may anything.
            self._unproven(text)
        return Outcome(State.LIFTED)

    def prepare(self, _case: Case) -> Outcome | None:
        """Nothing to wait for: ``start`` makes the rules, and those of before are there."""

    def start(self, wake: Callable[[Wake], None]) -> None:
        """Watch the database and the file; each is looked at once to begin with."""
        self._wake = wake
        if not self._enabled:
            try:
                self._remove()
            except FenceError as error:
                log.error("polkit's rules are still there: %s", error)
            return
        self._changes = Inotify()
        threading.Thread(target=self._guard, name="polkit-rules", daemon=True).start()
        self._feeder = DatabaseFeeder(self._database, self._changed)
        self._feeder.start()

    def follow(self, _cases: Sequence[Case]) -> None:
        """The database is followed by ourselves."""

    def stop(self) -> None:
        """Watch no longer. The rules stay."""
        self._stopped.set()
        if self._feeder:
            self._feeder.stop()
        if self._changes:
            self._changes.close()

    def _unproven(self, text: str) -> str:
        """Why it is not proven that polkit runs these rules. Of many instances one asks for all."""
        proof = polkitrules.proof_of(text)
        with self._asking:
            asked, answer, until = self._answer
            if asked == proof and time.monotonic() < until:
                return answer
            deadline = time.monotonic() + (LOADED_IN if asked != proof else 0)
            while (answer := self._why_not_run(proof)) and time.monotonic() < deadline:
                time.sleep(PAUSE)
            believed = UNASKED_FOR if answer else PROVEN_FOR
            self._answer = (proof, answer, time.monotonic() + believed)
            return answer

    # -- watching -----------------------------------------------------------------------------

    def _changed(self, _instances: Sequence[str]) -> None:
        """Something of the database's orders is new."""
        try:
            with self._lock:
                if self._is_here():
                    self._read(int(time.time()))
                    self._write()
        except FenceError as error:
            # The jobs of the instances say so in their rows, and try again.
            log.error("polkit's rules stay as they were: %s", error)
        except Exception:
            # A defect must not end the thread that is the only one to hear of changes.
            log.exception("polkit's rules stay as they were")

    def _guard(self) -> None:
        """Notice what others do to the file; again and again where its directory comes and goes."""
        assert self._changes
        while not self._stopped.is_set():
            try:
                self._changes.watch(self._file.parent, _CHANGES | Mask.ONLYDIR)
                self._mend()
                for change in self._changes:
                    lost = change.mask & (Mask.OVERFLOW | Mask.IGNORED)
                    if lost or change.name == self._file.name:
                        self._mend()
                    if change.mask & Mask.IGNORED:
                        break
            except OSError as error:
                log.debug("%s is not watched: %s", self._file.parent, error)
            except Exception:
                log.exception("%s is watched on", self._file.parent)
            self._stopped.wait(RETRY)

    def _mend(self) -> None:
        with self._lock:
            fault = self._fault()
            # Before the first reading there is nothing that it could be compared with.
            if not self._text or not fault or not self._is_here():
                return
            log.error("%s; it is put back", fault)
            try:
                self._write()
            except FenceError as error:
                log.error("polkit's rules are not put back: %s", error)
            self._put_back = int(time.time())
        self._wake(Wake("polkit's rules were changed"))

    # -- the rules ----------------------------------------------------------------------------

    def _is_here(self) -> bool:
        return self._file.parent.is_dir()

    def _says(self, case: Case) -> bool:
        """Whether the rules have of this instance what is known of it now."""
        ordered = polkitrules.entry_of(case.holds, case.permits, case.disks)
        entry = self._entries.get(case.instance)
        if entry is None:
            return not ordered.holds
        return (entry.holds, entry.permits) == (ordered.holds, ordered.permits) and (
            ordered.disks <= entry.disks
        )

    def _read(self, now: int) -> None:
        """Take what the database says now. Raises FenceError: then the rules stay."""
        try:
            with open_db(self._database, read_only=True) as lock_db, lock_db.read():
                current = {hold.id: hold for hold in holds.active(lock_db, now=now)}
                vanished = {
                    hold_id: hold
                    for hold_id, hold in self._holds.items()
                    if hold_id not in current and not holds.exists(lock_db, hold_id)
                }
                granted = permits.active(lock_db, now=now)
                owned = disks.by_instance(lock_db)
        except DatabaseError as error:
            raise FenceError(str(error), error.hint) from error
        self._holds = current | vanished
        held, permitted = _by_instance(self._holds.values()), _by_instance(granted)
        self._entries = {
            instance: polkitrules.entry_of(
                found, permitted.get(instance, ()), owned.get(instance, ())
            )
            for instance, found in held.items()
        }

    def _write(self) -> None:
        """Put the rules in place, whole, unless they are there. Raises FenceError."""
        try:
            text = polkitrules.text(self._entries, self._privileged)
            if text != self._text or self._fault():
                self._look = self._replace(text)
                self._text = text
        except (OSError, ValueError) as error:
            hint = "if polkit was installed after bootlockd was started, restart bootlockd"
            raise FenceError(f"{self._file}: {error}", hint) from error

    def _replace(self, text: str) -> Look:
        # polkit reads a file whose name ends in .rules at once, and drops one with half a rule.
        draft = self._file.with_name(f".{self._file.name}.new")
        return _look(replace_file(self._file, text.encode("ascii"), 0o644, draft=draft))

    def _fault(self) -> str:
        """What is wrong with the file; "" if it is as we left it."""
        if not self._text:
            return "the rules were not made yet, those of before are in force"
        try:
            status = self._file.lstat()
            look = _look(status)
            if look == self._look:
                return ""
            if not stat.S_ISREG(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
                return f"{self._file} can be changed by others than root"
            if self._file.read_bytes() != self._text.encode():
                return f"{self._file} was changed by another"
        except OSError as error:
            return f"{self._file}: {error.strerror}"
        # Touched, or written to with what it was.
        self._look = look
        return ""

    def _remove(self) -> None:
        """Leave nothing. Raises FenceError."""
        self._entries, self._text = {}, ""
        try:
            self._file.unlink(missing_ok=True)
        except OSError as error:
            raise FenceError(f"{self._file}: {error.strerror}", "remove it by hand") from error


def _by_instance(found: Iterable[T]) -> dict[str, list[T]]:
    sorted_in: dict[str, list[T]] = {}
    for one in found:
        sorted_in.setdefault(one.instance, []).append(one)
    return sorted_in


def _look(status: os.stat_result) -> Look:
    # Not the time of the inode's change: a rename moves that, and so does a backup.
    return (
        status.st_dev,
        status.st_ino,
        status.st_mode,
        status.st_uid,
        status.st_size,
        status.st_mtime_ns,
    )
