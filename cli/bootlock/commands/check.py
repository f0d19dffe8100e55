"""bootlock check."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bootlock import output
from bootlock.app import App, complete_instance, json_option, pass_app
from bootlock.exits import Exit
from bootlockd import hypervisor
from bootlockd.errors import Unreachable
from lockdb import enforcements, holds
from lockdb.database import LockDB
from lockdb.decision import Verdict, blocking, decide, minimal_document
from lockdb.enforcements import Enforcement, State
from lockdb.errors import InvalidValue
from lockdb.values import Operation

_OF_THE_HOOK = (Operation.START, Operation.MIGRATE)
#: The fence that refuses the others.
_FENCE = "polkit"


@click.command()
@click.argument("instance", shell_complete=complete_instance)
@click.option(
    "--op",
    "operation",
    metavar="OPERATION",
    type=click.Choice([op.value for op in Operation]),
    default=Operation.START.value,
    show_default=True,
    help="The operation to ask about.",
)
@json_option
@pass_app
def check(app: App, instance: str, operation: str, as_json: bool) -> int:
    """Tell whether INSTANCE would be refused, and why.

    Exit code 0: allowed, 1: refused. For a start or an arriving migration it asks what the hook
    asks; the disks are compared too if libvirt here knows the domain. Other operations are refused
    to who is not root, where libvirt's access driver is on.

    \b
    Example:
      bootlock check web-7 || echo "it is held"
      bootlock check web-7 --op delete
    """
    uuid = app.resolve(instance)
    by_hook = operation in _OF_THE_HOOK
    document = _document(app, uuid) if by_hook else ""
    now = app.now()
    with app.read() as lock_db, lock_db.read():
        if by_hook:
            decision = decide(lock_db, document, operation, now=now)
        else:
            decision = blocking(lock_db, uuid, Operation(operation), now=now)
        reason = _reason(lock_db, decision.hold)
        polkits = [
            row for row in enforcements.of_hold(lock_db, decision.hold) if row.fence == _FENCE
        ]
    if decision.verdict is Verdict.UNDECIDED:
        raise InvalidValue("instance", f"the hook could not decide: {decision.text}")
    refused = decision.verdict is Verdict.REFUSE
    if as_json:
        output.print_json(
            {
                "instance": uuid,
                "operation": operation,
                "verdict": decision.verdict.value,
                "hold": decision.hold or None,
                "notice": decision.text or None,
                "reason": reason or None,
                "by": "hook" if by_hook else "polkit",
                "enforced": None if by_hook or not refused else _is_enforced(polkits),
            }
        )
    elif refused:
        click.echo(f"refused: {decision.text} [hold {decision.hold}]")
        click.echo(f"reason: {reason}")
        if not by_hook and not _is_enforced(polkits):
            why = "".join(f": {row.detail}" for row in polkits if row.detail)
            output.note(f"it is not known that anything refuses it on this host{why}")
    else:
        click.echo("allowed")
    return Exit.REFUSED if refused else Exit.DONE


def _document(app: App, uuid: str) -> str:
    try:
        guest = hypervisor.observe(app.uris, uuid)
        known = hypervisor.definition_of(guest) if guest else None
    except Unreachable as error:
        output.note(f"the disks of {uuid} were not compared: {error}")
        known = None
    return known.document if known else minimal_document(uuid)


def _is_enforced(rows: Sequence[Enforcement]) -> bool:
    return any(row.state is State.ENFORCED for row in rows)


def _reason(lock_db: LockDB, hold_id: str) -> str:
    return holds.find(lock_db, hold_id).reason if hold_id else ""
