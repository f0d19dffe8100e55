"""What ``bootlock-metrics.service`` runs: the metrics, in a process that may only read.

It is not the daemon's work: a network server does not belong into a process with root's powers. As
a member of the group bootlock this one may read the database and ask the daemon for its status,
and it goes on without either.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bootlockd.config import load
from bootlockd.control import ask
from bootlockd.metrics import MetricsServer
from bootlockd.notify import notify
from bootlockd.program import config_option, run_program

log = logging.getLogger(__name__)

#: Seconds that the daemon may take to answer. Prometheus waits ten for all of it.
PATIENCE = 5.0

_ENDING = {signal.SIGTERM, signal.SIGINT}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@config_option
def cli(path: Path) -> None:
    """Serve the metrics on the address in [metrics] of the settings, until SIGTERM."""
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
    return run_program(cli, "bootlock-metrics")


if __name__ == "__main__":
    raise SystemExit(main())
