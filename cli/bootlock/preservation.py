"""What the commands have to do with preserved disks: wait for them, describe them.

They are kept by a process of its own, which has no socket: it reads its orders in the database, and
writes there what it did. Whether it runs is seen by its lock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from bootlock import output
from bootlock.app import App
from bootlock.daemon import Answer
from bootlockd import running
from lockdb import enforcements, preserved
from lockdb.database import LockDB
from lockdb.enforcements import Enforcement, State
from lockdb.preserved import Preserved, Stage
from lockdb.values import Hold

#: Its rows' name.
FENCE = "preserve"

#: Seconds that it may take: it looks within one, and has to ask libvirt.
PATIENCE = 60.0
#: Seconds between two looks at its rows.
POLL = 0.1

_NOBODY = "bootlock-preserve.service does not run on this host"


def carried_out(app: App, hold: Hold, answer: Answer | None) -> Answer | None:
    """Wait until the disks are kept, or can't be; what both processes did. None: nobody does it."""
    others = [row for row in answer.rows if row.fence != FENCE] if answer else []
    ended = answer.ended if answer else True
    deadline = time.monotonic() + PATIENCE
    while True:
        with app.read() as lock_db:
            rows = [row for row in enforcements.of_hold(lock_db, hold.id) if row.fence == FENCE]
        if rows and rows[0].state.is_final:
            return Answer([*others, *rows], ended)
        if not runs(app):
            output.note(f"its disks are not preserved: {_NOBODY}")
            return None
        if time.monotonic() > deadline:
            return Answer([*others, *rows], ended=False)
        time.sleep(POLL)


def undone(app: App, released: Sequence[Hold]) -> list[Enforcement]:
    """Wait until what these holds kept is as before, say what is left; the rows of what is not."""
    deadline = time.monotonic() + PATIENCE
    ended = released[0].released_at or 0
    while True:
        with app.read() as lock_db:
            found = [row for hold in released for row in enforcements.of_hold(lock_db, hold.id)]
            left = [
                row
                for row in preserved.of_instance(lock_db, released[0].instance)
                if row.stage is Stage.LEFT
            ]
        rows = [row for row in found if row.fence == FENCE]
        rows = [row for row in rows if row.state not in {State.LIFTED, State.NOT_HERE}]
        # One from before the release says nothing of its undo.
        failed = [row for row in rows if row.state is State.FAILED and row.at > ended]
        if not rows or failed or time.monotonic() > deadline:
            break
        if not runs(app):
            output.note(f"its disks stay as they are: {_NOBODY}")
            break
        time.sleep(POLL)
    for row in left:
        output.note(
            f"it was deleted meanwhile: what was {row.path!r} is kept as {row.link!r}; "
            "remove that when nobody needs it"
        )
    return rows


def discard(lock_db: LockDB, instance: str, remaining: Sequence[Hold]) -> None:
    """In the transaction of its release: leave nothing, unless it is still to be preserved."""
    if any(hold.preserve for hold in remaining):
        output.note("nothing is discarded: another hold preserves its disks")
    else:
        preserved.discard(lock_db.db, instance)


def described(row: Preserved) -> str:
    """A row in one line."""
    words = {
        Stage.INTENDED: "about to be kept",
        Stage.KEPT: "kept",
        Stage.LEFT: f"left as {row.link}",
        Stage.ENDED: "no longer kept",
    }
    line = f"preserved {row.role} {row.path}: {words[row.stage]}"
    if not row.has_content:
        return line
    if row.sha256:
        return f"{line}, {row.size} bytes, sha256 {row.sha256} at {output.moment(row.digested_at)}"
    return f"{line}, digest {percent(row.hashed, row.size)}" if row.stands else line


def percent(part: int, whole: int | None) -> str:
    """As ``41 %``."""
    return f"{100 * part // whole if whole else 0} %"


def runs(app: App) -> bool:
    """The process that preserves by this database."""
    # Who may write holds may read its lock.
    return bool(running.is_running(running.lock_of(app.database)))
