"""The control socket: a line of JSON in, lines of JSON out. ``ask`` is the CLI's side of it.

    {"op": "status"}                                one answer: health, as bootlock status shows it
    {"op": "wake"}                                  read the holds now; answered when they are read
    {"op": "enforce", "instance": UUID, "hold": ID} an answer with the hold's rows when they change
                                                    and each second, the last with "final": true;
                                                    "known": whether the daemon has that hold,
                                                    "treated": no job is under way for it
    {"op": "settle", "instance": UUID}              the same with all rows of the instance, once
                                                    what was released or permitted is undone

A question that is none, or can't be answered, is answered with {"error": TEXT}.

Root may ask anything, members of the group bootlock for the status alone; nobody else can connect.
Only root's questions make the daemon do something.
"""

from __future__ import annotations

import errno
import grp
import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootlockd.errors import BootlockdError, Unreachable
from lockdb import enforcements, holds
from lockdb.database import open_db
from lockdb.enforcements import Enforcement
from lockdb.errors import DatabaseError, InvalidValue
from lockdb.values import parse_instance

if TYPE_CHECKING:
    # Who only asks loads neither libvirt nor the rest of the daemon.
    from bootlockd.cycle import Cycle

log = logging.getLogger(__name__)

#: Whose members may read the database, and ask how the daemon is.
GROUP = "bootlock"
#: How many of them may ask at once: root's questions must not wait behind theirs.
OTHERS_MAX = 4
#: Longest line that is read; nobody needs more.
LINE_MAX = 4096
#: Seconds that the other side may take to say or to read a line.
LINE_LIMIT = 10.0
#: Seconds between two looks at a hold's rows while somebody waits for them.
POLL = 0.05
#: Seconds until connections are taken again after that failed.
RETRY = 1.0
#: Seconds between two answers to who waits, so that both sides see that the other is there.
BEAT = 1.0


def ask(path: Path, question: dict[str, Any], timeout: float) -> Iterator[dict[str, Any]]:
    """Put a question to the daemon. Raises Unreachable: none, or no answer in ``timeout`` s."""
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(timeout)
            link.connect(str(path))
            link.sendall(json.dumps(question).encode() + b"\n")
            with link.makefile("r", encoding="utf-8") as lines:
                for line in lines:
                    yield json.loads(line)
    except (OSError, ValueError) as error:
        raise Unreachable(f"{path}: {error}", "is bootlockd running?") from error


class ControlSocket:
    """Serves the socket, a thread a connection; the cycle answers."""

    def __init__(self, path: Path, cycle: Cycle, status: Callable[[Cycle], dict[str, Any]]) -> None:
        self._path = path
        self._cycle = cycle
        self._status = status
        self._listener = socket.socket(socket.AF_UNIX)
        self._others = threading.BoundedSemaphore(OTHERS_MAX)
        self._stopping = threading.Event()

    def start(self) -> None:
        """Listen. Raises BootlockdError."""
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._make_room()
            self._listener.bind(str(self._path))
            # Nobody can connect before it listens.
            self._path.chmod(0o600)
            self._let_group_in()
            self._listener.listen()
        except OSError as error:
            self._listener.close()
            raise BootlockdError(f"{self._path}: {error}", "see daemon.control_socket") from error
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        self._stopping.set()
        # Closing alone would leave the thread that accepts where it is.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _make_room(self) -> None:
        """Remove what a killed daemon left behind. Raises OSError if one is running."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._path))
            except (FileNotFoundError, ConnectionRefusedError):
                self._path.unlink(missing_ok=True)
                return
        raise OSError(errno.EADDRINUSE, "another bootlockd answers there")

    def _let_group_in(self) -> None:
        try:
            gid = grp.getgrnam(GROUP).gr_gid
            # Where its directory hands down the group there is nothing to do, nor may we.
            if self._path.stat().st_gid != gid:
                os.chown(self._path, -1, gid)
            self._path.chmod(0o660)
        except KeyError:
            log.debug("there is no group %s: only root may ask", GROUP)
        except OSError as error:
            # Holds come first: they are enforced for root alone just as well.
            log.error("only root may ask for the status, metrics can not: %s", error)

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError as error:
                if self._stopping.is_set():
                    return
                # Short of descriptors, say: whoever asks next must be answered.
                log.error("control: %s", error)
                self._stopping.wait(RETRY)
                continue
            is_root = _user(link) == 0
            if not is_root and not self._others.acquire(blocking=False):
                link.close()
                continue
            serve = self._serve if is_root else self._serve_other
            try:
                threading.Thread(target=serve, args=[link], daemon=True).start()
            except RuntimeError as error:
                log.error("control: %s", error)
                link.close()
                if not is_root:
                    self._others.release()

    def _serve_other(self, link: socket.socket) -> None:
        try:
            self._serve(link, is_root=False)
        finally:
            self._others.release()

    def _serve(self, link: socket.socket, *, is_root: bool = True) -> None:
        with link:
            try:
                link.settimeout(LINE_LIMIT)
                line = link.makefile("rb").readline(LINE_MAX)
                for answer in self._answers(_parsed(line), is_root):
                    link.sendall(json.dumps(answer).encode() + b"\n")
            except OSError as error:
                # The other side has gone.
                log.debug("control: %s", error)

    def _answers(self, question: Any, is_root: bool) -> Iterator[dict[str, Any]]:
        op = question.get("op") if isinstance(question, dict) else None
        try:
            if op == "status":
                yield self._cycle.ask(self._status)
            elif not is_root:
                yield {"error": "only root may ask for more than the status"}
            elif op == "wake":
                yield self._cycle.ask(_read)
            elif op == "enforce":
                yield from self._follow(_instance(question), str(question.get("hold")))
            elif op == "settle":
                yield from self._follow(_instance(question), None)
            else:
                yield {"error": "no such op"}
        except (DatabaseError, InvalidValue) as error:
            yield {"error": str(error)}

    def _follow(self, instance: str, hold: str | None) -> Iterator[dict[str, Any]]:
        self._cycle.ask(_read)
        self._cycle.ask(lambda cycle: cycle.treat(instance))
        said: dict[str, Any] = {}
        said_at = 0.0
        while not said.get("final"):
            treated = self._cycle.ask(lambda cycle: cycle.is_treated(instance))
            known, rows = self._rows(instance, hold)
            final = treated and all(row.state.is_final for row in rows)
            answer = {
                "known": known,
                "rows": [row.as_dict() for row in rows],
                "treated": treated,
                "final": final,
            }
            if answer != said or time.monotonic() > said_at + BEAT:
                yield answer
                said, said_at = answer, time.monotonic()
            if not final:
                time.sleep(POLL)

    def _rows(self, instance: str, hold: str | None) -> tuple[bool, list[Enforcement]]:
        """Whether the hold is known here, and its rows; without a hold all of the instance."""
        with open_db(self._cycle.config.database.path, read_only=True) as lock_db:
            if hold is None:
                return True, enforcements.of_instance(lock_db, instance)
            return holds.exists(lock_db, hold), enforcements.of_hold(lock_db, hold)


def _user(link: socket.socket) -> int:
    """Who connected, as the kernel saw it then (SO_PEERCRED in unix(7)): pid, uid, gid."""
    credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _instance(question: dict[str, Any]) -> str:
    return parse_instance(str(question.get("instance")))


def _read(cycle: Cycle) -> dict[str, Any]:
    cycle.read_holds()
    return {"read": not cycle.health.database_error}
