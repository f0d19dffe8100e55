"""bootlockd and its service manager: what it says, and when."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bootlockd import notify
from bootlockd.service import Service
from daemon.fakes import settings
from daemonhost import Daemon
from manager import Manager
from privatehost import PrivateHost
from waiting import PATIENCE, wait_until


@pytest.fixture
def manager(host: PrivateHost) -> Iterator[Manager]:
    manager = Manager(host.root / "notify")
    yield manager
    manager.close()


def environment(manager: Manager, watchdog: float) -> dict[str, str]:
    return {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": str(int(watchdog * 1e6))}


@pytest.mark.live
def test_ready_comes_and_the_watchdog_is_fed_when_idle(host: PrivateHost, manager: Manager) -> None:
    with Daemon(host, env=environment(manager, 3)) as daemon:
        wait_until(lambda: manager.count("READY=1"), "it is ready")
        wait_until(lambda: "STATUS=enforcing 0 holds" in manager.lines(), "the first look is over")
        began, pings = time.monotonic(), manager.count("WATCHDOG=1")
        wait_until(lambda: manager.count("WATCHDOG=1") >= pings + 3, "it is fed")
        # A third of the interval: neither late nor a busy loop.
        assert time.monotonic() - began > 1.5
        uuid = "cccccccc-1111-4111-8111-111111111111"
        host.bootlock("place", uuid, "--reason", "r")
        wait_until(lambda: "STATUS=enforcing 1 holds" in manager.lines(), "the status follows")
        host.bootlock("release", "--instance", uuid, "--all", "--reason", "r")
        daemon.signal("HUP")
        wait_until(lambda: manager.count("READY=1") == 2, "it is ready again")
        lines = manager.lines()
        assert lines.index("RELOADING=1") > lines.index("READY=1")
        assert daemon.end() == 0
    assert manager.lines()[-1] == "STOPPING=1"


def test_only_a_cycle_that_turns_feeds_the_watchdog(
    lock_db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = Manager(tmp_path / "notify")
    for name, value in environment(manager, 0.6).items():
        monkeypatch.setenv(name, value)
    config = replace(
        settings(lock_db),
        daemon=replace(settings(lock_db).daemon, control_socket=tmp_path / "control"),
    )
    monkeypatch.setattr("bootlockd.service.fences", lambda _config: [])
    service = Service(config)
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        wait_until(lambda: manager.count("WATCHDOG=1") >= 2, "it is fed")
        stuck, let_go = threading.Event(), threading.Event()

        def hang() -> None:
            stuck.set()
            assert let_go.wait(PATIENCE)

        service.between_turns(hang)
        assert stuck.wait(PATIENCE)
        before = manager.count("WATCHDOG=1")
        time.sleep(1.5)
        assert manager.count("WATCHDOG=1") == before
        let_go.set()
        wait_until(lambda: manager.count("WATCHDOG=1") > before, "it is fed again")
    finally:
        service.stop()
        thread.join(PATIENCE)
        manager.close()


def test_without_a_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify.notify("READY=1") is False


def test_an_abstract_address_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(PATIENCE)
        manager.bind("\0bootlock-test-notify")
        monkeypatch.setenv("NOTIFY_SOCKET", "@bootlock-test-notify")
        assert notify.notify("READY=1", "STATUS=here")
        assert manager.recv(100) == b"READY=1\nSTATUS=here"


def test_what_a_service_says_is_said_once_and_again_if_nobody_heard_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "3600000000")
    announcer = notify.Announcer()
    announcer.turned("one")
    manager = Manager(tmp_path / "notify")
    try:
        announcer.turned("")
        assert manager.lines() == ["WATCHDOG=1"]
        for summary in ("one", "one", "two", "two"):
            announcer.turned(summary)
        assert manager.lines()[1:] == ["READY=1", "STATUS=one", "STATUS=two"]
    finally:
        manager.close()


def test_a_watchdog_for_another_process_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert notify.watchdog_interval() is None
    monkeypatch.delenv("WATCHDOG_PID")
    assert notify.watchdog_interval() == 3.0
