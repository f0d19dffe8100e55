"""A Watcher in a process of its own, used as if it were here.

In the daemon's own process its threads would wait for Python's lock whenever another thread
computes or parses: a kill that takes 0.3 ms took 120 ms and more then, and guests ran. The process
gets orders and gives answers over one socket, one at a time, and sends findings over another. It
ends when the daemon does, in whatever way: its socket closes.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bootlockd import realtime
from bootlockd.errors import FenceError
from bootlockd.offenders import Finding, Offender
from bootlockd.qemus import FileId
from bootlockd.watcher import Watcher

log = logging.getLogger(__name__)

#: Seconds that an answer may take: nothing that is asked for waits, so this is a defect's bound.
_ANSWER_LIMIT = 30.0
#: Seconds after which its threads hand Python's lock on; Python's own 5 ms are much of a guest's
#: first 30.
_SWITCH = 0.0002

#: With the daemon's own search path: installed, it has one that a plain Python doesn't.
_BEGIN = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); " + (
    "from bootlockd.watchprocess import serve; serve(*sys.argv[2:])"
)


class WatchProcess:
    """As Watcher. ``ended`` is called, from a thread, when the process ends by itself."""

    def __init__(
        self,
        pid_directory: Path,
        kill: bool,
        found: Callable[[Finding], None],
        ended: Callable[[], None],
    ) -> None:
        self._settings = (str(pid_directory), "kill" if kill else "report")
        self._found = found
        self._ended = ended
        self._asking = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._orders: Connection | None = None
        self._reader: threading.Thread | None = None

    @property
    def runs(self) -> bool:
        """There is a process, as far as known; ``prove`` tells whether it watches."""
        return self._orders is not None

    def start(self) -> None:
        """Start it. Raises OSError if it can't watch."""
        orders, its_orders = socket.socketpair()
        findings, its_findings = socket.socketpair()
        with its_orders, its_findings:
            numbers = (its_orders.fileno(), its_findings.fileno())
            arguments = [json.dumps(sys.path), *map(str, numbers), *self._settings]
            self._process = realtime.make(
                lambda: subprocess.Popen(
                    [sys.executable, "-I", "-c", _BEGIN, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=numbers,
                    cwd="/",
                    # A terminal's Ctrl-C is for the daemon.
                    start_new_session=True,
                )
            )
        self._orders = Connection(orders.detach())
        self._reader = threading.Thread(
            target=self._read,
            args=[Connection(findings.detach()), self._process],
            name="watch process",
            daemon=True,
        )
        self._reader.start()
        try:
            self._ask("start")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it, and pass on what it has found. Can be called again, and before ``start``."""
        with self._asking:
            self._hang_up()
        process, reader = self._process, self._reader
        if process is None or reader is None:
            return
        try:
            process.wait(_ANSWER_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if reader is not threading.current_thread():
            reader.join(_ANSWER_LIMIT)

    def keep(self, instances: frozenset[str]) -> None:
        """See Watcher."""
        self._ask("keep", instances)

    def guard(self, instance: str, disks: Mapping[FileId, Path]) -> None:
        """See Watcher."""
        self._ask("guard", instance, dict(disks))

    def unguard(self, instance: str) -> None:
        """See Watcher."""
        if self.runs:
            self._ask("unguard", instance)

    def disks_of(self, instance: str) -> Mapping[FileId, Path] | None:
        """See Watcher."""
        disks: Mapping[FileId, Path] | None = self._ask("disks_of", instance)
        return disks

    def offenders(self) -> list[Offender]:
        """See Watcher."""
        offenders: list[Offender] = self._ask("offenders")
        return offenders

    def settle(self, offender: Offender) -> None:
        """See Watcher."""
        self._ask("settle", offender)

    def end(self, offender: Offender) -> None:
        """See Watcher."""
        self._ask("end", offender)

    def tell(self, finding: Finding) -> None:
        """See Watcher."""
        self._ask("tell", finding)

    def prove(self) -> None:
        """See Watcher."""
        self._ask("prove")

    def _ask(self, order: str, *arguments: Any) -> Any:
        with self._asking:
            if self._orders is None:
                raise FenceError("processes are not watched: the watch has ended")
            try:
                self._orders.send((order, arguments))
                if not self._orders.poll(_ANSWER_LIMIT):
                    raise TimeoutError("no answer")
                failure, answer = self._orders.recv()
            except (OSError, EOFError) as error:
                # What is answered next would be the answer to this.
                self._hang_up()
                raise FenceError(f"processes are not watched: the watch: {error!r}") from error
        if failure is OSError:
            raise OSError(*answer)
        if failure is FenceError:
            raise FenceError(*answer)
        return answer

    def _pass_on(self, finding: Finding) -> None:
        try:
            self._found(finding)
        except Exception:
            # The next one must be passed on nevertheless.
            log.exception("not passed on: %s", finding)

    def _hang_up(self) -> None:
        if self._orders is not None:
            self._orders.close()
            self._orders = None

    def _read(self, findings: Connection, process: subprocess.Popen[bytes]) -> None:
        with findings, suppress(EOFError, OSError):
            while True:
                self._pass_on(findings.recv())
        status = process.wait()
        with self._asking:
            by_itself = self._orders is not None and self._process is process
            if by_itself:
                self._hang_up()
        if by_itself:
            log.error("the watch has ended with status %d", status)
            self._ended()


def serve(orders: str, findings: str, pid_directory: str, action: str) -> None:
    """In the process: do what is ordered until nobody is there to order any more."""
    realtime.keep()
    # The daemon's end is told by its socket; until then this goes on.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    sys.setswitchinterval(_SWITCH)
    sending = Connection(int(findings))
    watcher = Watcher(
        Path(pid_directory), action == "kill", sending.send, lambda _why: os._exit(os.EX_SOFTWARE)
    )
    with Connection(int(orders)) as connection, suppress(EOFError, OSError):
        while True:
            order, arguments = connection.recv()
            connection.send(_answer(watcher, order, arguments))
    watcher.stop()


def _answer(watcher: Watcher, order: str, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    try:
        return None, getattr(watcher, order)(*arguments)
    except FenceError as error:
        return FenceError, (str(error), error.hint)
    except OSError as error:
        return OSError, (error.errno, error.strerror)
