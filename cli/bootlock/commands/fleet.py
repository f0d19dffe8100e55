"""bootlock fleet status, hosts, permits, accept, restore and prune."""

from __future__ import annotations

import click

from bootlock import fleet as work
from bootlock import fleetpermits, fleetprune, output
from bootlock.actor import actor
from bootlock.app import App, json_option, pass_app, reason_option
from bootlock.exits import Exit
from bootlockd.fleet.facts import SOURCE
from bootlockd.fleet.history import standing_of
from lockdb import epochs, holds, sources
from lockdb.errors import NotFound
from lockdb.when import parse_since


@click.group()
def fleet() -> None:
    """Show where holds are in force, and how the hosts of the fleet are.

    \b
    Example:
      bootlock fleet status 3f9c
      bootlock fleet hosts
    """


@fleet.command()
@click.argument("hold", required=False)
@json_option
@pass_app
def status(app: App, hold: str | None, as_json: bool) -> int:
    """Show on how many hosts HOLD is in force, and which are missing.

    In force: in the host's database, its hook proven to refuse, and, where the instance is, what
    was ordered done. Exit code 1: not everywhere.

    Without HOLD, all hosts, as "hosts" shows them, and the relay that writes Nova's locks: which
    one leads, and when it last read Nova.

    \b
    Example:
      bootlock fleet status 3f9c
    """
    if hold:
        return work.status(app, hold, as_json=as_json)
    return work.hosts(app, as_json=as_json, alone=False)


@fleet.command()
@json_option
@pass_app
def hosts(app: App, as_json: bool) -> int:
    """List the hosts: whether each lives, how far it is, and what is wrong; and the relay.

    Exit code 1: something is.

    \b
    Example:
      bootlock fleet hosts
    """
    return work.hosts(app, as_json=as_json)


@fleet.command()
@click.option("--all", "everything", is_flag=True, help="Also those that have ended.")
@json_option
@pass_app
def permits(app: App, everything: bool, as_json: bool) -> int:
    """List the permits in the registry: what "bootlock permit --fleet" lets through.

    \b
    Example:
      bootlock fleet permits
    """
    fleetpermits.show_all(app, everything=everything, as_json=as_json)
    return Exit.DONE


@fleet.command()
@reason_option
@json_option
@pass_app
def accept(app: App, reason: str, as_json: bool) -> int:
    """Trust the registry again on this host, though it is not the one it was.

    A registry that was wiped or restored may not release holds until then. Look at it first:
    "bootlock list --fleet", and "bootlock fleet restore" for what it has lost.

    \b
    Example:
      bootlock fleet accept --reason "restored from the backup of 12:00, see OPS-77"
    """
    with app.write() as lock_db:
        suspicion = standing_of(sources.stored(lock_db, SOURCE).revision).suspicion
        if suspicion is None or epochs.accepted(lock_db) == suspicion.id:
            raise NotFound("nothing waits to be accepted", "see 'bootlock status'")
        epochs.accept(
            lock_db, suspicion.id, why=suspicion.why, reason=reason, by=actor(), now=app.now()
        )
    if as_json:
        output.print_json({"epoch": suspicion.id, "why": suspicion.why, "since": suspicion.at})
    else:
        click.echo(output.printable(f"accepted: {suspicion.why}"))
    return Exit.DONE


@fleet.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be written.")
@json_option
@pass_app
def restore(app: App, dry_run: bool, as_json: bool) -> int:
    """Write back into the registry what this host has had from it and it has lost.

    That are holds in force and the releases of others, but for those that were pruned. What the
    registry has stays as it is.

    \b
    Example:
      bootlock fleet restore --dry-run
    """
    with app.read() as lock_db:
        had = holds.history(lock_db, source=SOURCE)
    ids = work.restored(app, had, dry_run=dry_run)
    if as_json:
        output.print_json(ids)
    else:
        for hold_id in ids:
            click.echo(f"{'would restore' if dry_run else 'restored'} {hold_id}")
        click.echo(f"{len(ids)} of {len(had)} were missing")
    return Exit.DONE


@fleet.command()
@click.option(
    "--older-than",
    "age",
    metavar="WHEN",
    default="90d",
    show_default=True,
    help="What ended before that: 90d, 26w, or an ISO time; a day at least.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
@pass_app
def prune(app: App, age: str, dry_run: bool, as_json: bool) -> int:
    """Delete from the registry what tells no host anything any more.

    That are released holds which every host that the registry knows has ended, and permits whose
    time is over. Exit code 4: a host, silent ones too, has not ended one that is old enough; it
    stays.

    \b
    Example:
      bootlock fleet prune --older-than 90d --dry-run
    """
    before = parse_since("--older-than", age, app.now())
    return fleetprune.prune(app, before=before, dry_run=dry_run, as_json=as_json)
