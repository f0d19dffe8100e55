"""The real bootlockd inside a private host, as systemd would run it.

    with PrivateHost() as host, Daemon(host) as daemon:
        host.bootlock("place", uuid, "--reason", "r", "--on-running", "destroy")
        daemon.status()["holds"]

It is ended by its process id; what it wrote to its log is part of every failure.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any, Self

from bootlockd import control
from bootlockd.errors import Unreachable
from privatehost import PrivateHost
from waiting import PATIENCE, wait_until

PROGRAM = Path(sys.executable).parent / "bootlockd"

#: No metrics, and one driver: what a test does not need must not fail it.
SETTINGS = """
[libvirt]
uris = ["qemu:///system"]
[metrics]
listen = ""
[polkit]
enabled = false

# A test removes the guests that it made, held or not.
[definition]
restore = "off"

# The kernel tells of processes only outside of a private host.
[process_watch]
action = "off"
"""

#: Inside; a command that notes there who it is, and becomes the rest of its arguments.
PID_FILE = "/run/bootlockd.pid"
NOTE_PID = f'echo $$ >{PID_FILE}; exec "$@"'


class Daemon:
    """One bootlockd; a context manager from its first full look to its end.

    ``program``: what to run in its place. ``env``: more for its environment.
    """

    #: The signal that ends it at last.
    ending = "TERM"

    def __init__(
        self,
        host: PrivateHost,
        settings: str = SETTINGS,
        *,
        program: Sequence[str | Path] = (PROGRAM,),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.host = host
        self._socket = host.outside("/run/bootlock/control.sock")
        self._settings = settings
        self._program = program
        self._env = env
        self._log = host.root / "bootlockd.log"
        self._log.unlink(missing_ok=True)
        self._process: Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None:
            error.add_note(f"bootlockd said:\n{self.log[-4000:]}")
        self.end(self.ending)

    def write_settings(self, settings: str) -> None:
        """Settings for when it is started, or told to read them, the next time."""
        self._settings = settings
        self.host.outside("/etc/bootlock/bootlock.toml").write_text(settings, "utf-8")

    def start(self) -> None:
        """Start it and wait until it is up."""
        self.launch()
        wait_until(self._is_up_or_raises, "bootlockd is up")

    def launch(self) -> None:
        """Start it, without waiting for anything that it does."""
        self.write_settings(self._settings)
        noted = self.host.outside(PID_FILE)
        noted.unlink(missing_ok=True)
        with self._log.open("a") as log:
            self._process = self.host.popen(
                ["sh", "-c", NOTE_PID, "sh", *self._program],
                stdout=log.fileno(),
                stderr=log.fileno(),
                env=self._env,
            )
        wait_until(lambda: noted.exists() and noted.read_text(), "bootlockd is started")

    def end(self, how: str = "TERM") -> int | None:
        """End it with a signal, by the signal's name. Its exit status; None if it was ended."""
        if self._process is None:
            return None
        assert self.runs, f"bootlockd has ended by itself: {self.log[-2000:]}"
        self.signal(how)
        self._process.send_signal(signal.SIGCONT)
        status = self._process.wait(PATIENCE)
        self._process = None
        return status

    def signal(self, how: str) -> None:
        """Send it a signal, by the signal's name."""
        self.host.run(["kill", "-s", how, self._pid_inside()])
        if how == "CONT" and self._process:
            # nsenter stops itself when its child was stopped.
            self._process.send_signal(signal.SIGCONT)

    @property
    def runs(self) -> bool:
        """It was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process, by the PID it has outside."""
        inside = self._pid_inside()
        for pid in self.host.processes():
            if _number_inside(pid) == inside:
                return pid
        raise ProcessLookupError(inside)

    @property
    def log(self) -> str:
        """All that it has logged, each time it was started."""
        return self._log.read_text("utf-8", errors="replace") if self._log.exists() else ""

    def status(self) -> dict[str, Any]:
        """Its answer to ``status``. Raises Unreachable."""
        return self._ask({"op": "status"})

    def wake(self) -> None:
        """Have it read the holds, as the CLI does after each change. Raises Unreachable."""
        self._ask({"op": "wake"})

    def settle(self, instance: str) -> None:
        """Have it look at an instance, and wait until that is done. Raises Unreachable."""
        for _answer in control.ask(
            self._socket, {"op": "settle", "instance": instance}, timeout=PATIENCE
        ):
            pass

    def is_up(self) -> bool:
        """It has looked at everything once. Raises Unreachable."""
        return bool(self.status()["looked"])

    def _is_up_or_raises(self) -> bool:
        assert self.runs, f"bootlockd has ended: {self.log[-3000:]}"
        try:
            return self.is_up()
        except Unreachable:
            return False

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        answers = list(control.ask(self._socket, question, timeout=PATIENCE))
        if not answers:
            raise Unreachable("no answer")
        (answer,) = answers
        return answer

    def _pid_inside(self) -> str:
        return self.host.outside(PID_FILE).read_text().strip()


def _number_inside(pid: int) -> str:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return next(line.split()[-1] for line in status.splitlines() if line.startswith("NSpid:"))
