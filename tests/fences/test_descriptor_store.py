"""The locks in systemd's file descriptor store, played by a socket that keeps what it is sent."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fences.heldcases import UUID
from fences.lockedfiles import NAME, is_locked

TESTS = Path(__file__).resolve().parents[1]

#: A daemon with nothing but this fence: does what it is told line by line, and says what came.
CHILD = """
import os, sys
from bootlockd.descriptors import of_this_process
from bootlockd.fences.image_lock import ImageLockFence
from fences.lockedfiles import announced

fence = ImageLockFence(of_this_process())
for line in sys.stdin:
    step, *disks = line.split()
    print(getattr(fence, step)(announced(*[f"path:{disk}" for disk in disks])).state, flush=True)
"""

#: Moves the descriptors given to 3, 4 ... and becomes the child, as systemd does.
LAUNCH = """
import os, sys
count, *numbers = map(int, sys.argv[1].split(","))
for at, number in enumerate(numbers):
    os.dup2(number, 3 + at)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = str(count)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2]])
"""


class ServiceManager:
    """Keeps descriptors by name, as systemd does for its services, and hands them to the next."""

    def __init__(self, directory: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._address = directory / "notify"
        self._socket.bind(str(self._address))
        self._socket.setblocking(False)
        self.store: list[tuple[str, int]] = []
        self._services: list[subprocess.Popen[str]] = []

    def start(self) -> subprocess.Popen[str]:
        """The service, given what it had stored."""
        # Above those that LAUNCH fills, so that none is overwritten before it is copied.
        numbers = [fcntl.fcntl(number, fcntl.F_DUPFD, 100) for _, number in self.store]
        environment = os.environ | {
            "NOTIFY_SOCKET": str(self._address),
            "LISTEN_FDNAMES": ":".join(name for name, _ in self.store),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), *sys.path])),
        }
        words = ",".join(map(str, [len(numbers), *numbers]))
        service = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, words, CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            pass_fds=numbers,
        )
        for number in numbers:
            os.close(number)
        self._services.append(service)
        return service

    def forget_unread(self) -> None:
        """As if it had been restarted itself before it read what was said to it."""
        while True:
            try:
                self._socket.recv(4096)
            except BlockingIOError:
                return

    def read(self) -> None:
        """Do all that the service has asked for."""
        while True:
            rights = array.array("i")
            try:
                data, ancillary, *_ = self._socket.recvmsg(4096, socket.CMSG_SPACE(253 * 4))
            except BlockingIOError:
                return
            for _level, _kind, content in ancillary:
                rights.frombytes(content)
            lines = dict(line.split("=", 1) for line in data.decode().splitlines())
            if lines.get("FDSTORE") == "1":
                self.store += [(lines["FDNAME"], number) for number in rights]
            if lines.get("FDSTOREREMOVE") == "1":
                for _, number in [kept for kept in self.store if kept[0] == lines["FDNAME"]]:
                    os.close(number)
                self.store = [kept for kept in self.store if kept[0] != lines["FDNAME"]]

    def close(self) -> None:
        for service in self._services:
            kill(service)
        self._socket.close()
        for _, number in self.store:
            os.close(number)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(tmp_path)
    yield manager
    manager.close()


def do(service: subprocess.Popen[str], step: str, disks: Sequence[Path]) -> str:
    assert service.stdin
    assert service.stdout
    service.stdin.write(" ".join([step, *map(str, disks)]) + "\n")
    service.stdin.flush()
    return service.stdout.readline().strip()


def kill(service: subprocess.Popen[str]) -> None:
    service.kill()
    service.communicate()


def test_the_locks_outlast_the_daemon_in_the_descriptor_store(
    manager: ServiceManager, tmp_path: Path
) -> None:
    disks = [tmp_path / f"disk{number}" for number in range(3)]
    for disk in disks:
        disk.touch()
    service = manager.start()
    assert do(service, "apply", disks) == "enforced"
    manager.read()
    assert [name for name, _ in manager.store] == [f"{NAME}.{UUID}"] * 3
    kill(service)
    assert all(map(is_locked, disks)), "nobody holds them but the store"

    service = manager.start()
    assert do(service, "verify", disks) == "enforced"
    disks[0].unlink()
    assert do(service, "apply", disks) == "enforced"
    manager.read()
    assert len(manager.store) == 2
    kill(service)
    assert all(map(is_locked, disks[1:]))

    service = manager.start()
    assert do(service, "lift", disks) == "lifted"
    # Free at once, before the manager has read that it is to let them go.
    assert not any(map(is_locked, disks[1:]))
    manager.read()
    assert manager.store == []
    kill(service)


def test_killed_before_the_store_was_told_to_let_go_it_does_so_next_time(
    manager: ServiceManager, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    service = manager.start()
    assert do(service, "apply", [disk]) == "enforced"
    manager.read()
    kept = list(manager.store)
    assert do(service, "lift", [disk]) == "lifted"
    kill(service)
    # The store has the file still, without the lock.
    manager.forget_unread()
    assert manager.store == kept
    service = manager.start()
    assert do(service, "verify", [disk]) == "failed"
    assert do(service, "apply", [disk]) == "enforced"
    assert is_locked(disk)
    assert do(service, "lift", [disk]) == "lifted"
    manager.read()
    assert manager.store == []
    kill(service)


def test_more_descriptors_than_one_message_can_carry_are_stored(
    manager: ServiceManager, tmp_path: Path
) -> None:
    disks = [tmp_path / str(number) for number in range(260)]
    for disk in disks:
        disk.touch()
    service = manager.start()
    assert do(service, "apply", disks) == "enforced"
    manager.read()
    assert len(manager.store) == 260
    kill(service)


def test_without_a_service_manager_the_locks_last_as_long_as_the_process(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
    service = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    )
    assert do(service, "apply", [disk]) == "enforced"
    assert is_locked(disk)
    kill(service)
    assert not is_locked(disk)
