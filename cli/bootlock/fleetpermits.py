"""``bootlock permit --fleet`` and ``bootlock fleet permits``: permits in the registry."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import click

from bootlock import output
from bootlock.actor import actor
from bootlock.app import App
from bootlock.exits import Exit
from bootlock.fleet import judged, named, opened, waited
from bootlockd.fleet import registry
from bootlockd.fleet.registry import PermitEntry, Registry, Seen
from lockdb import permits
from lockdb.values import Operation
from lockdb.when import iso

#: What is shown of itself: what may let a start through, or what nobody can tell.
_OPEN = {"active", "unreadable"}


def grant(
    app: App,
    uuid: str,
    operation: Operation,
    *,
    until: int,
    reason: str,
    wait: int,
    as_json: bool,
) -> Exit:
    """Write a permit into the registry; ``wait`` so many seconds for the hosts."""
    granted = permits.new(uuid, operation, until=until, reason=reason, by=actor(), now=app.now())
    with opened(app) as there:
        entry = there.grant(granted)
        if not as_json:
            click.echo(
                f"permit {granted.id}: {operation} of {uuid} is let through on all hosts until"
                f" {iso(until)}"
            )
        return _taken(there, entry, granted.as_dict(), wait, as_json)


def revoke(app: App, prefix: str, *, reason: str, wait: int, as_json: bool) -> Exit:
    """End a permit in the registry before its time; ``wait`` so many seconds for the hosts."""
    with opened(app) as there:
        entry = there.revoke(prefix, reason=reason, by=actor(), now=app.now())
        assert entry.record
        end, granted = entry.record.revoked, entry.record.permit
        assert end
        instance = granted.instance if granted else None
        if not as_json:
            click.echo(f"revoked permit {entry.id} on {instance or 'an unknown instance'}")
        fields = {
            "id": entry.id,
            "instance": instance,
            "revoked_at": end.at,
            "revoked_by": end.by,
        }
        return _taken(there, entry, fields, wait, as_json)


def _taken(
    there: Registry, entry: PermitEntry, fields: dict[str, Any], wait: int, as_json: bool
) -> Exit:
    pending = partial(_still_to_take, entry)
    cluster, seen = waited(there, pending, wait) if wait else ("", [])
    missing = registry.not_taken(entry, cluster, seen)
    taken = len(seen) - len(missing)
    if as_json:
        output.print_json(fields | {"hosts": len(seen), "taken": taken, "missing": missing})
    elif wait:
        click.echo(f"taken by {taken} of {len(seen)} hosts")
        if missing:
            output.note(f"not by {named(missing)}; see 'bootlock fleet hosts'")
    return judged(missing, seen) if wait else Exit.DONE


def _still_to_take(entry: PermitEntry, cluster: str, seen: Sequence[Seen]) -> dict[str, str]:
    return registry.not_taken(entry, cluster, [host for host in seen if host.alive])


def show_all(app: App, *, everything: bool, as_json: bool) -> None:
    """What the registry lets through."""
    now = app.now()
    with opened(app) as there:
        found = [e for e in there.permits() if everything or _state(e, now) in _OPEN]
    if as_json:
        output.print_json([_as_dict(entry, now) for entry in found])
    else:
        output.print_table(
            ["PERMIT", "INSTANCE", "OPERATION", "STATE", "GRANTED", "UNTIL", "BY", "REASON"],
            [_row(entry, now) for entry in found],
        )


def _state(entry: PermitEntry, now: int) -> str:
    record = entry.record
    if record is None:
        return "unreadable"
    if record.revoked:
        return "revoked"
    return "active" if record.permit and record.permit.until > now else "expired"


def _as_dict(entry: PermitEntry, now: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": entry.id, "state": _state(entry, now)}
    record = entry.record
    if record is None:
        return fields | {"problem": entry.problem, "revision": entry.revision}
    if record.permit:
        fields = record.permit.as_dict() | fields
    end = record.revoked
    return fields | {
        "revoked_at": end.at if end else None,
        "revoked_by": end.by if end else None,
        "revoke_reason": end.reason if end else None,
        "revision": entry.revision,
    }


def _row(entry: PermitEntry, now: int) -> list[object]:
    permit = entry.record.permit if entry.record else None
    state = _state(entry, now)
    if permit is None:
        return [entry.id, "-", "-", state, "-", "-", "-", entry.problem or "-"]
    return [
        entry.id,
        permit.instance,
        permit.operation,
        state,
        output.moment(permit.granted_at),
        output.moment(permit.until),
        permit.granted_by,
        permit.reason,
    ]
