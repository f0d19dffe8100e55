"""libvirt's drivers: those that are not here, those that do not answer, and what hangs in one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootlockd import hypervisor
from bootlockd.errors import NoSuchDriver, Unreachable
from daemon.fakes import uuid
from daemonhost import SETTINGS, Daemon
from privatehost import PrivateHost
from waiting import PATIENCE, wait_until

HERE = "test:///default"
NOT_HERE = "nosuch:///system"
#: Known to libvirt's built-in test driver.
KNOWN = "6695eb01-f6a4-8304-79aa-97f2502e193f"


@pytest.fixture(autouse=True)
def drivers(monkeypatch: pytest.MonkeyPatch) -> hypervisor.Drivers:
    """Nothing is known yet."""
    known = hypervisor.Drivers()
    monkeypatch.setattr(hypervisor, "drivers", known)
    return known


@pytest.fixture
def silent(tmp_path: Path) -> str:
    """A daemon of a driver that is not running: its socket is not there."""
    return f"qemu+unix:///system?socket={tmp_path / 'socket'}"


def test_drivers_that_are_not_here_are_passed_over(silent: str) -> None:
    uris = [NOT_HERE, silent, HERE]
    found = hypervisor.observe(uris, KNOWN)
    assert found
    assert found.name == "test"
    assert hypervisor.observe(uris, uuid(1)) is None
    with pytest.raises(NoSuchDriver, match="nosuch"):
        hypervisor.observe([NOT_HERE], uuid(1))


def test_a_driver_that_answered_and_no_longer_does_may_have_the_guest(
    drivers: hypervisor.Drivers, silent: str
) -> None:
    """Not there would mean off, and be recorded as enforced, while it runs."""
    drivers.answers(silent)
    with pytest.raises(Unreachable) as raised:
        hypervisor.observe([silent, HERE], uuid(1))
    assert not isinstance(raised.value, NoSuchDriver)
    assert hypervisor.observe([silent, HERE], KNOWN)


def test_a_socket_at_which_nobody_listens_is_no_driver_that_is_not_here(tmp_path: Path) -> None:
    socket = tmp_path / "socket"
    socket.touch()
    with pytest.raises(Unreachable) as raised:
        hypervisor.observe([f"qemu+unix:///system?socket={socket}", HERE], uuid(1))
    assert not isinstance(raised.value, NoSuchDriver)


@pytest.mark.live
def test_only_libvirtds_own_word_is_remembered(
    drivers: hypervisor.Drivers, host: PrivateHost, silent: str
) -> None:
    xen = host.uri.replace("qemu+unix", "xen+unix")
    for _ in range(2):
        assert hypervisor.observe([xen, silent, host.uri], uuid(1)) is None
        assert drivers.is_absent(xen)
    assert not drivers.is_absent(silent)
    assert not drivers.is_absent(host.uri)
    drivers.look_again()
    assert not drivers.is_absent(xen)


@pytest.mark.live
def test_libvirtd_is_asked_once_for_a_driver_that_it_has_not(host: PrivateHost) -> None:
    """It logs an error each time."""
    said = host.outside("/var/log/libvirt/said")
    config = host.outside("/etc/libvirt/libvirtd.conf")
    config.write_text(f'{config.read_text()}log_outputs = "3:file:/var/log/libvirt/said"\n')
    host.restart_libvirtd()

    def questions() -> int:
        return said.read_text().count("no connection driver available for xen:///system")

    settings = SETTINGS.replace('["qemu:///system"]', '["qemu:///system", "xen:///system"]')
    with Daemon(host, f"{settings}[daemon]\ninterval = 1\n") as daemon:
        began = daemon.status()["looked"]
        wait_until(lambda: daemon.status()["looked"] >= began + 3, "it looks again and again")
        # The first look, and who waits for events; neither knows of the other.
        assert 1 <= questions() <= 3
        assert daemon.status()["libvirt_error"] == ""
        before = questions()
        host.restart_libvirtd()
        wait_until(lambda: questions() > before, "a new libvirtd is asked")
        wait_until(lambda: daemon.status()["libvirt"]["qemu:///system"], "it is connected")


class Question:
    """One that is not answered until it is let go."""

    def __init__(self) -> None:
        self.asked = 0
        self.let_go = threading.Event()

    def __call__(self) -> str:
        self.asked += 1
        assert self.let_go.wait(PATIENCE)
        return "answer"


@pytest.fixture
def question() -> Iterator[Question]:
    question = Question()
    yield question
    question.let_go.set()


def test_a_question_that_hangs_is_not_asked_a_second_time(question: Question) -> None:
    """Each would keep a thread and a connection, and libvirt may hang for days."""
    for _ in range(5):
        with pytest.raises(Unreachable):
            hypervisor.bounded(question, 0.05, "it")
    assert question.asked == 1
    assert hypervisor.bounded(lambda: "other", 1, "another") == "other"
    question.let_go.set()
    assert hypervisor.bounded(question, PATIENCE, "it") == "answer"


def test_no_more_threads_is_an_answer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(Unreachable, match="can't start new thread"):
        hypervisor.bounded(lambda: None)
