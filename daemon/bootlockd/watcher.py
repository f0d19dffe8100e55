"""Sees each QEMU that somebody starts past libvirt with something held, and ends it.

Three threads at real-time priority, so that a busy host does not make them late: one reads every
exec from the kernel and judges the new program at once; one hears of each opening of a held disk,
by whatever name, and has the third look at all QEMUs. What was there before its instance was held
is left to the fence, which knows what the holds order for it. A fourth, ordinary thread passes on
what was found.

Ending is exact: a pidfd is opened first, the process is looked at, then the pidfd must still be
that of a living process, and the signal goes to it. A recycled PID can't be hit.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from queue import SimpleQueue

from bootlockd import realtime
from bootlockd.errors import FenceError
from bootlockd.inotify import Inotify, Mask
from bootlockd.offenders import Finding, Offender, has_ended, lives, offender_of, opened
from bootlockd.proc_events import EventsLost, Exec, ProcEvents
from bootlockd.qemus import FileId, Held, Qemus, start_of

log = logging.getLogger(__name__)

#: Seconds after a held disk was opened at which QEMUs are looked at again: the opener gets its
#: descriptor only after the event was sent.
_LOOK_AGAIN = (0.003, 0.03)
#: Seconds that a probe's exec may take to be seen, and the threads to end.
_PROBE_LIMIT = 5.0
_END_LIMIT = 5.0
#: Seconds for which a proof is as good as a new one.
_PROOF_AGE = 1.0
_PROBE = "/bin/true"


class Watcher:
    """Watches from ``start`` to ``stop``. ``kill``: end offenders, or only report them.

    ``found`` and ``failed`` are called from its threads: something was found; it watches no more.
    """

    def __init__(
        self,
        pid_directory: Path,
        kill: bool,
        found: Callable[[Finding], None],
        failed: Callable[[str], None] = lambda _why: None,
    ) -> None:
        self._qemus = Qemus(pid_directory)
        self._kill = kill
        self._found = found
        self._failed = failed
        self._held = Held()
        #: Guards changes of what is held; reading needs no lock, the value is replaced as a whole.
        self._lock = threading.Lock()
        #: The last QEMUs that were started, whoever has their numbers now.
        self._recent: deque[int] = deque(maxlen=16)
        #: Processes that were there before what they use was held: left to the caller.
        self._settled: set[tuple[int, int]] = set()
        #: Processes that a finding was passed on about.
        self._told: set[tuple[int, int]] = set()
        self._proving = threading.Lock()
        self._probe = threading.Condition()
        self._probed: set[int] | None = None
        self._proven = float("-inf")
        self._findings: SimpleQueue[Finding | None] = SimpleQueue()
        self._opened = threading.Event()
        self._stopping = threading.Event()
        self._end = -1
        self._events: ProcEvents | None = None
        self._opens: Inotify | None = None
        self._threads: list[threading.Thread] = []
        #: Why it does not watch, or not as it should; empty while all is well.
        self.problem = "not started"

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to watch. Raises OSError if the kernel does not let us."""
        self._stopping.clear()
        self._qemus.warm_up()
        self._opens = Inotify()
        try:
            self._events = ProcEvents()
        except OSError:
            self._opens.close()
            raise
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        self.problem = ""
        loops = {"exec": self._read_execs, "opens": self._read_opens, "look": self._look}
        self._threads = [
            threading.Thread(target=self._urgently, args=[loop], name=f"watch {name}", daemon=True)
            for name, loop in loops.items()
        ]
        for thread in self._threads:
            realtime.make(thread.start)
        self._threads.append(threading.Thread(target=self._pass_on, name="found", daemon=True))
        self._threads[-1].start()

    def stop(self) -> None:
        """End all threads. Can be called again, and before ``start``."""
        if self._events is None or self._opens is None:
            return
        self._stopping.set()
        os.eventfd_write(self._end, 1)
        self._opens.close()
        self._opened.set()
        self._findings.put(None)
        for thread in self._threads:
            thread.join(_END_LIMIT)
        if any(thread.is_alive() for thread in self._threads):
            log.error("the process watch does not end")
            return
        self._events.close()
        os.close(self._end)
        self._events = self._opens = None
        self.problem = self.problem or "stopped"

    # -- what is guarded ----------------------------------------------------------------------

    def disks_of(self, instance: str) -> Mapping[FileId, Path] | None:
        """The disks guarded for an instance; None if it is not guarded at all."""
        held = self._held
        if instance not in held.uuids:
            return None
        return {disk: path for disk, (name, path) in held.disks.items() if name == instance}

    def keep(self, instances: frozenset[str]) -> None:
        """Guard just these, with what disks are known of them. As ``guard``."""
        with self._lock:
            disks = {d: known for d, known in self._held.disks.items() if known[0] in instances}
            self._replace(Held(instances, disks))

    def guard(self, instance: str, disks: Mapping[FileId, Path]) -> None:
        """Guard this one too, with these disks. Raises OSError if one of them can't be watched.

        QEMUs that use them already are left to the caller, who looks afterwards, since one may
        come at this very moment: ``offenders``, ``end``, ``settle``.
        """
        known = self.disks_of(instance) or {}
        for disk, path in disks.items():
            if self._opens and known.get(disk) != path:
                self._opens.watch(path, Mask.OPEN)
        with self._lock:
            others = {d: known for d, known in self._held.disks.items() if known[0] != instance}
            own = {disk: (instance, path) for disk, path in disks.items()}
            self._replace(Held(self._held.uuids | {instance}, others | own))

    def unguard(self, instance: str) -> None:
        """Guard it no more."""
        self.keep(self._held.uuids - {instance})

    def offenders(self) -> list[Offender]:
        """All that there are now; one may be there for several instances."""
        return self._offenders(self._held)

    def settle(self, offender: Offender) -> None:
        """Leave this process alone from now on."""
        self._settled.add(offender.process)

    def prove(self) -> None:
        """Have a process of our own exec, and see it. Raises FenceError if it is not seen."""
        if self.problem:
            raise FenceError(f"processes are not watched: {self.problem}")
        with self._proving:
            if time.monotonic() - self._proven < _PROOF_AGE:
                return
            self._probed = set()
            pid = os.posix_spawn(_PROBE, [_PROBE], {})
            try:
                with self._probe:
                    seen = self._probe.wait_for(lambda: pid in (self._probed or ()), _PROBE_LIMIT)
            finally:
                self._probed = None
                os.waitpid(pid, 0)
            if not seen:
                raise FenceError(
                    f"processes are not watched: an exec of our own was not seen in"
                    f" {_PROBE_LIMIT:g} s",
                    "the daemon must run in the host's own PID and network namespaces",
                )
            self._proven = time.monotonic()

    def _replace(self, held: Held) -> None:
        """With the lock held."""
        old = self._held
        added = Held(
            held.uuids - old.uuids,
            {disk: known for disk, known in held.disks.items() if disk not in old.disks},
        )
        if added.uuids or added.disks:
            # First, so that no thread takes for new what was there. What offended before is not
            # there by right: the threads are about to end it.
            there = {offender.process for offender in self._offenders(added)}
            if there:
                there -= {offender.process for offender in self._offenders(old)}
            self._settled |= there
        self._held = held
        for disk, (_, path) in old.disks.items():
            if disk not in held.disks and self._opens:
                self._opens.unwatch(path)
        for processes in (self._settled, self._told):
            for process in [*processes]:
                if not lives(*process):
                    processes.discard(process)

    # -- the threads --------------------------------------------------------------------------

    def _urgently(self, loop: Callable[[], None]) -> None:
        try:
            realtime.take()
        except OSError as error:
            log.warning("processes are watched without real-time priority: %s", error)
        try:
            loop()
        except Exception as error:
            self.problem = f"{type(error).__name__}: {error}"
            log.exception("the process watch has ended")
            self._failed(self.problem)

    def _read_execs(self) -> None:
        assert self._events
        poll = select.poll()
        poll.register(self._events, select.POLLIN)
        poll.register(self._end, select.POLLIN)
        while not self._stopping.is_set():
            poll.poll()
            try:
                for event in self._events.read():
                    self._executed(event)
            except EventsLost:
                log.warning("process events were lost: looking at all processes")
                self._opened.set()

    def _executed(self, event: Exec) -> None:
        if self._probed is not None:
            with self._probe:
                if self._probed is not None:
                    self._probed.add(event.pid)
                    self._probe.notify_all()
        held = self._held
        if held.uuids and self._qemus.is_qemu(event.pid):
            self._recent.append(event.pid)
            self._judge(event.pid, held, event.at)

    def _read_opens(self) -> None:
        assert self._opens
        for _ in self._opens:
            self._opened.set()

    def _look(self) -> None:
        while not self._stopping.is_set():
            self._opened.wait()
            self._opened.clear()
            self._look_at_all()
            for seconds in _LOOK_AGAIN:
                if not self._opened.wait(seconds):
                    self._look_at_all()

    def _look_at_all(self) -> None:
        held = self._held
        if not held.uuids:
            return
        # The likely ones first: a host may have thousands of processes.
        for pid in chain([*self._recent], self._qemus.all()):
            with suppress(OSError):
                if (pid, start_of(pid)) not in self._settled:
                    self._judge(pid, held, None)

    def _pass_on(self) -> None:
        while (finding := self._findings.get()) is not None:
            try:
                self._found(finding)
            except Exception:
                log.exception("not passed on: %s", finding)

    # -- judging ------------------------------------------------------------------------------

    def end(self, offender: Offender) -> None:
        """Kill this process; it may take a moment until it is gone."""
        with opened(offender.pid) as pidfd:
            if pidfd is not None and lives(*offender.process) and not has_ended(pidfd):
                self._send_kill(offender, pidfd, None)

    def tell(self, finding: Finding) -> None:
        """Pass it on, once for each process."""
        if finding.offender.process not in self._told:
            self._told.add(finding.offender.process)
            self._findings.put(finding)

    def _judge(self, pid: int, held: Held, executed: int | None) -> None:
        with opened(pid) as pidfd:
            offender = next(self._uses(pid, held), None) if pidfd is not None else None
            if pidfd is None or offender is None or has_ended(pidfd):
                return
            if self._kill:
                self._send_kill(offender, pidfd, executed)
            else:
                self.tell(Finding(offender, False))

    def _uses(self, pid: int, held: Held) -> Iterator[Offender]:
        """What this process uses that it may not, if it is a QEMU and not libvirt's."""
        if not self._qemus.is_qemu(pid):
            return
        for match in self._qemus.matches(pid, held):
            try:
                if self._qemus.is_libvirts(pid):
                    return
            except OSError as error:
                # Short of descriptors, say. It is seen again at the next look.
                log.error("pid=%d instance=%s is it libvirt's? %s", pid, match.instance, error)
                return
            if offender := offender_of(pid, match):
                yield offender

    def _send_kill(self, offender: Offender, pidfd: int, executed: int | None) -> None:
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return
        after = None if executed is None else (time.monotonic_ns() - executed) / 1e6
        self.tell(Finding(offender, True, after))

    def _offenders(self, held: Held) -> list[Offender]:
        found: list[Offender] = []
        for pid in self._qemus.all() if held.uuids or held.disks else ():
            with opened(pid) as pidfd:
                offenders = list(self._uses(pid, held)) if pidfd is not None else []
                if pidfd is not None and not has_ended(pidfd):
                    found += offenders
        return found
