"""bootlock release."""

from __future__ import annotations

import click

from bootlock import output
from bootlock.actor import actor
from bootlock.app import (
    App,
    complete_hold,
    complete_instance,
    json_option,
    pass_app,
    reason_option,
)
from lockdb import holds
from lockdb.database import LockDB
from lockdb.errors import NotFound
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
@json_option
@pass_app
def release(
    app: App, hold: str | None, reason: str, instance: str | None, release_all: bool, as_json: bool
) -> None:
    """Release HOLD, an id or its unique beginning.

    Releasing one hold never releases another: an instance with two holds stays held.

    \b
    Example:
      bootlock release 3f9c --reason "invoice paid"
      bootlock release --instance web-7 --all --reason "case closed"
    """
    if bool(hold) == bool(instance) or bool(instance) != release_all:
        raise click.UsageError("give a HOLD, or --instance together with --all")
    uuid = app.resolve(instance) if instance else None
    now = app.now()
    with app.write() as lock_db, lock_db.write():
        ids = _holds_on(lock_db, uuid) if uuid else [holds.find(lock_db, hold or "").id]
        released = [
            holds.release(lock_db, hold_id, reason=reason, by=actor(), now=now) for hold_id in ids
        ]
        remaining = holds.active(lock_db, now=now, instance=released[0].instance)
    if as_json:
        output.print_json([hold.as_dict() for hold in released])
    else:
        _print(released, remaining)


def _holds_on(lock_db: LockDB, uuid: str) -> list[str]:
    ids = [hold.id for hold in holds.history(lock_db, instance=uuid) if hold.released_at is None]
    if not ids:
        raise NotFound(f"no hold on {uuid}", "see 'bootlock list'")
    return ids


def _print(released: list[Hold], remaining: list[Hold]) -> None:
    for hold in released:
        click.echo(f"released {hold.id} on {hold.instance}")
    if remaining:
        ids = ", ".join(hold.id for hold in remaining)
        click.echo(f"the instance is still held by {ids}")
