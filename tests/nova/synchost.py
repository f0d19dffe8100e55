"""``bootlockd --sync`` with Nova as its source, on a private host, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from subprocess import Popen
from typing import Self

import libvirt

from daemonhost import PROGRAM
from lockdb import database, holds, sources
from lockdb.sources import State
from lockdb.values import Hold
from nova.cloud import Cloud
from privatehost import PrivateHost
from waiting import wait_until

LOG = Path("/run/sync.log")
LOCK_DB = Path("/var/lib/bootlock/lock.db")

SETTINGS = """\
[sync]
interval = 1
max_release = 1000
max_release_percent = 100
"""

_NOTE_PID = 'echo $$; log=$1; shift; exec "$@" >>"$log" 2>&1'


def run(
    host: PrivateHost, log: Path, *words: str | Path, env: Mapping[str, str] | None = None
) -> tuple[Popen[str], str]:
    """bootlockd inside, which adds what it says to ``log``: nsenter, and its PID there."""
    command = ["sh", "-c", _NOTE_PID, "sh", log, PROGRAM, *words]
    started = host.popen(command, env=env)
    assert started.stdout
    return started, started.stdout.readline().strip()


def in_force(history: Iterable[Hold]) -> dict[str, Hold]:
    """By instance; there is one on each."""
    active = [hold for hold in history if hold.released_at is None]
    by_instance = {hold.instance: hold for hold in active}
    assert len(by_instance) == len(active)
    return by_instance


def starts(guest: libvirt.virDomain) -> bool:
    """Whether it does, and it is off afterwards; what else keeps it from that is an error."""
    try:
        guest.create()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_HOOK_SCRIPT_FAILED:
            raise
        return False
    guest.destroy()
    return True


class SyncHost:
    """The program, from ``start`` to ``stop``; each start is with a database without holds."""

    def __init__(self, host: PrivateHost, cloud: Cloud) -> None:
        self._host = host
        self._pid = ""
        self.clouds = cloud.clouds_yaml("bootlock")
        self._log = host.outside(LOG)

    def __enter__(self) -> Self:
        for file in self._host.outside(LOCK_DB.parent).iterdir():
            file.unlink()
        self._host.bootlock("init")
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()
        if self._log.exists():
            print(self.log)  # pytest shows it, should the test have failed

    def configure(self, **nova: object) -> None:
        """Write the settings and the accounts. ``nova``: settings, written as in TOML."""
        etc = self._host.outside("/etc/bootlock")
        etc.mkdir(exist_ok=True)
        section = {"cloud": '"test"', "on_running": '"destroy"', "timeout": 5} | nova
        lines = "".join(f"{key} = {value}\n" for key, value in section.items())
        (etc / "bootlock.toml").write_text(f"{SETTINGS}[sources.nova]\n{lines}")
        (etc / "clouds.yaml").write_text(self.clouds)

    def start(self, **nova: object) -> None:
        """Configure and start it, and wait until it has looked once, or failed to."""
        self.configure(**nova)
        self._log.write_text("")
        _, self._pid = run(self._host, LOG, "--sync")
        wait_until(lambda: "ready: " in self.log or self._is_gone(), "it is ready")
        assert "ready: " in self.log, self.log

    def stop(self) -> None:
        """End it, and wait until it has."""
        if self._pid:
            self._host.run(["kill", self._pid], check=False)
            wait_until(self._is_gone, "it has ended")
            self._pid = ""

    @property
    def log(self) -> str:
        """What it said since it was started."""
        return self._log.read_text()

    @property
    def state(self) -> State:
        """What the database knows of the source."""
        with database.open_db(self._host.outside(LOCK_DB), read_only=True) as lock_db:
            return sources.stored(lock_db, "nova")

    def held(self) -> dict[str, Hold]:
        """The holds in force, by instance; there is one on each."""
        with database.open_db(self._host.outside(LOCK_DB), read_only=True) as lock_db:
            return in_force(holds.history(lock_db, source="nova"))

    def history(self, instance: str) -> list[Hold]:
        """All holds that it ever had."""
        with database.open_db(self._host.outside(LOCK_DB), read_only=True) as lock_db:
            return holds.history(lock_db, instance=instance)

    def wait_for_full_look(self) -> None:
        """Until a look at everything has begun and ended after this was called."""
        # Of two, the second has begun since.
        for _ in range(2):
            before = self.state.whole_at
            wait_until(lambda before=before: self.state.whole_at != before, "a full look")  # type: ignore[misc]

    def wait_for_looks(self, count: int = 2) -> None:
        """Until it has looked so often again; the last of two has begun since."""
        before = self.state.turn
        wait_until(lambda: self.state.turn >= before + count, f"{count} looks")

    def _is_gone(self) -> bool:
        return self._host.run(["kill", "-0", self._pid], check=False).returncode != 0
