"""The daemon's entry point: settings, signals, and putting the parts together."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Protocol

import click

from bootlockd import __version__, realtime
from bootlockd.config import Config, load
from bootlockd.errors import BootlockdError
from bootlockd.notify import notify
from bootlockd.preserveservice import PreserveService
from bootlockd.program import config_option, run_program
from bootlockd.service import Service
from bootlockd.sources.registry import sources
from bootlockd.sources.runner import SyncService

log = logging.getLogger(__name__)

#: Seconds after which a thread hands Python's lock on. While jobs compute, the one that cuts the
#: network again waits so long each time it wants to go on: Python's own 5 ms add up.
SWITCH = 0.0005


class Runs(Protocol):
    """One run of the program with one configuration."""

    def run(self) -> None:
        """Serve until ``stop``."""

    def stop(self) -> None:
        """End it. May be called from a signal handler."""

    def between_turns(self, action: Callable[[], None]) -> None:
        """From a signal handler: call ``action`` in the thread that runs."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@config_option
@click.option("--sync", is_flag=True, help="Keep the holds of the configured sources instead.")
@click.option("--relay", is_flag=True, help="Write Nova's locks into the fleet's registry instead.")
@click.option("--preserve", is_flag=True, help="Keep the disks of preserved instances instead.")
@click.option("--check-config", is_flag=True, help="Read the settings, say what is wrong, and end.")
@click.version_option(__version__, message="bootlockd %(version)s")
def cli(path: Path, sync: bool, relay: bool, preserve: bool, check_config: bool) -> None:
    """Make the holds on this host true for instances that already run.

    Run by systemd: bootlockd.service, bootlock-sync.service with --sync, bootlock-relay.service
    with --relay, bootlock-preserve.service with --preserve. SIGHUP reads the settings again,
    SIGTERM ends it; what is enforced stays enforced.
    """
    sys.setswitchinterval(SWITCH)
    if sync + relay + preserve > 1:
        raise click.UsageError("--sync, --relay and --preserve are processes of their own")
    config = load(path)
    if check_config:
        click.echo(f"{path}: no fault")
        return
    realtime.keep()
    make: Callable[[Config], Runs] = Service
    if sync:
        make = _sync_service
    elif relay:
        make = _relay_service
    elif preserve:
        make = PreserveService
    ending = threading.Event()
    while not ending.is_set():
        config = _run(path, config, ending, make)
    notify("STOPPING=1")


def _sync_service(config: Config) -> Runs:
    return SyncService(config, sources(config))


def _relay_service(config: Config) -> Runs:
    # Here: nothing else of ours needs what speaks to a network.
    from bootlockd.relayservice import relay_service  # noqa: PLC0415

    return relay_service(config)


def _run(
    path: Path, config: Config, ending: threading.Event, make: Callable[[Config], Runs]
) -> Config:
    """Serve until a signal ends it; the settings to go on with, unless ``ending``."""
    service = make(config)
    after = [config]

    def read_again() -> None:
        try:
            after.append(load(path))
        except BootlockdError as error:
            log.error("the old settings stay in force: %s; %s", error, error.hint)
            return
        log.info("settings read again")
        notify("RELOADING=1")
        service.stop()

    def end(_number: int, _frame: FrameType | None) -> None:
        ending.set()
        service.stop()

    signal.signal(signal.SIGHUP, lambda *_: service.between_turns(read_again))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    if not ending.is_set():
        service.run()
    return after[-1]


def main() -> int:
    """Run until told to end. Returns the exit code: 1 if it broke, 2 for unusable settings."""
    return run_program(cli, "bootlockd")


if __name__ == "__main__":
    raise SystemExit(main())
