"""The entry point: one line and a documented exit code for everything that can go wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from bootlock import __version__
from bootlock.app import App
from bootlock.commands import (
    check,
    doctor,
    export,
    fleet,
    init,
    journal,
    permit,
    place,
    release,
    retain,
    status,
    sync,
    verify,
    view,
)
from bootlock.daemon import control_socket
from bootlock.exits import Exit, exit_of
from bootlock.output import printable
from bootlockd.config import DEFAULT_CONFIG, DEFAULT_URIS
from lockdb.database import DEFAULT_PATH
from lockdb.errors import LockDBError

#: What a shell reports of a program that SIGPIPE ended.
_SIGPIPE = 141

EXIT_CODES = """\b
Exit codes:
  0  done; for check: the start is allowed; for verify: nothing has changed
  1  refused, not healthy, or changed
  2  wrong usage
  3  no such hold, permit or instance
  4  not allowed now
  5  the database, or a definition that is kept, can't be used
  6  libvirt, the daemon or a source can't be reached"""


class _Group(click.Group):
    """Commands may lose their reader; click's own exit code for that would mean refused."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Python would complain again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _SIGPIPE


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)
@click.option(
    "--database",
    type=click.Path(path_type=Path, dir_okay=False, readable=False),
    default=DEFAULT_PATH,
    envvar="BOOTLOCK_DATABASE",
    show_default=True,
    help="The lock database, if not the one that this host's hook reads.",
)
@click.option(
    "--connect",
    "uris",
    metavar="URI",
    multiple=True,
    envvar="BOOTLOCK_CONNECT",
    default=DEFAULT_URIS,
    help="libvirt to ask for names, disks and states; may be given more than once. "
    f"Default: {', '.join(DEFAULT_URIS)}, as far as they answer.",
)
@click.option(
    "--control",
    type=click.Path(path_type=Path, dir_okay=False, readable=False),
    envvar="BOOTLOCK_CONTROL",
    help="The daemon's socket, if not the one in its settings.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False, readable=False),
    default=DEFAULT_CONFIG,
    envvar="BOOTLOCK_CONFIG",
    show_default=True,
    help="The settings of this host.",
)
@click.version_option(__version__, message="bootlock %(version)s")
@click.pass_context
def cli(
    context: click.Context,
    database: Path,
    uris: tuple[str, ...],
    control: Path | None,
    config: Path,
) -> None:
    """Keep instances from starting on this libvirt host.

    A held instance is refused by libvirt itself, whoever asks and however: the hook looks into the
    lock database on every start. INSTANCE is a UUID, which this host need not know yet, or the name
    of a domain that its libvirt knows.

    \b
    Example:
      bootlock place web-7 --reason "invoice 4711 unpaid" --notice "please call billing"
      bootlock list
      bootlock release 3f9c --reason "paid"
    """
    context.obj = App(database, uris, control or control_socket(config), config)


for command in (
    place.place,
    release.release,
    retain.retain,
    permit.permit,
    view.list_holds,
    view.show,
    check.check,
    verify.verify,
    journal.journal,
    export.export,
    sync.sync,
    status.status,
    doctor.doctor,
    init.init,
    fleet.fleet,
):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; never raises. Returns its exit code."""
    try:
        result = cli.main(arguments, prog_name="bootlock", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return Exit.USAGE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "bootlock"
        return _fail(error.format_message(), f"see '{where} --help'", Exit.USAGE)
    except click.ClickException as error:
        return _fail(error.format_message(), "", Exit.USAGE)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", "", 130)
    except LockDBError as error:
        return _fail(str(error), error.hint, exit_of(error))
    return int(result or 0)


def _fail(problem: str, hint: str, code: int) -> int:
    line = f"bootlock: {problem.rstrip('.')}" + (f"; {hint}" if hint else "")
    click.echo(printable(" ".join(line.splitlines())), err=True)
    return int(code)


if __name__ == "__main__":
    raise SystemExit(main())
