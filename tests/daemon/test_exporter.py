"""The process that serves the metrics, beside a daemon that comes and goes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from daemonhost import SETTINGS, Daemon
from privatehost import PrivateHost
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.live

LISTENING = SETTINGS.replace('listen = ""', 'listen = "127.0.0.1:9644"')
EXPORTER = [sys.executable, "-I", "-m", "bootlockd.exporter"]

_FETCH = (
    "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9644/metrics').read().decode())"
)
_SQUAT = (
    "import socket, sys; s = socket.create_server(('127.0.0.1', 9644)); "
    "print('taken', flush=True); sys.stdin.read()"
)


def fetch(host: PrivateHost) -> str:
    """What it answers; nothing if nobody is there."""
    return host.run([sys.executable, "-c", _FETCH], check=False).stdout


@contextmanager
def exporter(host: PrivateHost) -> Iterator[subprocess.Popen[str]]:
    process = host.popen(["sh", "-c", 'echo $$ >/run/exporter.pid; exec "$@"', "sh", *EXPORTER])
    try:
        yield process
    finally:
        host.run(["sh", "-c", 'kill -s TERM "$(cat /run/exporter.pid)"'])
        assert process.wait(PATIENCE) == 0


def write_settings(host: PrivateHost, text: str) -> None:
    host.outside("/etc/bootlock/bootlock.toml").write_text(text, "utf-8")


def test_it_answers_before_during_and_after_the_daemon(host: PrivateHost) -> None:
    write_settings(host, LISTENING)
    with exporter(host):
        wait_until(lambda: "\nbootlock_daemon_up 0.0\n" in fetch(host), "it answers alone")
        with Daemon(host, LISTENING) as daemon:
            host.bootlock("place", "cccccccc-1111-4111-8111-111111111111", "--reason", "r")
            said = fetch(host)
            assert "\nbootlock_daemon_up 1.0\n" in said
            assert "\nbootlock_stuck_instances 0.0\n" in said
            assert re.search(r"^bootlock_cycle_duration_seconds_count [1-9]", said, re.MULTILINE)
            daemon.end("KILL")
            said = fetch(host)
        assert "\nbootlock_daemon_up 0.0\n" in said
        assert '\nbootlock_holds{kind="boot_lock",source="local"} 1.0\n' in said


def test_a_port_in_use_ends_it_with_words(host: PrivateHost) -> None:
    write_settings(host, LISTENING)
    squatter = host.popen([sys.executable, "-c", _SQUAT], stdin=subprocess.PIPE)
    assert squatter.stdout
    assert squatter.stdout.readline() == "taken\n"
    done = host.run(EXPORTER, check=False)
    squatter.communicate(timeout=PATIENCE)
    assert done.returncode == 2
    assert "metrics.listen: 127.0.0.1 port 9644" in done.stderr


@pytest.mark.parametrize(
    ("settings", "status", "words"),
    [('[metrics]\nlisten = ""\n', 0, "nothing to serve"), ("[metrics]\nliste = 3\n", 2, "liste")],
)
def test_it_serves_nothing_where_it_should_not(
    host: PrivateHost, settings: str, status: int, words: str
) -> None:
    write_settings(host, settings)
    done = host.run(EXPORTER, check=False)
    assert done.returncode == status
    assert words in done.stderr
