"""bootlock retain, and what place, release, show and list do with it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from clirunner import RUNNING, SHUT_OFF, Cli
from lockdb import witness
from lockdb.when import iso

DAY = 86400

#: bootlock with a wall clock that is ahead by the seconds in its first argument.
_SHIFTED = """
import sys, time
ahead, true = float(sys.argv.pop(1)), time.time
time.time = lambda: true() + ahead
from bootlock.main import main
sys.exit(main())
"""


def at(days: int) -> str:
    return iso(int(time.time()) + days * DAY)


@pytest.mark.parametrize("mode", ["governance", "compliance"])
def test_a_retained_hold_is_not_released(cli: Cli, mode: str) -> None:
    hold = cli.place(RUNNING, "--no-wait", "--retain-until", "30d", "--retention", mode)
    result = cli("release", hold, "--reason", "x")
    assert (result.exit, result.out) == (4, "")
    assert f"hold {hold} is retained until" in result.err
    assert mode in result.err
    result = cli("release", "--instance", RUNNING, "--all", "--reason", "x")
    assert result.exit == 4
    assert [one["id"] for one in cli.ok("list", "--json").json] == [hold]
    code = 0 if mode == "governance" else 4
    assert cli("release", hold, "--reason", "x", "--override").exit == code
    (shown,) = cli.ok("show", hold, "--json").json["holds"]
    assert shown["overridden"] is (mode == "governance")
    assert shown["retention"] == mode


def test_with_all_either_all_are_released_or_none(cli: Cli) -> None:
    free = cli.place(RUNNING, "--no-wait")
    kept = cli.place(RUNNING, "--no-wait", "--retain-until", "1h")
    assert cli("release", "--instance", RUNNING, "--all", "--reason", "x").exit == 4
    assert {one["id"] for one in cli.ok("list", "--json").json} == {free, kept}
    assert cli("release", free, "--reason", "x").exit == 0


def test_place_says_until_when(cli: Cli) -> None:
    out = cli.ok("place", SHUT_OFF, "--reason", "x", "--retain-until", "2099-01-01").out
    assert "retained until: 2099-01-01T00:00:00Z" in out
    assert "retention:      governance" in out


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--retention", "compliance"], "--retention needs a date"),
        (["--retain-until", "1d", "--until", "2d"], "does not end by itself"),
        (["--retain-until", "2020-01-01"], "is not in the future"),
        (["--retain-until", "2207-01-01"], "more than a hundred years away"),
        (["--retain-until", "soon"], "is not a time"),
        (["--retain-until", "1d", "--retention", "strict"], "'strict' is not one of"),
    ],
)
def test_what_place_refuses(cli: Cli, options: list[str], problem: str) -> None:
    result = cli("place", SHUT_OFF, "--reason", "x", *options)
    assert result.exit == 2
    assert problem in result.err
    assert cli.ok("list", "--all", "--json").json == []


def test_retain_puts_the_date_off_and_never_brings_it_forward(cli: Cli) -> None:
    hold = cli.place(SHUT_OFF)
    assert cli("retain", hold, "--mode", "compliance").exit == 2
    cli.ok("retain", hold[:6], "--until", "10d", "--reason", "asked for by the court")
    later = at(20)
    out = cli.ok("retain", hold, "--until", later, "--mode", "compliance").out
    assert out == f"hold {hold} is retained until {later} (compliance)\n"
    for less in (["--until", "5d"], ["--mode", "governance"]):
        result = cli("retain", hold, *less)
        assert result.exit == 4, result
    shown = cli.ok("retain", hold, "--until", later, "--json").json
    assert (shown["retain_until"], shown["retention"]) == (later, "compliance")
    said = [
        (entry["by"], entry["reason"])
        for entry in cli.ok("journal", "show", "--json").json
        if entry["event"] == "retained"
    ]
    assert [reason for _, reason in said] == ["asked for by the court", ""]
    assert cli.ok("journal", "verify")


@pytest.mark.parametrize("arguments", [[], ["--reason", "x"], ["--until", "1d", "--mode", "no"]])
def test_retain_says_what_is_missing(cli: Cli, arguments: list[str]) -> None:
    hold = cli.place(SHUT_OFF)
    assert cli("retain", hold, *arguments).exit == 2


def test_retain_of_what_is_not_there(cli: Cli) -> None:
    assert cli("retain", "abcdef", "--until", "1d").exit == 3
    hold = cli.place(SHUT_OFF)
    cli.ok("release", hold, "--reason", "x")
    assert cli("retain", hold, "--until", "1d").exit == 3
    ending = cli.place(SHUT_OFF, "--until", "2d")
    result = cli("retain", ending, "--until", "1d")
    assert result.exit == 2
    assert "place another one with --retain-until" in result.err


def test_the_clock_set_forward_and_back(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the whole program; that of the kernel's uptime is nobody's to set."""
    true, ahead, up = time.time, 0, 0
    look = witness.look
    monkeypatch.setattr(time, "time", lambda: true() + ahead)
    holds = {
        mode: cli.place(SHUT_OFF, "--retain-until", "30d", "--retention", mode)
        for mode in ("governance", "compliance")
    }
    for ahead in (31 * DAY, 400 * DAY, -400 * DAY, 31 * DAY, 0):  # noqa: B007 - the clock reads it
        for hold in holds.values():
            result = cli("release", hold, "--reason", "x")
            assert result.exit == 4, result
        assert cli("release", holds["compliance"], "--reason", "x", "--override").exit == 4
    ahead = 31 * DAY
    assert (
        "the clock says that this is over"
        in cli("release", holds["compliance"], "--reason", "x").err
    )
    # Now it has really passed.
    up = 31 * DAY

    def later() -> witness.Sight:
        sight = look()
        return witness.Sight(sight.boot, sight.up + up, synchronised=False)

    monkeypatch.setattr(witness, "look", later)
    for hold in holds.values():
        cli.ok("release", hold, "--reason", "x")


@pytest.mark.live
def test_time_that_the_kernel_says_has_passed(cli: Cli) -> None:
    """In other processes, with the wall clock set; in a time namespace with a longer uptime."""
    hold = cli.place(SHUT_OFF, "--retain-until", "30d", "--retention", "compliance")

    def released(ahead: int, up: int) -> int:
        program = [sys.executable, "-c", _SHIFTED, str(ahead), "--database", str(cli.path)]
        program = ["unshare", "--time", "--boottime", str(up), "--", *program]
        release = ["release", hold, "--reason", "x"]
        return subprocess.run([*program, *release], capture_output=True, check=False).returncode

    assert released(31 * DAY, 0) == 4
    assert released(0, 31 * DAY) == 4
    assert released(31 * DAY, 31 * DAY) == 0


def test_a_permit_lets_one_start_through_in_compliance_mode_too(cli: Cli) -> None:
    cli.place(SHUT_OFF, "--retain-until", "30d", "--retention", "compliance")
    assert cli("check", SHUT_OFF).exit == 1
    cli("permit", SHUT_OFF, "--op", "start", "--for", "10m", "--reason", "an image for the court")
    assert cli("check", SHUT_OFF).exit == 0
    events = [entry["event"] for entry in cli.ok("journal", "show", "--json").json]
    assert "permitted" in events
