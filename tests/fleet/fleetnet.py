"""Private libvirt hosts that reach a registry, each over a cable of its own that can be cut.

The registry's members share a network namespace. Each host has one end of a veth pair in its own;
the machine's network is not touched.
"""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from daemonhost import PROGRAM, SETTINGS, Daemon
from etcdcluster import Cluster
from privatehost import PrivateHost
from waiting import wait_until

ADDRESS = "10.77.0.1"

_HOLD = f"ip link set lo up && ip address add {ADDRESS}/32 dev lo && echo ready && exec cat"
_NOTE_PID = 'echo $$ >/run/bootlock-sync.pid; exec "$@"'


class FleetHost:
    """A libvirt host with bootlockd, and ``bootlockd --sync`` that follows the registry."""

    def __init__(self, name: str, endpoints: list[str]) -> None:
        self.name = name
        self.host = PrivateHost(name=name)
        self._settings = (
            f"{SETTINGS}\n[fleet]\nendpoints = {json.dumps(endpoints)}\n"
            f'host = "{name}"\nheartbeat = 1\ntimeout = 1\n'
            # What is released here is nearly all there is.
            "[sync]\nmax_release = 1000\nmax_release_percent = 100\n"
        )
        self._stack = ExitStack()

    def start(self) -> None:
        self._stack.enter_context(self.host)
        self.host.install_bootlock()
        self._stack.enter_context(Daemon(self.host, settings=self._settings))

    def start_sync(self) -> None:
        """Follow the registry, from here on."""
        with (self.host.root / "sync.log").open("a") as log:
            self.host.popen(["sh", "-c", _NOTE_PID, "sh", PROGRAM, "--sync"], stderr=log.fileno())

    def stop(self) -> None:
        self._stack.close()

    def log(self) -> str:
        file = self.host.root / "sync.log"
        return file.read_text()[-1500:] if file.exists() else ""

    def bootlock(self, *words: str) -> tuple[int, Any]:
        """Exit code and JSON of a command."""
        done = self.host.bootlock(*words, "--json", check=False)
        return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr

    def refuses(self, guest: str) -> bool:
        """Whether libvirt refuses to start it; what was started is ended."""
        done = self.host.virsh("start", guest, check=False)
        if done.returncode:
            assert "bootlock: start refused" in done.stderr, done.stderr
            return True
        self.host.virsh("destroy", guest)
        return False

    def waits_to_refuse(self, guest: str, whether: bool = True) -> None:
        wait_until(
            lambda: self.refuses(guest) == whether,
            f"{self.name} {'refuses' if whether else 'starts'} {guest}; {self.log()}",
        )


class FleetNet:
    """A registry of three members and hosts ``h1`` to ``h3``; a context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._begun = ExitStack()
        self.hosts: list[FleetHost] = []

    def __enter__(self) -> Self:
        with ExitStack() as begun:
            self._start(begun)
            self._begun = begun.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._begun.close()

    def cut(self, number: int) -> None:
        """Take a host's cable away."""
        self._ip("link", "set", f"h{number + 1}", "down")

    def heal(self, number: int) -> None:
        self._ip("link", "set", f"h{number + 1}", "up")

    def _start(self, begun: ExitStack) -> None:
        command = ["unshare", "--net", "--kill-child", "--fork", "sh", "-c", _HOLD]
        self._holder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        begun.callback(self._end_holder)
        assert self._holder.stdout
        assert self._holder.stdout.readline() == b"ready\n"
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text()
        self._pid = int(children.split()[0])
        self.cluster = begun.enter_context(Cluster(self._directory, net=self._pid, address=ADDRESS))
        endpoints = [self.cluster.url(at) for at in range(3)]
        self.hosts = [FleetHost(f"h{number}", endpoints) for number in (1, 2, 3)]
        for host in self.hosts:
            begun.callback(host.stop)
        with ThreadPoolExecutor() as pool:
            list(pool.map(FleetHost.start, self.hosts))
        for number, host in enumerate(self.hosts, 1):
            self._attach(number, host)
            host.start_sync()

    def _attach(self, number: int, host: FleetHost) -> None:
        name, net = f"h{number}", f"10.77.{number}"
        self._ip("link", "add", name, "type", "veth", "peer", "fleet", "netns", str(host.host.pid))
        self._ip("address", "add", f"{net}.1/24", "dev", name)
        self._ip("link", "set", name, "up")
        for words in (
            f"address add {net}.2/24 dev fleet",
            "link set fleet up",
            f"route add {ADDRESS} via {net}.1",
        ):
            host.host.run(["ip", *words.split()])

    def _ip(self, *words: str) -> None:
        enter = ["nsenter", f"--net=/proc/{self._pid}/ns/net", "ip", *words]
        subprocess.run(enter, check=True, capture_output=True)

    def _end_holder(self) -> None:
        assert self._holder.stdin
        assert self._holder.stdout
        self._holder.stdin.close()
        self._holder.wait()
        self._holder.stdout.close()
