"""bootlock retain."""

from __future__ import annotations

import click

from bootlock import fleet, output
from bootlock.actor import actor
from bootlock.app import App, complete_hold, fleet_hold_option, json_option, pass_app
from bootlock.commands.place import parse_retain_until
from bootlock.exits import Exit
from lockdb import holds
from lockdb.values import Retention


@click.command()
@click.argument("hold", shell_complete=complete_hold)
@click.option("--until", metavar="WHEN", help="The date: 36h, 14d or an ISO time.")
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Retention]),
    help="governance: it may be released before with --override; compliance: by nobody. "
    "Default: as it is, or governance.",
)
@click.option("--reason", metavar="TEXT", default="", help="Why; for the host's staff only.")
@fleet_hold_option
@json_option
@pass_app
def retain(
    app: App,
    hold: str,
    until: str | None,
    mode: str | None,
    reason: str,
    in_fleet: bool,
    as_json: bool,
) -> int:
    """Have HOLD last until a date: nobody releases it before.

    The date can be put off later, by anyone, and never brought forward. In governance mode a
    release before it needs --override; compliance mode can't be left, and has no such way. After
    the date the hold goes on until it is released.

    Exit code 4: it is retained for longer, or more strictly, already.

    \b
    Example:
      bootlock retain 3f9c --until 2027-06-30 --mode compliance
    """
    if until is None and mode is None:
        raise click.UsageError("give --until, --mode, or both")
    now = app.now()
    moment = parse_retain_until("--until", until, now)
    chosen = Retention(mode) if mode else None
    if in_fleet:
        if reason:
            raise click.UsageError("the registry has no place for a --reason")
        return fleet.retain(app, hold, moment, chosen, as_json=as_json)
    with app.write() as lock_db, lock_db.write():
        found = holds.find(lock_db, hold)
        after = holds.retain(
            lock_db, found.id, until=moment, mode=chosen, by=actor(), now=now, reason=reason
        )
    if as_json:
        output.print_json(after.as_dict())
    else:
        click.echo(fleet.retained_line(after.id, after))
    return Exit.DONE
