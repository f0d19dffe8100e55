"""What the commands ask of the daemon: to carry a hold out, to undo it, how it is.

The hold itself needs no daemon: it is in the database before anything is asked here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bootlock.output import printable
from bootlockd.config import Config, load
from bootlockd.control import ask
from bootlockd.errors import ConfigError, Unreachable
from lockdb import enforcements
from lockdb.database import LockDB
from lockdb.enforcements import Enforcement, State
from lockdb.values import Hold, OnRunning

#: Seconds of silence after which the daemon is taken for dead: it says something each second.
SILENCE = 15.0
#: Seconds that an order may take beside a grace; and one that writes a guest's memory to disk.
ORDER_LIMIT = 60.0
SAVE_LIMIT = 600.0


@dataclass(frozen=True)
class Answer:
    """What the daemon said last. ``ended``: it did all it will do for now."""

    rows: Sequence[Enforcement]
    ended: bool

    @property
    def failed(self) -> list[Enforcement]:
        """What is not as ordered."""
        return [row for row in self.rows if row.state is State.FAILED]


def settings(path: Path) -> Config:
    """The daemon's settings, as far as they can be read."""
    try:
        return load(path)
    except ConfigError:
        return Config()


def control_socket(path: Path) -> Path:
    """Where the daemon with these settings listens."""
    return settings(path).daemon.control_socket


def carry_out(path: Path, hold: Hold) -> Answer:
    """Wait until the hold's orders are carried out, or have failed. Raises Unreachable."""
    grace = float(hold.grace) if hold.on_running is OnRunning.SHUTDOWN else 0.0
    limit = SAVE_LIMIT if hold.on_running is OnRunning.MANAGED_SAVE else ORDER_LIMIT
    question = {"op": "enforce", "hold": hold.id, "instance": hold.instance}
    return _follow(path, question, grace, grace + limit, lambda said: bool(said["final"]))


def settle(path: Path, instance: str, holds: Sequence[str]) -> Answer:
    """Wait until what these holds did and no longer order is undone. Raises Unreachable."""

    def ended(said: dict[str, Any]) -> bool:
        rows = [row for row in said["rows"] if row["hold"] in holds]
        return said["treated"] and all(State(row["state"]).is_final for row in rows)

    question = {"op": "settle", "instance": instance}
    answer = _follow(path, question, 0.0, ORDER_LIMIT, ended)
    return Answer([row for row in answer.rows if row.hold in holds], answer.ended)


def nudge(path: Path) -> None:
    """Have the holds read now; if no daemon answers, nothing is lost."""
    with suppress(Unreachable):
        list(ask(path, {"op": "wake"}, 2.0))


def standing(lock_db: LockDB, holds: Sequence[Hold]) -> list[Enforcement]:
    """What was done for these holds and is not undone."""
    rows = [row for hold in holds for row in enforcements.of_hold(lock_db, hold.id)]
    return [row for row in rows if row.state not in {State.LIFTED, State.NOT_HERE}]


def described(row: Enforcement) -> str:
    """A row in one line, as ``power: off``."""
    words = {
        State.ENFORCED: row.detail or "enforced",
        State.PENDING: row.detail or "under way",
        State.FAILED: f"FAILED: {row.detail}",
        State.LIFTED: f"lifted{', ' * bool(row.detail)}{row.detail}",
        State.NOT_HERE: row.detail or "not on this host",
    }
    return f"{row.fence}: {words[row.state]}"


def print_rows(rows: Sequence[Enforcement]) -> None:
    """The lines about what is on this host."""
    for row in rows:
        if row.state is not State.NOT_HERE:
            click.echo(printable(described(row)))


def _follow(
    path: Path,
    question: dict[str, Any],
    grace: float,
    limit: float,
    ended: Callable[[dict[str, Any]], bool],
) -> Answer:
    began = time.monotonic()
    rows: list[Enforcement] = []
    progress = _Progress(grace)
    try:
        for said in ask(path, question, SILENCE):
            if "rows" not in said or not said["known"]:
                raise Unreachable(
                    f"{path}: {said.get('error', 'the daemon reads another database')}",
                    "see 'bootlock doctor'",
                )
            rows = [Enforcement(**row | {"state": State(row["state"])}) for row in said["rows"]]
            if ended(said):
                return Answer(rows, True)
            elapsed = time.monotonic() - began
            if elapsed > limit:
                return Answer(rows, False)
            progress.show(rows, elapsed)
    finally:
        progress.clear()
    raise Unreachable(f"{path}: the daemon ended", "see 'journalctl -u bootlockd'")


class _Progress:
    """One line on the terminal that is written over."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._on = sys.stderr.isatty()

    def show(self, rows: Sequence[Enforcement], elapsed: float) -> None:
        if self._on:
            pending = [described(row) for row in rows if row.state is State.PENDING]
            what = "; ".join(pending) or "under way"
            of = f" of {self._grace:.0f} s" if self._grace else ""
            click.echo(f"\r\x1b[K{printable(what)}, {elapsed:.0f} s{of}", err=True, nl=False)

    def clear(self) -> None:
        if self._on:
            click.echo("\r\x1b[K", err=True, nl=False)
