"""The installed metrics, as a user who is nothing but a member of the installed group."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from privatehost import PrivateHost
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.live

UNIT = "/usr/lib/systemd/system/bootlock-metrics.service"
NOBODY = 65534

#: The kernel tells of processes only outside of a private host.
SETTINGS = '[libvirt]\nuris = ["qemu:///system"]\n[process_watch]\naction = "off"\n'

_FETCH = (
    "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9644/metrics').read().decode())"
)
_ASK = (
    "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/bootlock/control.sock'); "
    's.sendall(b\'{"op": "wake"}\\n\'); print(s.recv(4096).decode())'
)


def as_member(host: PrivateHost) -> list[str]:
    group = host.run(["getent", "group", "bootlock"]).stdout.split(":")[2]
    who = [f"--reuid={NOBODY}", f"--regid={NOBODY}", f"--groups={group}"]
    return ["setpriv", *who, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--"]


@contextmanager
def running(host: PrivateHost, name: str, command: list[str]) -> Iterator[None]:
    """A program inside, ended by its process id."""
    noted = f"/run/{name}.pid"
    words = ["sh", "-c", f'echo $$ >{noted}; exec "$@"', "sh", *command]
    process = host.popen(words, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        host.run(["sh", "-c", f'kill -s TERM "$(cat {noted})"'])
        process.wait(PATIENCE)


def fetch(host: PrivateHost) -> str:
    return host.run(["/usr/bin/python3", "-c", _FETCH], check=False).stdout


def place(host: PrivateHost, uuid: str) -> None:
    host.run(["/usr/bin/bootlock", "place", uuid, "--reason", "unpaid"])


def test_a_member_of_the_group_is_enough(host: PrivateHost, built: Path) -> None:
    host.run(["make", "-s", "-C", built, "install"])
    host.run(["tee", "/etc/bootlock/bootlock.toml"], input=SETTINGS)
    start = re.search(r"^ExecStart=(.+)$", host.run(["cat", UNIT]).stdout, re.MULTILINE)
    assert start
    member = as_member(host)
    with running(host, "exporter", [*member, *start[1].split()]):
        wait_until(lambda: "\nbootlock_database_up 1.0\n" in fetch(host), "it reads the database")
        with running(host, "daemon", ["/usr/bin/bootlockd"]):
            wait_until(lambda: "\nbootlock_daemon_up 1.0\n" in fetch(host), "the daemon tells it")
            place(host, "cccccccc-1111-4111-8111-111111111111")
            assert '\nbootlock_holds{kind="boot_lock",source="local"} 1.0\n' in fetch(host)
            said = host.run([*member, "/usr/bin/python3", "-c", _ASK]).stdout
            assert "only root" in said
        place(host, "cccccccc-1111-4111-8111-222222222222")
        said = fetch(host)
    assert "\nbootlock_daemon_up 0.0\n" in said
    assert '\nbootlock_holds{kind="boot_lock",source="local"} 2.0\n' in said
