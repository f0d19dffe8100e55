"""The real bootlockd inside a private host, as systemd would run it.

    with PrivateHost() as host, Daemon(host) as daemon:
        host.bootlock("place", uuid, "--reason", "r", "--on-running", "destroy")
        daemon.status()["holds"]

It is ended by its process id; what it wrote to its log is part of every failure.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import Popen
from types import TracebackType
from typing import Any, Self

from bootlockd.control import ask
from bootlockd.errors import Unreachable
from privatehost import PATIENCE, PrivateHost, wait_until

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
    """One bootlockd; a context manager from its first full look to its end."""

    def __init__(
        self, host: PrivateHost, settings: str = SETTINGS, env: Mapping[str, str] | None = None
    ) -> None:
        self.host = host
        self.log_file = host.root / "bootlockd.log"
        self.control = host.outside("/run/bootlock/control.sock")
        self._env = env
        self._process: Popen[str] | None = None
        self.log_file.unlink(missing_ok=True)
        self.write_settings(settings)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            error.add_note(f"bootlockd said:\n{self.log()[-4000:]}")
        if self._process:
            self.stop()

    def write_settings(self, settings: str) -> None:
        path = self.host.outside("/etc/bootlock/bootlock.toml")
        path.write_text(settings, "utf-8")

    def start(self, *, wait: bool = True) -> None:
        """Start it; ``wait`` for its first full look."""
        command: list[str | Path] = ["sh", "-c", NOTE_PID, "sh", PROGRAM]
        noted = self.host.outside(PID_FILE)
        noted.unlink(missing_ok=True)
        with self.log_file.open("a", encoding="utf-8") as log:
            self._process = self.host.popen(command, stderr=log.fileno(), env=self._env)
        wait_until(lambda: noted.exists() and noted.read_text(), "bootlockd is started")
        if wait:
            wait_until(self._has_looked, f"bootlockd looks; it said: {self.log()[-2000:]}")

    def stop(self, how: str = "TERM") -> int:
        """End it with a signal; its exit status."""
        assert self._process
        self.signal(how)
        status = self._process.wait(PATIENCE)
        self._process = None
        return status

    def signal(self, name: str) -> None:
        self.host.run(["kill", "-s", name, str(self.pid)])
        if name == "CONT" and self._process:
            # nsenter stops itself when its child was stopped.
            self._process.send_signal(signal.SIGCONT)

    @property
    def pid(self) -> int:
        """Its process id inside."""
        return int(self.host.outside(PID_FILE).read_text())

    def status(self) -> dict[str, Any]:
        (answer,) = ask(self.control, {"op": "status"}, PATIENCE)
        return answer

    def log(self) -> str:
        return self.log_file.read_text("utf-8") if self.log_file.exists() else ""

    def _has_looked(self) -> bool:
        try:
            return bool(self.status()["looked"])
        except Unreachable:
            assert self._process
            if self._process.poll() is not None:
                raise AssertionError(f"bootlockd ended: {self.log()[-2000:]}") from None
            return False
