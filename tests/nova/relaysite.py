"""Relays on a real registry and a real Nova, and a host that follows the registry.

All of it is inside one private host, whose loopback the cloud is on: its bootlock is configured as
a host of the fleet, and the relays are processes with settings of their own.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from etcdcluster import Cluster
from lockdb import database, holds
from lockdb.values import Hold
from manager import Manager
from nova.cloud import Cloud
from privatehost import PrivateHost, wait_until

PROGRAM = Path(sys.executable).parent / "bootlockd"
LOCK_DB = Path("/var/lib/bootlock/lock.db")
ETC = Path("/etc/bootlock")

_SYNC = """\
[sync]
interval = 1
max_release = 1000
max_release_percent = 100
"""
_NOTE_PID = 'echo $$; log=$1; shift; exec "$@" >>"$log" 2>&1'


class RelayProcess:
    """``bootlockd --relay`` inside, as its unit runs it."""

    def __init__(self, host: PrivateHost, name: str, settings: str) -> None:
        self._host = host
        self._log = host.outside(f"/run/{name}.log")
        path = ETC / f"{name}.toml"
        host.outside(path).write_text(settings)
        socket = f"/run/{name}.sock"
        self.manager = Manager(host.outside(socket))
        noting = ("sh", "-c", _NOTE_PID, "sh", f"/run/{name}.log")
        started = host.popen(
            [*noting, PROGRAM, "--relay", "--config", path], env={"NOTIFY_SOCKET": socket}
        )
        assert started.stdout
        self._pid = started.stdout.readline().strip()
        self._process = started
        wait_until(lambda: "READY=1" in self.manager.lines(), f"{name} is ready; {self.log}")

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def leads(self) -> bool:
        said = [line for line in self.manager.lines() if line.startswith("STATUS=")]
        return bool(said) and said[-1].startswith("STATUS=leads")

    def end(self, how: str = "TERM") -> None:
        """End it with a signal, if it runs."""
        if self._process.poll() is None:
            self._host.run(["kill", "-s", how, self._pid], check=False)
            self._process.wait()

    def close(self) -> None:
        self.end()
        self.manager.close()
        print(self.log)  # pytest shows it, should the test have failed


class RelaySite:
    """The registry and the host that follows it; a context manager."""

    def __init__(self, host: PrivateHost, cloud: Cloud, directory: Path) -> None:
        self._host = host
        self._cloud = cloud
        self._cluster = Cluster(directory, net=host.pid)
        self._stack = ExitStack()
        self._log = host.outside("/run/sync.log")

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _start(self) -> None:
        self._stack.enter_context(self._cluster)
        endpoints = json.dumps([self._cluster.url(at) for at in range(3)])
        self._fleet = f"[fleet]\nendpoints = {endpoints}\nheartbeat = 1\ntimeout = 2\n"
        self._host.outside(ETC).mkdir(exist_ok=True)
        settings = f'{_SYNC}{self._fleet}host = "compute"\n'
        self._host.outside(ETC / "bootlock.toml").write_text(settings)
        self._host.outside(ETC / "clouds.yaml").write_text(self._cloud.clouds_yaml("bootlock"))
        self._log.touch()
        noting = ("sh", "-c", _NOTE_PID, "sh", "/run/sync.log")
        started = self._host.popen([*noting, PROGRAM, "--sync"])
        assert started.stdout
        pid = started.stdout.readline().strip()
        self._stack.callback(started.wait)
        self._stack.callback(self._host.run, ["kill", pid], check=False)
        wait_until(lambda: "ready: " in self._log.read_text(), "the host follows the registry")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def relay(self, name: str) -> RelayProcess:
        """Start one; its ``close`` ends it."""
        # A look at everything each few seconds.
        nova = '[sources.nova]\ncloud = "test"\nfull_interval = 3\ntimeout = 5\n'
        return RelayProcess(self._host, name, f'{_SYNC}{self._fleet}host = "{name}"\n{nova}')

    def held(self) -> dict[str, Hold]:
        """The holds in force in the host's database, by instance; there is one on each."""
        active = [hold for hold in self._history() if hold.released_at is None]
        by_instance = {hold.instance: hold for hold in active}
        assert len(by_instance) == len(active)
        return by_instance

    def history(self, instance: str) -> list[Hold]:
        """All that the host ever had of it."""
        return [hold for hold in self._history() if hold.instance == instance]

    def registered(self, instance: str) -> list[dict[str, Any]]:
        """All holds that the registry ever had on it."""
        words = ("list", "--fleet", "--all", "--instance", instance, "--json")
        return list(json.loads(self._host.bootlock(*words).stdout))

    def state(self) -> dict[str, Any]:
        """What an admin is shown of the relays."""
        said = self._host.bootlock("fleet", "status", "--json", check=False).stdout
        return dict(json.loads(said)["relay"])

    def _history(self) -> list[Hold]:
        with database.open_db(self._host.outside(LOCK_DB), read_only=True) as lock_db:
            return holds.history(lock_db, source="etcd")
