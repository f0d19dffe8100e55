"""What ``bootlock-metrics.service`` runs: the metrics, in a process that may only read.

It is not the daemon's work: a network server does not belong into a process with root's powers. As
a member of the group bootlock this one may read the database and ask the daemon for its status,
and it goes on without either.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bootlockd.config import DEFAULT_CONFIG, load
from bootlockd.control import ask
from bootlockd.errors import BootlockdError
from bootlockd.metrics import MetricsServer
from bootlockd.notify import notify

log = logging.getLogger(__name__)

#: Seconds that the daemon may take to answer. Prometheus waits ten for all of it.
PATIENCE = 5.0

_ENDING = {signal.SIGTERM, signal.SIGINT}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="The daemon's settings.",
)
def cli(path: Path) -> None:
    """Serve the metrics on the address in [metrics] of the settings, until SIGTERM."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    config = load(path)
    if not config.metrics.listen:
        log.info("metrics.listen is empty: there is nothing to serve")
        notify("READY=1")
        return

    def status() -> Mapping[str, Any]:
        (answer,) = ask(config.daemon.control_socket, {"op": "status"}, PATIENCE)
        return answer

    # Before there are threads, which inherit it: the signal is for sigwait alone.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    server = MetricsServer(config.metrics.listen, config.database.path, status)
    server.start()
    notify("READY=1")
    log.info("ready: metrics on %s", config.metrics.listen)
    signal.sigwait(_ENDING)
    server.stop()


def main() -> int:
    """Run until told to end. Returns the exit code: 2 for what can't be served."""
    try:
        cli.main(prog_name="bootlockd.exporter", standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"bootlock-metrics: {error.format_message()}", err=True)
        return 2
    except BootlockdError as error:
        words = f"{error}; {error.hint}" if error.hint else str(error)
        click.echo(f"bootlock-metrics: {words}", err=True)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
