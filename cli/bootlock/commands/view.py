"""bootlock list and bootlock show: what is held, and everything about one hold or instance."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from bootlock import daemon, definition, fleet, output, preservation
from bootlock.app import App, complete_hold, complete_instance, json_option, pass_app
from lockdb import disks, enforcements, holds, permits, preserved, refusals
from lockdb.database import LockDB
from lockdb.errors import NotFound
from lockdb.values import Hold, Operation, looks_like_uuid


@click.command("list")
@click.option(
    "--instance", shell_complete=complete_instance, help="Only holds on this UUID or name."
)
@click.option("--source", help="Only holds from this source.")
@click.option("--all", "everything", is_flag=True, help="Released and expired holds too.")
@click.option("--fleet", "in_fleet", is_flag=True, help="Those in the registry, of all hosts.")
@json_option
@pass_app
def list_holds(
    app: App,
    instance: str | None,
    source: str | None,
    everything: bool,
    in_fleet: bool,
    as_json: bool,
) -> None:
    """List the holds in force, oldest first.

    \b
    Example:
      bootlock list --all --instance web-7
    """
    uuid = app.resolve(instance) if instance else None
    if in_fleet:
        fleet.list_holds(app, uuid, everything=everything, as_json=as_json)
        return
    now = app.now()
    with app.read() as lock_db:
        if everything:
            found = holds.history(lock_db, instance=uuid, source=source)
        else:
            found = holds.active(lock_db, now=now, instance=uuid, source=source)
    if as_json:
        output.print_json([_with_state(hold, now) for hold in found])
    else:
        output.print_table(
            ["HOLD", "INSTANCE", "KIND", "SOURCE", "STATE", "PLACED", "UNTIL", "REASON"],
            [_row(hold, now) for hold in found],
        )


@click.command()
@click.argument("what", metavar="INSTANCE|HOLD", shell_complete=complete_hold)
@click.option(
    "--xml",
    "as_xml",
    is_flag=True,
    help="Its definition instead: the one that is kept, or else libvirt's. Without passwords.",
)
@click.option("--secrets", is_flag=True, help="With --xml: with passwords, for 'virsh define'.")
@click.option("--fleet", "in_fleet", is_flag=True, help="What the registry has of it.")
@json_option
@pass_app
def show(app: App, what: str, as_xml: bool, secrets: bool, in_fleet: bool, as_json: bool) -> None:
    """Show a hold, or all that is known of an instance.

    That is its holds, what was done for each on this host, permits, disks and refusals.

    With --xml it prints the instance's definition. The one that is kept while it is held is for
    root to read; exit code 5 for others.

    \b
    Example:
      bootlock show web-7
      bootlock show 3f9c
      bootlock show 3f9c --xml --secrets > web-7.xml
    """
    if secrets and not as_xml:
        raise click.UsageError("--secrets goes with --xml")
    if as_xml and in_fleet:
        raise click.UsageError("--xml is for one host: not with --fleet")
    if in_fleet:
        fleet.show(app, what, as_json=as_json)
        return
    if as_xml:
        definition.show(app, _instance_of(app, what), secrets=secrets, as_json=as_json)
        return
    now = app.now()
    with app.read() as lock_db:
        hold = None if looks_like_uuid(what) else _hold_called(lock_db, what)
        uuid = hold.instance if hold else app.resolve(what)
        with lock_db.read():
            known = _everything(lock_db, uuid, now)
    known["holds"] = [hold] if hold else known["holds"]
    if not known["holds"] and not known["permits"]:
        raise NotFound(f"nothing is known of {uuid}", "it was never held on this host")
    if as_json:
        known["holds"] = [
            _with_state(hold, now)
            | {
                "enforcement": [
                    row.as_dict() for row in known["enforcement"] if row.hold == hold.id
                ]
            }
            for hold in known["holds"]
        ]
        del known["enforcement"]
        known["permits"] = [permit.as_dict() for permit in known["permits"]]
        known["refusals"] = [asdict(refusal) for refusal in known["refusals"]]
        known["preserved"] = [row.as_dict() for row in known["preserved"]]
        output.print_json(known)
    else:
        _print(known, now)


def state_of(hold: Hold, now: int) -> str:
    """In force, released or expired, in one word."""
    if hold.released_at is not None:
        return "released"
    return "active" if hold.is_active(now) else "expired"


def _row(hold: Hold, now: int) -> list[str]:
    return [
        hold.id,
        hold.instance,
        hold.kind.replace("_", " "),
        hold.source,
        state_of(hold, now),
        output.moment(hold.placed_at),
        output.moment(hold.until),
        hold.reason,
    ]


def _with_state(hold: Hold, now: int) -> dict[str, Any]:
    return hold.as_dict() | {"state": state_of(hold, now), "blocked": _blocked(hold)}


def _blocked(hold: Hold) -> list[str]:
    """In the order of the table."""
    return [operation for operation in Operation if operation in hold.blocked]


def _instance_of(app: App, what: str) -> str:
    """The UUID of an instance or of a hold's; for a UUID no database is needed."""
    if looks_like_uuid(what):
        return app.resolve(what)
    with app.read() as lock_db:
        hold = _hold_called(lock_db, what)
    return hold.instance if hold else app.resolve(what)


def _hold_called(lock_db: LockDB, prefix: str) -> Hold | None:
    try:
        return holds.find(lock_db, prefix)
    except NotFound:
        # A domain may be called so.
        return None


def _in_words(hold: Hold) -> str:
    missing = [operation for operation in Operation if operation not in hold.blocked]
    if len(missing) < len(hold.blocked):
        return f"all but {', '.join(missing)}" if missing else "all operations"
    return ", ".join(_blocked(hold))


def _everything(lock_db: LockDB, uuid: str, now: int) -> dict[str, Any]:
    return {
        "instance": uuid,
        "holds": holds.history(lock_db, instance=uuid),
        "enforcement": enforcements.of_instance(lock_db, uuid),
        "permits": permits.active(lock_db, now=now, instance=uuid),
        "disks": disks.of_instance(lock_db, uuid),
        "preserved": preserved.of_instance(lock_db, uuid),
        "refusals": refusals.of_instance(lock_db, uuid),
    }


def _print(known: dict[str, Any], now: int) -> None:
    for hold in known["holds"]:
        fields = hold.as_dict() | {
            "hold": hold.id,
            "state": state_of(hold, now),
            "placed_at": output.moment(hold.placed_at),
            "until": output.moment(hold.until),
            "released_at": output.moment(hold.released_at) if hold.released_at else "",
            "blocks": _in_words(hold),
            "retain_until": output.moment(hold.retain_until) if hold.retain_until else "",
            "overridden": hold.overridden or "",
        }
        order = ["hold", "instance", "kind", "state", "source", "reason", "notice", "case"]
        order += [name for name in fields if name not in {*order, "id"}]
        output.print_fields({name.replace("_", " "): fields[name] for name in order})
        for row in known["enforcement"]:
            if row.hold == hold.id:
                line = f"{daemon.described(row)} (last seen so {output.moment(row.at)})"
                click.echo(output.printable(line))
        click.echo()
    for permit in known["permits"]:
        click.echo(
            f"permit {permit.id}: {permit.operation} until {output.moment(permit.until)}, "
            + output.printable(permit.reason)
        )
    for key in known["disks"]:
        click.echo(f"disk {output.printable(key)}")
    for row in known["preserved"]:
        click.echo(output.printable(preservation.described(row)))
    for refusal in known["refusals"]:
        click.echo(
            f"refused {refusal.count} x {refusal.operation}, last at "
            f"{output.moment(refusal.last_at)}, as {output.printable(refusal.name)}"
        )
