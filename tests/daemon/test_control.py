"""The control socket: its answers, and what it makes of questions that are none."""

from __future__ import annotations

import json
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bootlockd import control, hypervisor
from bootlockd.control import ControlSocket, ask
from bootlockd.cycle import Cycle
from bootlockd.errors import BootlockdError, Unreachable
from daemon.fakes import FakeFence, guest, place, release, settings, turning, uuid
from privatehost import PATIENCE, wait_until


def _status(cycle: Cycle) -> dict[str, Any]:
    return {"holds": len(cycle.holds)}


@pytest.fixture
def fence() -> FakeFence:
    return FakeFence()


@pytest.fixture
def path(
    lock_db: Path, tmp_path: Path, fence: FakeFence, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    monkeypatch.setattr(hypervisor, "observe", lambda _uris, instance, _=0: guest(instance))
    monkeypatch.setattr(hypervisor, "guests", lambda *_: {})
    monkeypatch.setattr(hypervisor, "definition_of", lambda *_: None)
    with turning(settings(lock_db), [fence]) as cycle:
        served = ControlSocket(tmp_path / "c", cycle, _status)
        served.start()
        yield tmp_path / "c"
        served.stop()


def say(path: Path, words: bytes) -> bytes:
    """Send bytes, whatever they are; all that comes back."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(PATIENCE)
        link.connect(str(path))
        try:
            link.sendall(words)
            link.shutdown(socket.SHUT_WR)
        except OSError:  # it has heard enough
            pass
        answer = b""
        try:
            while part := link.recv(4096):
                answer += part
        except ConnectionResetError:
            pass
        return answer


def test_only_root_may_connect(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"\n",
        b"\xff\xfe\x00\n",
        b"[]\n",
        b"3\n",
        b"null\n",
        b'{"op": ["status"]}\n',
        b'{"op": "rm -rf /"}\n',
        b'{"op": "enforce"}\n',
        b'{"op": "enforce", "instance": "$(id)", "hold": 3}\n',
        b'{"op": "settle", "instance": {"a": 1}}\n',
        b"[" * 4000 + b"\n",
        b'{"op": "' + b"a" * 100_000,
    ],
    ids=lambda words: words[:30].decode("ascii", "replace"),
)
def test_what_is_no_question_gets_an_error_and_harms_nobody(path: Path, words: bytes) -> None:
    answer = say(path, words)
    # Of too long a line the rest was not read, so the answer may be lost.
    assert set(json.loads(answer)) == {"error"} if answer else len(words) > control.LINE_MAX
    assert list(ask(path, {"op": "status"}, PATIENCE)) == [{"holds": 0}]


def test_who_says_nothing_keeps_nobody_waiting(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path))
        assert list(ask(path, {"op": "status"}, PATIENCE)) == [{"holds": 0}]


def test_enforce_ends_with_what_came_of_it(path: Path, lock_db: Path) -> None:
    hold = place(lock_db, uuid(1))
    answers = list(ask(path, {"op": "enforce", "hold": hold.id, "instance": uuid(1)}, PATIENCE))
    assert answers[-1]["final"]
    assert answers[-1]["known"]
    assert [row["state"] for row in answers[-1]["rows"]] == ["enforced"]


def test_enforce_of_a_hold_that_is_not_there_says_so(path: Path) -> None:
    *_, last = ask(path, {"op": "enforce", "hold": "f" * 16, "instance": uuid(1)}, PATIENCE)
    assert (last["known"], last["rows"], last["final"]) == (False, [], True)


def test_settle_ends_when_the_release_is_undone(
    path: Path, lock_db: Path, fence: FakeFence
) -> None:
    hold = place(lock_db, uuid(1))
    list(ask(path, {"op": "settle", "instance": uuid(1)}, PATIENCE))
    assert fence.up == {uuid(1)}
    release(lock_db, hold)
    *_, last = ask(path, {"op": "settle", "instance": uuid(1)}, PATIENCE)
    assert [row["state"] for row in last["rows"]] == ["lifted"]
    assert not fence.up


def test_who_waits_hears_each_second_and_two_may_wait(
    path: Path, lock_db: Path, fence: FakeFence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "BEAT", 0.1)
    fence.acts[uuid(1)] = "hang"
    hold = place(lock_db, uuid(1))
    heard: list[list[dict[str, Any]]] = [[], []]

    def collect(into: list[dict[str, Any]]) -> None:
        for answer in ask(path, {"op": "enforce", "hold": hold.id, "instance": uuid(1)}, PATIENCE):
            into.append(answer)

    threads = [threading.Thread(target=collect, args=[into]) for into in heard]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(len(into) >= 3 for into in heard), "both hear that it goes on")
    assert not any(answer["final"] for into in heard for answer in into)
    fence.let_go.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert all(into[-1]["final"] for into in heard)


def test_who_leaves_is_not_waited_for(
    path: Path, lock_db: Path, fence: FakeFence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "BEAT", 0.05)
    fence.acts[uuid(1)] = "hang"
    hold = place(lock_db, uuid(1))
    before = threading.active_count()
    for _ in ask(path, {"op": "enforce", "hold": hold.id, "instance": uuid(1)}, PATIENCE):
        break
    # The instance's own job is the one thread more.
    wait_until(lambda: threading.active_count() <= before + 1, "its thread ends")


def test_nobody_there_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(Unreachable):
        list(ask(tmp_path / "none", {"op": "status"}, PATIENCE))


def test_what_a_killed_daemon_left_is_replaced_and_a_running_one_is_not(
    path: Path, tmp_path: Path, lock_db: Path
) -> None:
    cycle = Cycle(settings(lock_db), [])
    with pytest.raises(BootlockdError, match="another bootlockd answers there"):
        ControlSocket(path, cycle, _status).start()
    dead = tmp_path / "dead"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(dead))
    served = ControlSocket(dead, cycle, _status)
    served.start()
    served.stop()
    assert not dead.exists()
