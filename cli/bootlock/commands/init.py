"""bootlock init."""

from __future__ import annotations

import grp
import platform

import click

from bootlock import output
from bootlock.app import App, json_option, pass_app
from lockdb.database import create

GROUP = "bootlock"


@click.command()
@json_option
@pass_app
def init(app: App, as_json: bool) -> None:
    """Make the lock database, or bring it up to date. Safe to repeat.

    A new database has no holds: if one was lost, restore its backup rather than make another.

    \b
    Example:
      bootlock init
    """
    made = create(app.database, now=app.now(), host=platform.node(), gid=_gid())
    if as_json:
        output.print_json({"database": str(app.database), "made": made})
    else:
        click.echo(f"{app.database}: {'made' if made else 'is up to date'}")


def _gid() -> int | None:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None
