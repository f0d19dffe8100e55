"""What the programs that systemd runs have in common: the option, the log, and how they end."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from bootlockd.config import DEFAULT_CONFIG
from bootlockd.errors import BootlockdError


def _must_exist(_context: click.Context, _option: click.Parameter, path: Path) -> Path:
    """Without the usual file all is as by default; one that was named was meant to be read."""
    if path != DEFAULT_CONFIG and not path.exists():
        raise click.BadParameter(f"{path} does not exist")
    return path


#: ``--config``, given to the command as ``path``.
config_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_CONFIG,
    show_default=True,
    callback=_must_exist,
    help="The settings.",
)


def run_program(command: click.Command, name: str) -> int:
    """Run until told to end. Returns the exit code; what went wrong is one line on stderr."""
    # journald adds the time, and reads the level from the prefix (sd-daemon(3)).
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        command.main(prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"{name}: {error.format_message()}", err=True)
        return 2
    except BootlockdError as error:
        click.echo(f"{name}: {error}" + (f"; {error.hint}" if error.hint else ""), err=True)
        return error.exit_code
    return 0
