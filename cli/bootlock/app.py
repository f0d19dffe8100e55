"""What every command is given: which database, which libvirt, what time it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import click

from bootlock.daemon import control_socket
from bootlockd import hypervisor
from bootlockd.config import DEFAULT_CONFIG
from lockdb import holds, permits
from lockdb.database import LockDB, open_db
from lockdb.errors import LockDBError
from lockdb.values import Hold, Permit


@dataclass(frozen=True)
class App:
    """The context object of click."""

    database: Path
    uris: Sequence[str]
    #: Where the daemon listens.
    control: Path
    #: The settings of this host.
    config: Path = DEFAULT_CONFIG

    def read(self) -> AbstractContextManager[LockDB]:
        """The database, for looking. Raises DatabaseError."""
        return open_db(self.database, read_only=True)

    def write(self) -> AbstractContextManager[LockDB]:
        """The database, for changing. Raises DatabaseError."""
        return open_db(self.database)

    def now(self) -> int:
        """Unix seconds."""
        return int(time.time())

    def resolve(self, instance: str) -> str:
        """The UUID of INSTANCE. Raises InvalidValue, NotFound or Unreachable."""
        return hypervisor.resolve(self.uris, instance)


pass_app = click.make_pass_decorator(App)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

#: On what is done to an instance. What is done to a hold takes ``fleet_hold_option``.
fleet_option = click.option(
    "--fleet", "in_fleet", is_flag=True, help="On all hosts, through the registry."
)
fleet_hold_option = click.option(
    "--fleet", "in_fleet", is_flag=True, help="A hold in the registry, on all hosts."
)

no_wait_option = click.option(
    "--no-wait", is_flag=True, help="Don't wait for the daemon, or the hosts."
)

timeout_option = click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.IntRange(1),
    default=60,
    show_default=True,
    help="With --fleet: how long to wait for the hosts.",
)

reason_option = click.option(
    "--reason", metavar="TEXT", required=True, help="Why; for the host's staff only. Required."
)


def complete_instance(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Names of domains and UUIDs of held instances."""
    app = _app_of(context)
    found = _quietly(lambda: hypervisor.names(app.uris))
    with_holds = _quietly(lambda: [hold.instance for hold in _active(app)])
    return [word for word in [*found, *dict.fromkeys(with_holds)] if word.startswith(incomplete)]


def complete_hold(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Ids of holds in force."""
    ids = _quietly(lambda: [hold.id for hold in _active(_app_of(context))])
    return [hold_id for hold_id in ids if hold_id.startswith(incomplete)]


def complete_permit(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Ids of permits in force."""
    ids = _quietly(lambda: [permit.id for permit in _permitted(_app_of(context))])
    return [permit_id for permit_id in ids if permit_id.startswith(incomplete)]


def _app_of(context: click.Context) -> App:
    # Completion parses the line without running the group's callback, which would make the App.
    options = context.find_root().params
    config = options["config"]
    control = options["control"] or control_socket(config)
    return App(options["database"], options["uris"], control, config)


def _active(app: App) -> list[Hold]:
    with app.read() as lock_db:
        return holds.active(lock_db, now=app.now())


def _permitted(app: App) -> list[Permit]:
    with app.read() as lock_db:
        return permits.active(lock_db, now=app.now())


def _quietly(question: Callable[[], list[str]]) -> list[str]:
    # A completion that can't be had is no reason to print over the user's line.
    try:
        return question()
    except LockDBError:
        return []
