"""The control socket: its answers, and what it makes of questions that are none."""

from __future__ import annotations

import errno
import grp
import json
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from bootlockd import control, hypervisor
from bootlockd.control import ControlSocket, ask
from bootlockd.cycle import Cycle
from bootlockd.errors import BootlockdError, Unreachable
from daemon.fakes import FakeFence, guest, place, release, settings, turning, uuid
from waiting import PATIENCE, wait_until


def _status(cycle: Cycle) -> dict[str, Any]:
    return {"holds": len(cycle.holds)}


@pytest.fixture
def fence() -> FakeFence:
    return FakeFence()


@pytest.fixture
def cycle(lock_db: Path, fence: FakeFence, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cycle]:
    monkeypatch.setattr(hypervisor, "observe", lambda _uris, instance, _=0: guest(instance))
    monkeypatch.setattr(hypervisor, "guests", lambda *_: {})
    monkeypatch.setattr(hypervisor, "definition_of", lambda *_: None)
    with turning(settings(lock_db), [fence]) as cycle:
        yield cycle


@pytest.fixture
def path(cycle: Cycle, tmp_path: Path) -> Iterator[Path]:
    served = ControlSocket(tmp_path / "c", cycle, _status)
    served.start()
    yield tmp_path / "c"
    served.stop()


def test_a_connection_that_can_not_be_taken_is_not_the_last(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short of descriptors for a moment, it was deaf for ever."""
    monkeypatch.setattr(control, "RETRY", 0.01)
    accept = socket.socket.accept
    failed: list[socket.socket] = []

    def accept_or_not(listener: socket.socket) -> Any:
        link, address = accept(listener)
        if len(failed) < 2:
            failed.append(link)
            link.close()
            raise OSError(errno.EMFILE, "Too many open files")
        return link, address

    monkeypatch.setattr(socket.socket, "accept", accept_or_not)
    # The thread is in the old one until somebody comes.
    for _ in range(3):
        say(path, b'{"op": "status"}\n')
    assert json.loads(say(path, b'{"op": "status"}\n')) == {"holds": 0}
    assert len(failed) == 2


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


def test_without_the_group_only_root_may_connect(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


#: A group that every machine has, in the place of ours, and a user who is not in it.
_GROUP = "daemon"
_NOBODY = 65534
_SAYS = (
    "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
    "s.sendall(sys.argv[2].encode() + b'\\n'); print(s.recv(65536).decode())"
)


@pytest.fixture
def shared(cycle: Cycle, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A socket that a group may use, in a directory that everybody may enter."""
    monkeypatch.setattr(control, "GROUP", _GROUP)
    with TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        served = ControlSocket(Path(directory, "c"), cycle, _status)
        served.start()
        yield Path(directory, "c")
        served.stop()


def say_as_nobody(path: Path, words: str, group: int) -> subprocess.CompletedProcess[str]:
    """What a user without any power hears who is in ``group``."""
    powerless = ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
    who = [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", f"--groups={group}", *powerless]
    command = ["setpriv", *who, "/usr/bin/python3", "-I", "-c", _SAYS, str(path), words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_group_hears_the_status(shared: Path) -> None:
    said = say_as_nobody(shared, '{"op": "status"}', grp.getgrnam(_GROUP).gr_gid)
    assert json.loads(said.stdout) == {"holds": 0}, said.stderr


@pytest.mark.parametrize("op", ["wake", "enforce", "settle", "", "sync"])
def test_the_group_can_make_the_daemon_do_nothing(
    shared: Path, lock_db: Path, fence: FakeFence, op: str
) -> None:
    for _ in range(2):  # the second answer comes after the first look
        list(ask(shared, {"op": "status"}, PATIENCE))
    hold = place(lock_db, uuid(1))
    words = json.dumps({"op": op, "instance": uuid(1), "hold": hold.id})
    said = say_as_nobody(shared, words, grp.getgrnam(_GROUP).gr_gid)
    assert json.loads(said.stdout) == {"error": "only root may ask for more than the status"}
    # It did not even read the holds.
    assert list(ask(shared, {"op": "status"}, PATIENCE)) == [{"holds": 0}]
    assert fence.calls == []


def test_nobody_else_can_connect(shared: Path) -> None:
    said = say_as_nobody(shared, '{"op": "status"}', _NOBODY)
    assert "PermissionError" in said.stderr


def test_many_who_may_only_ask_keep_root_from_nothing(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = [_NOBODY]
    monkeypatch.setattr(control, "_user", lambda _link: who[-1])
    with ExitStack() as links:
        for _ in range(control.OTHERS_MAX):
            links.enter_context(socket.socket(socket.AF_UNIX)).connect(str(shared))
        assert say(shared, b'{"op": "status"}\n') == b""
        who.append(0)
        assert list(ask(shared, {"op": "status"}, PATIENCE)) == [{"holds": 0}]
    who.append(_NOBODY)
    wait_until(lambda: say(shared, b'{"op": "status"}\n') != b"", "their turn comes again")


@pytest.mark.parametrize(("inherits", "mode"), [(False, 0o600), (True, 0o660)])
def test_without_the_power_to_chown_the_directory_must_hand_down_the_group(
    cycle: Cycle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inherits: bool, mode: int
) -> None:
    """As bootlockd.service runs it; and it serves root in any case."""

    def forbidden(*_: object) -> None:
        raise PermissionError("not without CAP_CHOWN")

    if inherits:
        shutil.chown(tmp_path, group=_GROUP)
        tmp_path.chmod(0o2755)
    monkeypatch.setattr(control, "GROUP", _GROUP)
    monkeypatch.setattr("os.chown", forbidden)
    served = ControlSocket(tmp_path / "mine", cycle, _status)
    served.start()
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == mode
    assert list(ask(tmp_path / "mine", {"op": "status"}, PATIENCE)) == [{"holds": 0}]
    served.stop()


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
