"""The real bootlockd inside a private host: starting it, ending it in any way, asking it.

What the tests need to know of holds is read from the database and from libvirt, not from the
daemon's own words.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import libvirt

from bootlockd import control, hypervisor
from bootlockd.errors import Unreachable
from daemonhost import NOTE_PID, PID_FILE, PROGRAM, SETTINGS
from live.guests import remove
from lockdb import enforcements, holds
from lockdb.database import LockDB, open_db
from lockdb.enforcements import Enforcement, State
from lockdb.values import CANARY_PREFIX, Hold, NewHold, OnRunning
from privatehost import PATIENCE, PrivateHost, domain_xml, wait_until

_SOCKET = "/run/bootlock/control.sock"


class Daemon:
    """One bootlockd; a context manager that ends it. ``program``: what to run in its place."""

    def __init__(
        self, host: PrivateHost, *, settings: str = SETTINGS, program: Sequence[str | Path] = ()
    ) -> None:
        self.host = host
        self._settings = settings
        self._program = list(program) or [PROGRAM]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end("KILL")

    def start(self) -> None:
        """Start it and wait until its control socket answers."""
        self.launch()
        wait_until(self._answers_or_raises, "bootlockd answers")

    def launch(self) -> None:
        """Start it, without waiting for anything."""
        self.host.outside("/etc/bootlock/bootlock.toml").write_text(self._settings)
        with self._log.open("a") as log:
            self._process = self.host.popen(
                ["sh", "-c", NOTE_PID, "sh", *self._program],
                stdout=log.fileno(),
                stderr=log.fileno(),
            )

    def end(self, how: str) -> None:
        """Send it a signal, by the signal's name, and wait until it is gone."""
        if self._process is not None and self._process.poll() is None:
            self.signal(how)
            # nsenter stops itself when its child was stopped.
            self._process.send_signal(signal.SIGCONT)
        if self._process is not None:
            self._process.wait(PATIENCE)
            self._process = None

    def signal(self, how: str) -> None:
        """Send it a signal, by the signal's name."""
        pid = self.host.outside(PID_FILE).read_text().strip()
        self.host.run(["kill", "-s", how, pid], check=False)

    @property
    def runs(self) -> bool:
        """It was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process, by the PID it has outside."""
        inside = self.host.outside(PID_FILE).read_text().strip()
        for pid in self.host.processes():
            if _pid_inside(pid) == inside:
                return pid
        raise ProcessLookupError(inside)

    @property
    def log(self) -> str:
        """All that it has logged, this one and those before it on this host."""
        return self._log.read_text(errors="replace")

    def status(self) -> dict[str, Any]:
        """Its answer to ``status``. Raises Unreachable."""
        return self._ask({"op": "status"})

    def wake(self) -> None:
        """Have it read the holds, as the CLI does after each change. Raises Unreachable."""
        self._ask({"op": "wake"})

    def settle(self, instance: str) -> None:
        """Have it look at an instance, and wait until that is done. Raises Unreachable."""
        question = {"op": "settle", "instance": instance}
        for _answer in control.ask(self.host.outside(_SOCKET), question, timeout=PATIENCE):
            pass

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        socket = self.host.outside(_SOCKET)
        for answer in control.ask(socket, question, timeout=PATIENCE):
            return answer
        raise Unreachable("no answer")

    def _answers_or_raises(self) -> bool:
        if not self.runs:
            raise RuntimeError(f"bootlockd has ended: {self.log[-3000:]}")
        try:
            return bool(self.status())
        except Unreachable:
            return False

    @property
    def _log(self) -> Path:
        return self.host.root / "bootlockd.log"


def _pid_inside(pid: int) -> str:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return next(line.split()[-1] for line in status.splitlines() if line.startswith("NSpid:"))


# -- holds ----------------------------------------------------------------------------------------


def database(host: PrivateHost) -> Path:
    return host.outside("/var/lib/bootlock/lock.db")


def place(
    host: PrivateHost, uuid: str, order: OnRunning = OnRunning.DESTROY, *, grace: int = 60
) -> Hold:
    """Place a boot lock, durably; tells the daemon nothing."""
    with open_db(database(host)) as lock_db:
        return place_in(lock_db, uuid, order, grace=grace)


def place_in(lock_db: LockDB, uuid: str, order: OnRunning, *, grace: int = 60) -> Hold:
    new = NewHold(uuid, "unpaid", "a test", on_running=order, grace=grace)
    return holds.place(lock_db, new, now=int(time.time()))


def release(host: PrivateHost, hold: Hold) -> None:
    """Release it, durably; tells the daemon nothing."""
    with open_db(database(host)) as lock_db:
        holds.release(lock_db, hold.id, reason="paid", by="a test", now=int(time.time()))


def row_of(host: PrivateHost, hold: Hold, fence: str = "power") -> Enforcement | None:
    """What a fence did last for this hold."""
    with open_db(database(host), read_only=True) as lock_db:
        found = [row for row in enforcements.of_hold(lock_db, hold.id) if row.fence == fence]
    return found[0] if found else None


def is_enforced(host: PrivateHost, hold: Hold, detail: str = "") -> bool:
    """The power fence says so, with a detail that begins as given."""
    row = row_of(host, hold)
    return bool(row and row.state is State.ENFORCED and row.detail.startswith(detail))


def wait_enforced(host: PrivateHost, hold: Hold, detail: str = "") -> None:
    wait_until(lambda: is_enforced(host, hold, detail), f"{hold.on_running} is enforced {detail}")


# -- guests ---------------------------------------------------------------------------------------


def start_guest(
    host: PrivateHost,
    name: str,
    uuid: str,
    *,
    paused: bool = False,
    devices: str = "",
    disks: Sequence[str | Path] = (),
) -> None:
    """Define it, if it is not, and start it."""
    flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
    with closing(host.connect()) as opened:
        domain = hypervisor.look_up(opened, uuid)
        if domain is None:
            domain = opened.defineXML(domain_xml(name, uuid, devices=devices, disks=disks))
        domain.createWithFlags(flags)


def power(host: PrivateHost, uuid: str) -> str:
    """running, paused, asleep or off, as libvirt shows it; gone if it is unknown there."""
    guest = hypervisor.observe([host.uri], uuid)
    return str(guest.power) if guest else "gone"


def wait_power(host: PrivateHost, uuid: str, state: str) -> None:
    wait_until(lambda: power(host, uuid) == state, f"{uuid} is {state}")


def remove_guests(host: PrivateHost) -> None:
    """End and forget all guests. The daemon's canaries come and go meanwhile: not they."""
    with closing(host.connect()) as opened:
        for domain in opened.listAllDomains():
            if not domain.UUIDString().startswith(CANARY_PREFIX):
                with suppress(libvirt.libvirtError):
                    remove(domain)
        left = [domain.UUIDString() for domain in opened.listAllDomains()]
    assert all(uuid.startswith(CANARY_PREFIX) for uuid in left), left
