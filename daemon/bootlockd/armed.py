"""Proves, again and again, that libvirt asks our hook: a canary must be refused.

One thread a driver tries one: after each connect to its libvirtd, which may be a new one; after a
change of the hook's files; and every ``daemon.canary_interval``. What came of it is recorded
(``lockdb.proofs``) and shown; a driver that is not armed any more is an error in the log, once.
Nothing here is waited for by the cycle.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bootlockd import canary
from bootlockd.config import Config
from bootlockd.errors import Unreachable
from bootlockd.inotify import Inotify, Mask
from lockdb import proofs
from lockdb.database import open_db

log = logging.getLogger(__name__)

HOOKS = Path("/etc/libvirt/hooks")
#: What decides over a start: the directories that libvirt reads, and the one with decide.sql.
WATCHED = (HOOKS, *(HOOKS / f"{name}.d" for name in ("qemu", "lxc", "libxl")))
SHARE = Path("/usr/share/bootlock")

#: Seconds that files are left alone after a change: an installation changes several.
SETTLE = 0.5
#: Seconds until a driver that gave no proof, or a directory that is missing, is tried again.
RETRY = 15.0

_CHANGES = Mask.MODIFY | Mask.ATTRIB | Mask.CREATE | Mask.DELETE | Mask.MOVED_TO | Mask.MOVED_FROM


@dataclass(frozen=True)
class Standing:
    """The outcome of the last canary at ``uri``. ``proven``: when one was last refused by us."""

    uri: str
    armed: bool
    #: When it was tried.
    at: int
    proven: int
    answer: str


class Armed:
    """Keeps the proofs fresh. ``connected`` may be called from any thread."""

    def __init__(self, config: Config) -> None:
        self._provers = {uri: _Prover(uri, config) for uri in config.libvirt.uris}
        self._files = _HookFiles(self._all_again)

    def start(self) -> None:
        """Begin; the first canary waits for ``connected``. Returns at once."""
        for prover in self._provers.values():
            prover.start()
        self._files.start()

    def stop(self) -> None:
        """End. A canary that is under way ends by itself."""
        self._files.stop()
        for prover in self._provers.values():
            prover.stop()

    def connected(self, uri: str) -> None:
        """A libvirtd answers at ``uri``, perhaps a new one."""
        self._provers[uri].again(connected=True)

    def standing(self) -> list[dict[str, Any]]:
        """The last outcome of each driver that was tried, as plain JSON types."""
        return [asdict(prover.last) for prover in self._provers.values() if prover.last]

    def _all_again(self) -> None:
        for prover in self._provers.values():
            prover.again()


class _Prover:
    """The canaries of one driver. One that never answered is not tried: it is not used here."""

    def __init__(self, uri: str, config: Config) -> None:
        self.last: Standing | None = None
        self._uri = uri
        self._config = config
        self._used = False
        self._stopped = False
        self._due = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name=f"canary {self._uri}", daemon=True).start()

    def stop(self) -> None:
        self._stopped = True
        self._due.set()

    def again(self, *, connected: bool = False) -> None:
        self._used = self._used or connected
        self._due.set()

    def _run(self) -> None:
        wait = float(self._config.daemon.canary_interval)
        while True:
            self._due.wait(wait)
            self._due.clear()
            if self._stopped:
                return
            if self._used:
                wait = self._prove()

    def _prove(self) -> float:
        """Try a canary, tell what came of it; seconds until the next."""
        now = int(time.time())
        interval = float(self._config.daemon.canary_interval)
        try:
            proof = canary.prove(self._uri)
        except Unreachable as error:
            self._tell(Standing(self._uri, False, now, self._proven, f"not proven: {error}"))
            return min(interval, RETRY)
        except Exception as error:
            # This thread must not end in silence.
            log.exception("uri=%s canary", self._uri)
            self._tell(Standing(self._uri, False, now, self._proven, f"not proven: {error!r}"))
            return interval
        proven = now if proof.armed else self._proven
        self._tell(Standing(self._uri, proof.armed, now, proven, proof.answer))
        self._record(proof, now)
        return interval

    @property
    def _proven(self) -> int:
        return self.last.proven if self.last else 0

    def _tell(self, standing: Standing) -> None:
        was, self.last = self.last, standing
        if was and was.armed == standing.armed:
            return
        if standing.armed:
            log.info("uri=%s armed: a canary was refused by our hook", self._uri)
        else:
            log.error(
                "uri=%s NOT ARMED, held instances may start: %s; see 'bootlock doctor'",
                self._uri,
                standing.answer,
            )

    def _record(self, proof: canary.Proof, now: int) -> None:
        try:
            with open_db(self._config.database.path) as lock_db:
                proofs.record(lock_db, self._uri, armed=proof.armed, answer=proof.answer, now=now)
        except Exception as error:
            # This thread must not end in silence.
            log.error("uri=%s the proof is not recorded: %s", self._uri, error)


class _HookFiles:
    """Calls ``changed`` some moments after the hook's files were changed by anybody."""

    def __init__(self, changed: Any, directories: Sequence[Path] = (*WATCHED, SHARE)) -> None:
        self._changed = changed
        self._directories = directories
        self._stop = threading.Event()
        self._touched = threading.Event()
        self._changes = Inotify()

    def start(self) -> None:
        threading.Thread(target=self._watch, name="hooks", daemon=True).start()
        threading.Thread(target=self._settle, name="hooks settle", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()
        self._changes.close()
        self._touched.set()

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                self._note_changes()
            except Exception:
                log.exception("the hook's files are not watched")
                self._stop.wait(RETRY)

    def _note_changes(self) -> None:
        self._watch_what_is_there()
        for change in self._changes:
            if change.mask & (Mask.ISDIR | Mask.IGNORED | Mask.OVERFLOW):
                self._watch_what_is_there()
            self._touched.set()

    def _watch_what_is_there(self) -> None:
        for directory in self._directories:
            try:
                self._changes.watch(directory, _CHANGES | Mask.ONLYDIR)
            except OSError as error:
                # A driver's directory that is missing is no fault: the canary tells.
                log.debug("%s is not watched: %s", directory, error)

    def _settle(self) -> None:
        while not self._stop.is_set():
            if self._touched.wait(RETRY):
                self._stop.wait(SETTLE)
                self._touched.clear()
                self._changed()
            elif not self._stop.is_set():
                # One that was missing may be there now.
                self._watch_what_is_there()
