"""bootlock place."""

from __future__ import annotations

from typing import Any

import click

from bootlock import daemon, fleet, output, preservation
from bootlock.actor import actor
from bootlock.app import (
    App,
    complete_instance,
    fleet_option,
    json_option,
    no_wait_option,
    pass_app,
    reason_option,
    timeout_option,
)
from bootlock.exits import Exit
from bootlockd import hypervisor
from bootlockd.errors import Unreachable
from bootlockd.hypervisor import Definition
from bootlockd.values import Guest
from lockdb import disks, holds
from lockdb.database import LockDB
from lockdb.retention import check_date
from lockdb.values import GRACE_MAX, Hold, Kind, NewHold, OnRunning, Retention
from lockdb.when import parse_until


def _dashed(words: type[Kind] | type[OnRunning]) -> click.Choice[str]:
    return click.Choice([word.value.replace("_", "-") for word in words])


@click.command()
@click.argument("instance", shell_complete=complete_instance)
@reason_option
@click.option("--notice", metavar="TEXT", default="", help="The line that a refused caller sees.")
@click.option("--case", metavar="REF", default="", help="A ticket or file number.")
@click.option("--kind", type=_dashed(Kind), default="boot-lock", show_default=True)
@click.option(
    "--on-running",
    type=_dashed(OnRunning),
    default="leave",
    show_default=True,
    help="What is to happen to the instance if it runs.",
)
@click.option(
    "--grace",
    metavar="SECONDS",
    type=click.IntRange(0, GRACE_MAX),
    default=60,
    show_default=True,
    help="How long --on-running shutdown waits before it destroys.",
)
@click.option("--isolate", is_flag=True, help="Cut the network of the instance if it runs.")
@click.option(
    "--block",
    "blocks",
    metavar="OPS",
    help="Block these operations only, as delete,stop; see 'permit --help' for their names.",
)
@click.option("--preserve", is_flag=True, help="Keep its local disks as they are, once it is off.")
@click.option("--until", metavar="WHEN", help="When the hold expires: 36h, 14d or an ISO time.")
@click.option(
    "--retain-until",
    metavar="WHEN",
    help="Until then it may not be released; it does not end by itself. Not with --until.",
)
@click.option(
    "--retention",
    type=click.Choice([mode.value for mode in Retention]),
    help="With --retain-until. governance: it may with --override; compliance: by nobody. "
    "Default: governance.",
)
@no_wait_option
@fleet_option
@timeout_option
@json_option
@pass_app
def place(
    app: App,
    /,
    instance: str,
    as_json: bool,
    no_wait: bool,
    in_fleet: bool,
    timeout: int,
    **options: Any,
) -> int:
    """Place a hold: INSTANCE is refused to start.

    A boot lock refuses every start. A state lock keeps the state: an instance that ran when it was
    locked may come back after a host reboot, one that was off stays off. Disks that the instance
    owns here are recorded, so that they don't start under another UUID either.

    With a daemon on this host it returns when the instance is as ordered. Exit code 1: that could
    not be brought about yet; the hold stands, and the daemon goes on.

    With --preserve, for boot locks, nobody can write to or remove its local disks while it is held
    and off, root included; their digests are taken in the background. Exit code 1: a disk can't be
    preserved, as on NFS or Ceph, or is not yet.

    With --fleet the hold is written to the registry, from where it comes to all hosts; it returns
    when all that live have it in force. Exit code 1: one of them has not.

    \b
    Example:
      bootlock place web-7 --reason "court order" --case AZ-17/26 --until 30d
      bootlock place web-7 --reason "court order" --on-running shutdown --preserve
    """
    now = app.now()
    new = _new_hold(app.resolve(instance), options, now)
    if in_fleet:
        return fleet.place(app, new, wait=0 if no_wait else timeout, as_json=as_json)
    hold, guest = _place(app, new, now)
    if not as_json:
        _print(hold, guest)
    answer = _carried_out(app, hold, guest, no_wait)
    is_undone = answer is None and not no_wait and bool(_orders(hold, guest))
    if hold.preserve and not no_wait and not is_undone:
        both = preservation.carried_out(app, hold, answer)
        is_undone, answer = both is None, both or answer
    if as_json:
        rows = [row.as_dict() for row in answer.rows] if answer else None
        output.print_json(hold.as_dict() | {"enforcement": rows})
    elif answer:
        daemon.print_rows(answer.rows)
    if is_undone:
        # Nobody is there to do it.
        return Exit.UNREACHABLE
    return _judged(hold, answer) if answer else Exit.DONE


def _new_hold(uuid: str, options: dict[str, Any], now: int) -> NewHold:
    until, retain_until = options["until"], options["retain_until"]
    if until and retain_until:
        raise click.UsageError("a hold that is retained does not end by itself: without --until")
    if options["retention"] and not retain_until:
        raise click.UsageError("--retention needs a date: --retain-until")
    return NewHold(
        instance=uuid,
        reason=options["reason"],
        placed_by=actor(),
        kind=Kind(options["kind"].replace("-", "_")),
        notice=options["notice"],
        case=options["case"],
        on_running=OnRunning(options["on_running"].replace("-", "_")),
        grace=options["grace"],
        isolate=options["isolate"],
        preserve=options["preserve"],
        until=parse_until("--until", until, now) if until else None,
        blocks=options["blocks"],
        retain_until=parse_retain_until("--retain-until", retain_until, now),
        retention=Retention(options["retention"]) if options["retention"] else None,
    )


def parse_retain_until(field: str, text: str | None, now: int) -> int | None:
    """The date of a retention; None for none. Raises InvalidValue."""
    return check_date(parse_until(field, text, now), now) if text else None


def _place(app: App, new: NewHold, now: int) -> tuple[Hold, Guest | None]:
    with app.write() as lock_db:
        # First the hold: libvirt, which may hang, must not keep it from being placed.
        hold = holds.place(lock_db, new, now=now)
        try:
            guest = hypervisor.observe(app.uris, hold.instance)
            known = hypervisor.definition_of(guest) if guest else None
        except Unreachable as error:
            output.note(f"the disks of {hold.instance} were not recorded: {error}")
            return hold, None
        if guest and known:
            hold = _record(lock_db, hold, guest, known, now)
        return hold, guest


def _record(lock_db: LockDB, hold: Hold, guest: Guest, known: Definition, now: int) -> Hold:
    with lock_db.write():
        disks.record(lock_db, hold.instance, known.disks, now=now)
        return holds.set_was_running(lock_db, hold, guest.is_active, now=now)


def _carried_out(app: App, hold: Hold, guest: Guest | None, no_wait: bool) -> daemon.Answer | None:
    """What the daemon did; None if it was not waited for, or there is none."""
    if no_wait:
        daemon.nudge(app.control)
        return None
    try:
        return daemon.carry_out(app.control, hold)
    except Unreachable as error:
        orders = _orders(hold, guest)
        if orders and guest:
            output.note(
                f"{guest.name} still runs: no daemon on this host carries out {orders} ({error}); "
                f"stop it with 'virsh -c {guest.uri} destroy {hold.instance}'"
            )
        return None


def _orders(hold: Hold, guest: Guest | None) -> str:
    """What somebody has to do about an instance that runs."""
    orders = [] if hold.on_running is OnRunning.LEAVE else [hold.on_running.replace("_", "-")]
    orders += ["isolate"] if hold.isolate else []
    return " and ".join(orders) if guest and guest.is_active else ""


def _judged(hold: Hold, answer: daemon.Answer) -> Exit:
    if not answer.ended:
        output.note(
            "still under way, the daemon goes on with it; "
            f"'bootlock show {hold.id}' tells how it ends"
        )
    elif answer.failed:
        fences = ", ".join(row.fence for row in answer.failed)
        output.note(f"not enforced: {fences}; the daemon tries again, see 'bootlock doctor'")
    else:
        return Exit.DONE
    return Exit.REFUSED


def _print(hold: Hold, guest: Guest | None) -> None:
    name = f" ({guest.name})" if guest else ""
    running = guest.is_active if guest else None
    output.print_fields(
        {
            "hold": hold.id,
            "instance": hold.instance + name,
            "kind": hold.kind.replace("_", " "),
            "notice": hold.notice,
            "blocks": hold.blocks,
            "until": output.moment(hold.until) if hold.until else "",
            "retained until": output.moment(hold.retain_until) if hold.retain_until else "",
            "retention": hold.retention,
            "state": {True: "running", False: "shut off", None: "not known on this host"}[running],
        }
    )
