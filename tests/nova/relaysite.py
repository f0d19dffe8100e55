"""Relays on a real registry and a real Nova, and a host that follows the registry.

All of it is inside one private host, whose loopback the cloud is on: its bootlock is configured as
a host of the fleet, and the relays are processes with settings of their own.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from etcdcluster import Cluster
from lockdb import database, holds
from lockdb.values import Hold
from manager import Manager
from nova.cloud import Cloud
from nova.synchost import LOCK_DB, LOG, SETTINGS, in_force, run
from privatehost import PrivateHost
from waiting import wait_until

ETC = Path("/etc/bootlock")


class RelayProcess:
    """``bootlockd --relay`` inside, as its unit runs it."""

    def __init__(self, host: PrivateHost, name: str, settings: str) -> None:
        self._host = host
        log = Path(f"/run/{name}.log")
        self._log = host.outside(log)
        path = ETC / f"{name}.toml"
        host.outside(path).write_text(settings)
        socket = f"/run/{name}.sock"
        self.manager = Manager(host.outside(socket))
        words = ("--relay", "--config", path)
        self._process, self._pid = run(host, log, *words, env={"NOTIFY_SOCKET": socket})
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
        self._begun = ExitStack()
        self._log = host.outside(LOG)

    def __enter__(self) -> Self:
        with ExitStack() as begun:
            self._start(begun)
            self._begun = begun.pop_all()
        return self

    def _start(self, begun: ExitStack) -> None:
        begun.enter_context(self._cluster)
        endpoints = json.dumps([self._cluster.url(at) for at in range(3)])
        self._fleet = f"[fleet]\nendpoints = {endpoints}\nheartbeat = 1\ntimeout = 2\n"
        self._host.outside(ETC).mkdir(exist_ok=True)
        settings = f'{SETTINGS}{self._fleet}host = "compute"\n'
        self._host.outside(ETC / "bootlock.toml").write_text(settings)
        self._host.outside(ETC / "clouds.yaml").write_text(self._cloud.clouds_yaml("bootlock"))
        self._log.touch()
        started, pid = run(self._host, LOG, "--sync")
        begun.callback(started.wait)
        begun.callback(self._host.run, ["kill", pid], check=False)
        wait_until(lambda: "ready: " in self._log.read_text(), "the host follows the registry")

    def __exit__(self, *_exception: object) -> None:
        self._begun.close()

    def relay(self, name: str) -> RelayProcess:
        """Start one; its ``close`` ends it."""
        # A look at everything each few seconds.
        nova = '[sources.nova]\ncloud = "test"\nfull_interval = 3\ntimeout = 5\n'
        return RelayProcess(self._host, name, f'{SETTINGS}{self._fleet}host = "{name}"\n{nova}')

    def held(self) -> dict[str, Hold]:
        """The holds in force in the host's database, by instance; there is one on each."""
        return in_force(self._history())

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
