"""bootlock permit."""

from __future__ import annotations

import click

from bootlock import daemon, fleetpermits, output
from bootlock.actor import actor
from bootlock.app import (
    App,
    complete_instance,
    complete_permit,
    fleet_option,
    json_option,
    no_wait_option,
    pass_app,
    reason_option,
    timeout_option,
)
from bootlock.exits import Exit
from bootlockd.errors import Unreachable
from lockdb import holds, permits
from lockdb.errors import InvalidValue
from lockdb.values import PERMIT_MAX, Operation, Permit
from lockdb.when import iso, parse_until


@click.command()
@click.argument("instance", required=False, shell_complete=complete_instance)
@click.option(
    "--op",
    "operation",
    metavar="OPERATION",
    type=click.Choice([op.value for op in Operation]),
    help=f"Which: {', '.join(Operation)}.",
)
@click.option("--for", "duration", metavar="WHEN", help="How long: 30m, 2h, or an ISO time.")
@click.option(
    "--revoke",
    metavar="PERMIT",
    shell_complete=complete_permit,
    help="End this permit now instead: its id.",
)
@no_wait_option
@fleet_option
@timeout_option
@reason_option
@json_option
@pass_app
def permit(
    app: App,
    instance: str | None,
    operation: str | None,
    duration: str | None,
    revoke: str | None,
    no_wait: bool,
    in_fleet: bool,
    timeout: int,
    reason: str,
    as_json: bool,
) -> int:
    """Let one operation of INSTANCE through for a while.

    It goes through whatever holds the instance, is recorded, and ends by itself, after 7 days at
    the latest. "migrate" lets an arriving migration in, with the start that it ends in. Root is
    refused nothing but these two; the others are for who is not root, where libvirt's access driver
    is on.

    It returns when this host's daemon has let go of what would stop the permitted start. With
    --fleet it is written to the registry instead, from where it comes to all hosts; it returns when
    all that live have taken it. Exit code 1: one of them has not.

    \b
    Example:
      bootlock permit web-7 --op start --for 30m --reason "disk image for the court"
      bootlock permit --revoke 81d0 --reason "done"
    """
    now = app.now()
    wait = 0 if no_wait else timeout
    if revoke:
        if instance or operation or duration:
            raise click.UsageError("--revoke takes no INSTANCE, --op or --for")
        if in_fleet:
            return fleetpermits.revoke(app, revoke, reason=reason, wait=wait, as_json=as_json)
        with app.write() as lock_db:
            granted = permits.revoke(lock_db, revoke, reason=reason, by=actor(), now=now)
    elif instance and operation and duration:
        until = parse_until("--for", duration, now)
        if until > now + PERMIT_MAX:
            raise InvalidValue("--for", "a permit lasts 7 days at most", "release the hold instead")
        uuid = app.resolve(instance)
        if in_fleet:
            op = Operation(operation)
            return fleetpermits.grant(
                app, uuid, op, until=until, reason=reason, wait=wait, as_json=as_json
            )
        with app.write() as lock_db:
            granted = permits.grant(
                lock_db,
                uuid,
                Operation(operation),
                until=until,
                reason=reason,
                by=actor(),
                now=now,
            )
    else:
        raise click.UsageError("give INSTANCE, --op and --for, or --revoke")
    if as_json:
        output.print_json(granted.as_dict())
    else:
        _print(granted)
    if no_wait:
        daemon.nudge(app.control)
        return Exit.DONE
    return _made_way(app, granted.instance)


def _made_way(app: App, instance: str) -> Exit:
    """Wait until the daemon let go of what would stop the permitted start, or took it again."""
    with app.read() as lock_db:
        held = holds.active(lock_db, now=app.now(), instance=instance)
        standing = daemon.standing(lock_db, held)
    try:
        answer = daemon.settle(app.control, instance, [hold.id for hold in held])
    except Unreachable as error:
        if not standing:
            return Exit.DONE
        output.note(f"recorded, but no daemon acts on it: {error}; {error.hint}")
        return Exit.UNREACHABLE
    for row in answer.failed:
        output.note(daemon.described(row))
    return Exit.DONE if answer.ended and not answer.failed else Exit.REFUSED


def _print(permit: Permit) -> None:
    if permit.revoked_at:
        click.echo(f"revoked permit {permit.id} on {permit.instance}")
    else:
        click.echo(
            f"permit {permit.id}: {permit.operation} of {permit.instance} "
            f"is let through until {iso(permit.until)}"
        )
