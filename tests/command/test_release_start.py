"""``release --start``: what is held by nothing more is started; what can't be says why."""

from clirunner import RUNNING, SHUT_OFF, Cli

UNKNOWN = "99999999-9999-4999-8999-999999999999"


def release(cli: Cli, hold: str, *options: str) -> tuple[int, str]:
    done = cli("release", hold, "--reason", "paid", "--start", *options)
    return done.exit, done.err


def test_a_released_instance_is_started(cli: Cli) -> None:
    hold = cli.place(SHUT_OFF)
    code, said = release(cli, hold)
    assert (code, said) == (0, "")
    assert cli.ok("list", "--json").json == []


def test_what_is_still_held_is_released_and_not_started(cli: Cli) -> None:
    first, second = cli.place(SHUT_OFF), cli.place(SHUT_OFF)
    code, said = release(cli, first)
    assert code == 1
    assert "still held" in said
    assert [hold["id"] for hold in cli.ok("list", "--json").json] == [second]


def test_what_libvirt_does_not_start_is_released(cli: Cli) -> None:
    """It runs already."""
    hold = cli.place(RUNNING)
    code, said = release(cli, hold)
    assert code == 1
    assert "not started" in said
    assert cli.ok("list", "--json").json == []


def test_of_an_instance_that_is_not_here_nothing_is_released(cli: Cli) -> None:
    hold = cli.place(UNKNOWN)
    code, said = release(cli, hold)
    assert code == 3
    assert UNKNOWN in said
    assert [held["id"] for held in cli.ok("list", "--json").json] == [hold]
