"""What the commands make of a daemon's answers: from one that says what the test tells it to."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bootlock import daemon as asked
from bootlock.doctor.daemon import daemon, enforced, metrics
from bootlock.doctor.finding import Finding, Level, Patient
from clirunner import RUNNING, Cli
from lockdb import database, enforcements
from lockdb.enforcements import Enforcement, State

WELL = {
    "holds": 1,
    "looked": 1,
    "stuck": [],
    "vanished": [],
    "database_error": "",
    "libvirt_error": "",
}


class Scripted:
    """Gives the same answers to whoever connects, and notes the questions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: list[Any] = []
        self.questions: list[Any] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:  # stopped
                return
            with link, link.makefile("rb") as lines:
                self.questions.append(json.loads(lines.readline()))
                for answer in self.answers:
                    link.sendall(json.dumps(answer).encode() + b"\n")


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    scripted = Scripted(tmp_path / "control")
    monkeypatch.setenv("BOOTLOCK_CONTROL", str(scripted.path))
    yield scripted
    scripted.stop()


def answer(*states: tuple[str, str, str], final: bool = True, known: bool = True) -> dict[str, Any]:
    rows = [
        Enforcement("h", fence, RUNNING, State(state), detail, 1, 1).as_dict()
        for fence, state, detail in states
    ]
    return {"known": known, "rows": rows, "treated": final, "final": final}


DESTROY = ("place", "web", "--reason", "r", "--on-running", "destroy")


def test_what_is_enforced_is_printed_fence_by_fence(cli: Cli, scripted: Scripted) -> None:
    scripted.answers = [
        answer(("power", "pending", "asked"), final=False),
        answer(("network", "enforced", "cut"), ("power", "enforced", "off")),
    ]
    result = cli.ok(*DESTROY)
    assert result.out.endswith("\nnetwork: cut\npower: off\n")
    assert result.err == ""
    (question,) = scripted.questions
    assert (question["op"], question["instance"]) == ("enforce", RUNNING)
    assert f"hold:     {question['hold']}\n" in result.out


def test_json_has_the_rows(cli: Cli, scripted: Scripted) -> None:
    scripted.answers = [answer(("power", "enforced", "off"))]
    (row,) = cli.ok(*DESTROY, "--json").json["enforcement"]
    assert (row["fence"], row["state"], row["detail"]) == ("power", "enforced", "off")


def test_a_failure_is_exit_code_1_and_its_detail_drives_no_terminal(
    cli: Cli, scripted: Scripted
) -> None:
    scripted.answers = [answer(("power", "failed", "\x1b[2Jhung"), ("network", "enforced", "cut"))]
    result = cli(*DESTROY)
    assert result.exit == 1
    assert "power: FAILED: ?[2Jhung\n" in result.out
    assert "not enforced: power; the daemon tries again" in result.err


def test_what_takes_too_long_is_left_to_the_daemon(
    cli: Cli, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "ORDER_LIMIT", -1.0)
    scripted.answers = [answer(("power", "pending", "asked"), final=False)]
    result = cli(*DESTROY)
    assert result.exit == 1
    assert "still under way, the daemon goes on with it; 'bootlock show" in result.err


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([], "the daemon ended"),
        ([{"error": "no such op"}], "no such op"),
        ([answer(known=False)], "the daemon reads another database"),
    ],
)
def test_a_daemon_that_does_not_know_the_hold_is_none(
    cli: Cli, scripted: Scripted, answers: list[Any], why: str
) -> None:
    scripted.answers = answers
    result = cli(*DESTROY)
    assert result.exit == 6
    assert "web still runs: no daemon on this host carries out destroy" in result.err
    assert why in result.err


def test_no_wait_only_wakes_it(cli: Cli, scripted: Scripted) -> None:
    scripted.answers = [{"read": True}]
    assert cli.ok(*DESTROY, "--no-wait", "--json").json["enforcement"] is None
    assert scripted.questions == [{"op": "wake"}]


def test_release_tells_what_is_not_undone(cli: Cli, scripted: Scripted) -> None:
    scripted.answers = [answer(("network", "enforced", "cut"))]
    hold = cli.place("web")
    row = Enforcement(hold, "network", RUNNING, State.FAILED, "no such link", 1, 1).as_dict()
    scripted.answers = [{"known": True, "rows": [row], "treated": True, "final": True}]
    result = cli("release", hold, "--reason", "r")
    assert result.exit == 1
    assert "not undone by the daemon yet: network: FAILED: no such link" in result.err
    assert cli("check", "web").exit == 0


def test_release_without_the_daemon_that_enforced_is_exit_code_6(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BOOTLOCK_CONTROL", str(tmp_path / "none"))
    first, second = cli.place("web"), cli.place("web")
    with database.open_db(cli.path) as lock_db:
        row = Enforcement(first, "network", RUNNING, State.ENFORCED, "cut", 1, 1)
        enforcements.record(lock_db, [row])
    assert cli("permit", "web", "--op", "start", "--for", "1h", "--reason", "r").exit == 6
    assert cli("release", first, "--reason", "r").exit == 6
    assert cli("release", second, "--reason", "r").exit == 0


def patient(cli: Cli, control: Path, *units: Path) -> Patient:
    return Patient([cli.uri], 5, database=cli.path, control=control, units=units, systemd=Path("/"))


def only(findings: Iterator[Finding]) -> tuple[Level, str, str]:
    (finding,) = findings
    return finding.level, finding.check, finding.detail


def test_doctor_notes_that_there_is_none_and_calls_a_dead_one_a_fault(
    cli: Cli, tmp_path: Path
) -> None:
    level, _, detail = only(daemon(patient(cli, tmp_path / "none")))
    assert level is Level.NOTE
    assert "nothing is done to instances that run" in detail
    unit = tmp_path / "bootlockd.service"
    unit.touch()
    assert only(daemon(patient(cli, tmp_path / "none", unit)))[0] is Level.FAULT
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left"))
    assert only(daemon(patient(cli, tmp_path / "left")))[0] is Level.FAULT


def test_doctor_notes_metrics_that_nobody_serves(cli: Cli, tmp_path: Path) -> None:
    unit, settings = tmp_path / "bootlock-metrics.service", tmp_path / "bootlock.toml"
    here = replace(patient(cli, tmp_path / "none"), metrics_units=[unit], settings=settings)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        settings.write_text(f'metrics.listen = "127.0.0.1:{server.getsockname()[1]}"')
        # Not installed: nobody is to serve them.
        assert list(metrics(here)) == []
        unit.touch()
        assert only(metrics(here))[0] is Level.NOTE
        server.listen()
        assert only(metrics(here))[0] is Level.OK
    settings.write_text("metrics.listen = 3")
    assert only(metrics(here))[0] is Level.NOTE
    settings.write_text('metrics.listen = ""')
    assert list(metrics(here)) == []


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"stuck": ["u"]}, "daemon: stuck"),
        ({"vanished": ["h"]}, "daemon: vanished"),
        ({"database_error": "e"}, "daemon: database"),
        ({"libvirt_error": "e"}, "daemon: libvirt"),
    ],
)
def test_doctor_names_what_ails_the_daemon(
    cli: Cli, scripted: Scripted, change: dict[str, Any], check: str
) -> None:
    scripted.answers = [WELL | {"database": str(cli.path)}]
    assert only(daemon(patient(cli, scripted.path)))[0] is Level.OK
    scripted.answers = [WELL | {"database": str(cli.path)} | change]
    level, named, _ = only(daemon(patient(cli, scripted.path)))
    assert (level, named) == (Level.FAULT, check)


@pytest.mark.parametrize("answers", [[], [{"error": "x"}], [3], [WELL, WELL]])
def test_doctor_calls_nonsense_a_fault(cli: Cli, scripted: Scripted, answers: list[Any]) -> None:
    scripted.answers = answers
    assert only(daemon(patient(cli, scripted.path)))[0] is Level.FAULT


def test_doctor_finds_each_enforcement_that_failed(cli: Cli, tmp_path: Path) -> None:
    hold = cli.place("web")
    with database.open_db(cli.path) as lock_db:
        row = Enforcement(hold, "power", RUNNING, State.FAILED, "hung", 1, 1)
        enforcements.record(lock_db, [row])
    level, _, detail = only(enforced(patient(cli, tmp_path)))
    assert level is Level.FAULT
    assert detail == f"power of {RUNNING}, hold {hold}, since 1970-01-01T00:00:01Z: hung"
    assert cli("status").exit == 1
    assert "power: FAILED: hung (last seen so 1970" in cli.ok("show", "web").out


def test_the_daemon_is_asked_where_its_settings_say(cli: Cli, tmp_path: Path) -> None:
    settings = tmp_path / "mine.toml"
    settings.write_text(f'[daemon]\ncontrol_socket = "{tmp_path}/nobody"\n')
    placed = cli("--config", str(settings), "place", RUNNING, "--reason", "a", "--isolate")
    assert placed.exit == 6
    assert f"{tmp_path}/nobody" in placed.err
