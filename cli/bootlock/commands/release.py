"""bootlock release."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bootlock import daemon, fleet, output, preservation, starting
from bootlock.actor import actor
from bootlock.app import (
    App,
    complete_hold,
    complete_instance,
    fleet_hold_option,
    json_option,
    pass_app,
    reason_option,
)
from bootlock.exits import Exit
from bootlockd.errors import Unreachable
from lockdb import holds
from lockdb.database import LockDB
from lockdb.enforcements import Enforcement, State
from lockdb.errors import NotFound, NotNow
from lockdb.values import Hold


@click.command()
@click.argument("hold", required=False, shell_complete=complete_hold)
@reason_option
@click.option(
    "--instance",
    shell_complete=complete_instance,
    help="With --all: release what holds this instance, by UUID or name.",
)
@click.option("--all", "release_all", is_flag=True, help="With --instance: every hold on it.")
@click.option(
    "--start", "start_it", is_flag=True, help="Then start it: from its saved RAM, if it has any."
)
@click.option(
    "--override-source",
    "override",
    is_flag=True,
    help="End it here, though a source decided it. If the source still has it, it comes back.",
)
@click.option(
    "--override",
    "override_retention",
    is_flag=True,
    help="End it before the date until which it is retained, if that is in governance mode.",
)
@click.option(
    "--discard",
    is_flag=True,
    help="Leave no link to preserved disks, though the instance was deleted meanwhile.",
)
@fleet_hold_option
@json_option
@pass_app
def release(
    app: App,
    hold: str | None,
    reason: str,
    instance: str | None,
    release_all: bool,
    start_it: bool,
    override: bool,
    override_retention: bool,
    discard: bool,
    in_fleet: bool,
    as_json: bool,
) -> int:
    """Release HOLD, an id or its unique beginning.

    Releasing one hold never releases another: an instance with two holds stays held. What the
    daemon did for it is undone when this returns; what was stopped stays off unless --start is
    given.

    Preserved disks are as before afterwards. If the instance was deleted meanwhile, its data would
    be lost with that: so the second names of its disks are left, and printed, unless --discard is
    given.

    A hold that a source decided (bootlock sync) is released there: exit code 4. One that is
    retained (bootlock retain) is not released before its date, 4 too: in governance mode only with
    --override, in compliance mode by nobody.

    \b
    Example:
      bootlock release 3f9c --reason "invoice paid"
      bootlock release --instance web-7 --all --reason "case closed"
    """
    if bool(hold) == bool(instance) or bool(instance) != release_all:
        raise click.UsageError("give a HOLD, or --instance together with --all")
    if in_fleet and (start_it or discard):
        raise click.UsageError("--start and --discard are for one host: not with --fleet")
    uuid = app.resolve(instance) if instance else None
    if in_fleet:
        return fleet.release(
            app, hold, uuid, reason=reason, override=override_retention, as_json=as_json
        )
    now = app.now()
    # Before anything is released: libvirt may not know it, or not answer.
    guest = starting.known_guest(app, uuid or _instance_of(app, hold)) if start_it else None
    with app.write() as lock_db, lock_db.write():
        ids = _holds_on(lock_db, uuid) if uuid else [holds.find(lock_db, hold or "").id]
        if not override:
            _only_of_here([holds.find(lock_db, hold_id) for hold_id in ids])
        released = [
            holds.release(
                lock_db, hold_id, reason=reason, by=actor(), now=now, override=override_retention
            )
            for hold_id in ids
        ]
        remaining = holds.active(lock_db, now=now, instance=released[0].instance)
        standing = daemon.standing(lock_db, released)
        if discard:
            preservation.discard(lock_db, released[0].instance, remaining)
    if not as_json:
        _print(released, remaining)
    standing, code = _undone(app, released, standing)
    if as_json:
        output.print_json([hold.as_dict() for hold in released])
    _tell_of_sources(released)
    if standing:
        left = "; ".join(daemon.described(row) for row in standing)
        output.note(f"released, but not undone by the daemon yet: {left}")
    if guest:
        return starting.start(guest, remaining, standing) or code
    return code


def _undone(
    app: App, released: Sequence[Hold], standing: list[Enforcement]
) -> tuple[list[Enforcement], Exit]:
    """Wait until both processes undid what they did; what is not undone."""
    kept = [row for row in standing if row.fence == preservation.FENCE]
    try:
        answer = daemon.settle(app.control, released[0].instance, [hold.id for hold in released])
        found = [row for row in answer.rows if row.state not in {State.LIFTED, State.NOT_HERE}]
        code = Exit.REFUSED
    except Unreachable:
        found = standing
        code = Exit.UNREACHABLE
    left = [row for row in found if row.fence != preservation.FENCE]
    if kept:
        unlifted = preservation.undone(app, released)
        if unlifted and not left:
            code = Exit.REFUSED if preservation.runs(app) else Exit.UNREACHABLE
        left += unlifted
    return left, code if left else Exit.DONE


def _tell_of_sources(released: Sequence[Hold]) -> None:
    for one in released:
        if one.ref is not None:
            output.note(
                f"the source {one.source} was not told: as long as it has {one.ref}, the next sync "
                "may place it again"
            )


def _instance_of(app: App, hold: str | None) -> str:
    with app.read() as lock_db:
        return holds.find(lock_db, hold or "").instance


def _holds_on(lock_db: LockDB, uuid: str) -> list[str]:
    ids = [hold.id for hold in holds.history(lock_db, instance=uuid) if hold.released_at is None]
    if not ids:
        raise NotFound(f"no hold on {uuid}", "see 'bootlock list'")
    return ids


def _only_of_here(found: Sequence[Hold]) -> None:
    """Nothing is released before all may be."""
    for hold in found:
        if hold.ref is not None and hold.released_at is None:
            raise NotNow(
                f"hold {hold.id} is decided by the source {hold.source}, as {hold.ref}",
                "release it there; released here it would be placed again by the next sync. "
                "'bootlock permit' lets one start through, --override-source is for a source that "
                "is gone",
            )


def _print(released: list[Hold], remaining: list[Hold]) -> None:
    for hold in released:
        click.echo(f"released {hold.id} on {hold.instance}")
    if remaining:
        ids = ", ".join(hold.id for hold in remaining)
        click.echo(f"the instance is still held by {ids}")
