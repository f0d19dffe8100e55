"""Whatever the tests leave behind on the machine makes the whole run fail, and is named.

Processes are known by a mark in their environment, or in that of the first process of their PID
namespace: guests and daemons of private hosts have an environment of their own. What has no
environment (links, mounts, named network namespaces, loop devices, nftables, cgroups of libvirt) is
compared with what was there before. A lock on a file dies with its process.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

MARK = "BOOTLOCK_TEST_RUN"

#: Seconds that processes have to end after they were told to.
PATIENCE = 10.0


class Leftovers:
    """What is there that this run has made, as far as it can be told."""

    def __init__(self) -> None:
        self._mark = secrets.token_hex(8)
        self._before: dict[str, set[str]] = {}

    def begin(self) -> None:
        """Mark everything that this process starts from now on; note what else there is."""
        os.environ[MARK] = self._mark
        self._before = {name: look() for name, look in _LOOKS.items()}

    def found(self) -> list[str]:
        """One line for each thing that was left, after the time it may take to go."""
        deadline = time.monotonic() + PATIENCE
        while (left := list(self._left())) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def _left(self) -> Iterator[str]:
        for pid, command in _marked(self._mark):
            if pid != os.getpid():
                yield f"process {pid}: {command}"
        for name, look in _LOOKS.items():
            yield from (f"{name}: {thing}" for thing in sorted(look() - self._before[name]))


def _marked(mark: str) -> Iterator[tuple[int, str]]:
    marked = f"{MARK}={mark}".encode()
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    namespaces = {pid: _pid_namespace(pid) for pid in pids}
    ours = {
        namespaces[pid] for pid in pids if _is_first_of_its_namespace(pid) and _has(pid, marked)
    }
    ours -= {_pid_namespace(os.getpid()), ""}
    for pid in pids:
        if namespaces[pid] in ours or _has(pid, marked):
            command = _text(pid, "cmdline").replace("\0", " ").strip()
            # A zombie has no command line, and is its parent's to reap.
            if command:
                yield pid, command


def _has(pid: int, marked: bytes) -> bool:
    return marked in _bytes(pid, "environ").split(b"\0")


def _is_first_of_its_namespace(pid: int) -> bool:
    for line in _text(pid, "status").splitlines():
        if line.startswith("NSpid:"):
            return line.split()[-1] == "1"
    return False


def _pid_namespace(pid: int) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return ""


def _text(pid: int, name: str) -> str:
    return _bytes(pid, name).decode(errors="replace")


def _bytes(pid: int, name: str) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""


def _links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def _mounts() -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line.split()[4] for line in lines}


def _namespaces() -> set[str]:
    with suppress(FileNotFoundError):
        return set(os.listdir("/run/netns"))
    return set()


def _loops() -> set[str]:
    backing = Path("/sys/block").glob("loop*/loop/backing_file")
    return {f"{path.parts[3]} {path.read_text().strip()}" for path in backing}


def _tables() -> set[str]:
    with suppress(FileNotFoundError):
        done = subprocess.run(
            ["nft", "--json", "list", "tables"], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            listed = [entry.get("table", {}) for entry in json.loads(done.stdout)["nftables"]]
            return {f"{table['family']} {table['name']}" for table in listed if table}
    return set()


def _cgroups() -> set[str]:
    top = Path("/sys/fs/cgroup")
    return {str(path) for path in (*top.glob("bootlock*"), *top.glob("*/bootlock*"))}


_LOOKS: dict[str, Callable[[], set[str]]] = {
    "link": _links,
    "mount": _mounts,
    "network namespace": _namespaces,
    "loop device": _loops,
    "nftables table": _tables,
    "cgroup": _cgroups,
}

_LEFTOVERS = pytest.StashKey[Leftovers]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Note what is there; not in a worker, whose end is not the run's."""
    if not hasattr(session.config, "workerinput"):
        leftovers = session.config.stash[_LEFTOVERS] = Leftovers()
        leftovers.begin()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the run when something was left."""
    leftovers = session.config.stash.get(_LEFTOVERS, None)
    if leftovers and (left := leftovers.found()):
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter:
            reporter.section("left behind by the tests", red=True)
            for line in left:
                reporter.line(line)
        session.exitstatus = exitstatus or pytest.ExitCode.TESTS_FAILED
