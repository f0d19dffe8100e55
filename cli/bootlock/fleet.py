"""Commands with --fleet: what they ask of the registry, and how they wait for the hosts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from bootlock import output
from bootlock.actor import actor
from bootlock.app import App
from bootlock.exits import Exit
from bootlockd.config import Fleet, load
from bootlockd.errors import ConfigError
from bootlockd.fleet import registry
from bootlockd.fleet.errors import EtcdError
from bootlockd.fleet.keys import Keys, host_name
from bootlockd.fleet.pruning import pruned_before
from bootlockd.fleet.registry import Entry, Registry, Seen
from bootlockd.fleet.relays import RelayReport
from bootlockd.sources.base import Order
from lockdb import journal
from lockdb.errors import NotFound
from lockdb.retention import Dated
from lockdb.values import Hold, NewHold, Retention, looks_like_uuid

if TYPE_CHECKING:
    from bootlockd.fleet.client import Client

#: Seconds between two looks at the hosts; of many hosts, ten times what a look takes.
PAUSE = 0.3
#: Names in one line.
_NAMED = 5

#: Of a registry's cluster and hosts, those that are still waited for, and why.
Pending = Callable[[str, Sequence[Seen]], Mapping[str, str]]


@contextmanager
def asked(app: App) -> Iterator[tuple[Client, Keys]]:
    """What asks the registry that the settings name. Raises ConfigError or EtcdError."""
    # Here: no other command needs what speaks to a network.
    from bootlockd.fleet.client import Client  # noqa: PLC0415

    known = settings(app)
    client = Client(known)
    try:
        yield client, Keys(known.prefix)
    finally:
        client.close()


@contextmanager
def opened(app: App) -> Iterator[Registry]:
    """The registry that the settings name. Raises ConfigError or EtcdError."""
    with asked(app) as (client, keys):
        yield Registry(client, keys)


def settings(app: App) -> Fleet:
    """``[fleet]``. Raises ConfigError, also if this host is in no fleet."""
    known = load(app.config).fleet
    if not known.endpoints:
        raise ConfigError(f"{app.config}: fleet.endpoints: not set", "see docs/fleet.md")
    return known


# -- holds ------------------------------------------------------------------------------------


def place(app: App, new: NewHold, *, wait: int, as_json: bool) -> Exit:
    """Place it in the registry; ``wait`` so many seconds for the hosts."""
    fields = asdict(new)
    del fields["source"]
    with opened(app) as there:
        entry = there.place(Order(**fields), now=app.now())
        if not as_json:
            output.print_fields(
                {"hold": entry.id, "instance": new.instance, "kind": new.kind.replace("_", " ")}
            )
        pending = partial(registry.pending, entry)
        cluster, seen = waited(there, pending, wait) if wait else ("", [])
    missing = registry.missing(entry, cluster, seen)
    if as_json:
        output.print_json(_as_dict(entry, app.now()) | _places(entry, missing, seen))
    elif wait:
        _print_places(entry, missing, seen)
    return judged(missing, seen) if wait else Exit.DONE


def release(
    app: App,
    hold: str | None,
    uuid: str | None,
    *,
    reason: str,
    override: bool,
    as_json: bool,
) -> Exit:
    """Release one hold, or all on an instance."""
    now = app.now()
    with opened(app) as there:
        if uuid:
            ids = [e.id for e in there.holds() if _instance(e) == uuid and _is_open(e)]
            if not ids:
                raise NotFound(f"no hold on {uuid} in the registry", "see 'bootlock list --fleet'")
        else:
            ids = [there.find(hold or "").id]
        released = [
            there.release(one, reason=reason, by=actor(), now=now, override=override) for one in ids
        ]
    if as_json:
        output.print_json([_as_dict(entry, now) for entry in released])
    else:
        for entry in released:
            click.echo(f"released {entry.id} on {_instance(entry) or 'an unknown instance'}")
    return Exit.DONE


def retain(
    app: App, prefix: str, until: int | None, mode: Retention | None, *, as_json: bool
) -> Exit:
    """Have one hold last until a date, or longer, on all hosts."""
    now = app.now()
    with opened(app) as there:
        entry = there.retain(there.find(prefix).id, until, mode, now=now)
    order = entry.record.order if entry.record else None
    assert order
    if as_json:
        output.print_json(_as_dict(entry, now))
    else:
        click.echo(retained_line(entry.id, order))
    return Exit.DONE


def retained_line(hold_id: str, hold: Dated) -> str:
    """What came of ``bootlock retain``."""
    return f"hold {hold_id} is retained until {output.moment(hold.retain_until)} ({hold.retention})"


def list_holds(app: App, uuid: str | None, *, everything: bool, as_json: bool) -> None:
    """What is held in the registry."""
    now = app.now()
    with opened(app) as there:
        found = [e for e in there.holds() if everything or registry.in_force(e, now)]
    found = [entry for entry in found if uuid is None or _instance(entry) == uuid]
    if as_json:
        output.print_json([_as_dict(entry, now) for entry in found])
    else:
        output.print_table(
            ["HOLD", "INSTANCE", "KIND", "STATE", "PLACED", "UNTIL", "REASON"],
            [_row(entry, now) for entry in found],
        )


def show(app: App, what: str, *, as_json: bool) -> None:
    """One hold, or those on an instance."""
    now = app.now()
    with opened(app) as there:
        if looks_like_uuid(what):
            uuid = app.resolve(what)
            found = [entry for entry in there.holds() if _instance(entry) == uuid]
        else:
            found = [there.find(what)]
    if not found:
        raise NotFound(f"no hold on {what} in the registry", "see 'bootlock list --fleet --all'")
    if as_json:
        output.print_json([_as_dict(entry, now) for entry in found])
        return
    for entry in found:
        fields = _as_dict(entry, now)
        output.print_fields(
            {
                name.replace("_", " "): output.moment(value) if name in _MOMENTS else value
                for name, value in fields.items()
                if value is not None
            }
        )
        click.echo()


# -- this host and the registry ---------------------------------------------------------------


def noted_head(app: App) -> journal.Head:
    """The head of this host's journal that it told the registry last."""
    with opened(app) as there:
        report = there.host(host_name(settings(app)))
    if report.problem:
        raise EtcdError(f"{report.name}: {report.problem}", "is bootlock-sync of another version?")
    return journal.Head(*report.journal)


def restored(app: App, holds: Sequence[Hold], *, dry_run: bool) -> list[str]:
    """The ids of this host's holds from the registry that it has lost; written back into it."""
    with asked(app) as (client, keys):
        there, before = Registry(client, keys), pruned_before(client, keys)
        known = {entry.id for entry in there.holds()}
        lost = [
            hold
            for hold in holds
            if hold.id not in known and (hold.released_at is None or hold.released_at >= before)
        ]
        for hold in lost if not dry_run else ():
            there.restate(registry.record_of(hold))
    return [hold.id for hold in lost]


# -- hosts ------------------------------------------------------------------------------------


def status(app: App, prefix: str, *, as_json: bool) -> Exit:
    """Where one hold is in force."""
    with opened(app) as there:
        entry = there.find(prefix)
        cluster, seen = there.hosts()
    missing = registry.missing(entry, cluster, seen)
    if as_json:
        output.print_json(_as_dict(entry, app.now()) | _places(entry, missing, seen))
    else:
        _print_places(entry, missing, seen)
        for name, why in missing.items():
            click.echo(output.printable(f"  {name}: {why}"))
    return Exit.DONE if seen and not missing else Exit.REFUSED


def hosts(app: App, *, as_json: bool, alone: bool = True) -> Exit:
    """All hosts and how they are; unless ``alone``, as JSON too, the relay."""
    with opened(app) as there:
        newest = there.newest()
        cluster, seen = there.hosts()
        relay = there.relay()
    faults = {host.report.name: _fault(host, cluster, newest) for host in seen}
    ill = _relay_fault(relay, app.now()) if relay else ""
    if as_json:
        listed = [_host_as_dict(host) | {"fault": faults[host.report.name]} for host in seen]
        told = _relay_as_dict(relay) | {"fault": ill} if relay else None
        output.print_json(listed if alone else {"hosts": listed, "relay": told})
    else:
        output.print_table(
            ["HOST", "STATE", "LAST SEEN", "APPLIED", "ARMED", "HELD HERE", "FAULT"],
            [
                [
                    host.report.name,
                    "alive" if host.alive else "silent",
                    output.moment(host.report.at) if host.report.at else "-",
                    host.report.applied,
                    host.report.is_armed,
                    len(host.report.here),
                    faults[host.report.name] or "-",
                ]
                for host in seen
            ],
        )
        if relay:
            # Not among the lines of the hosts, which programs read.
            output.note(_relay_line(relay, ill))
    return Exit.REFUSED if ill or any(faults.values()) else Exit.DONE


def _relay_as_dict(relay: RelayReport) -> dict[str, Any]:
    fields = asdict(relay)
    del fields["problem"], fields["stale_after"]
    return fields | {"read_at": relay.read_at or None, "whole_at": relay.whole_at or None}


def _relay_line(relay: RelayReport, fault: str) -> str:
    read, whole = (output.moment(at) if at else "never" for at in (relay.read_at, relay.whole_at))
    leads = f"{relay.name} leads" if relay.leads else f"none leads; the last was {relay.name}"
    told = f"relay: {leads}; holds {relay.holds}; Nova read at {read}, whole at {whole}"
    return f"{told}; FAULT: {fault}" if fault else told


def _relay_fault(relay: RelayReport, now: int) -> str:
    faults = [] if relay.leads else ["no relay leads: what is locked or unlocked in Nova waits"]
    if relay.problem:
        return "; ".join([*faults, relay.problem])
    if relay.leads and relay.is_stale(now):
        faults.append("it has read nothing of Nova for too long")
    if relay.faults:
        faults.append(f"Nova could not tell of {relay.faults} servers")
    if relay.waiting:
        faults.append(f"{relay.waiting} releases are too many at once")
    return "; ".join(faults)


def _fault(host: Seen, cluster: str, newest: int) -> str:
    report = host.report
    faults = [report.problem] if report.problem else []
    if not host.alive:
        return "; ".join([*faults, "gives no sign of life"])
    if not report.problem and not _same(host, cluster):
        faults.append("follows another cluster")
    if not report.problem and report.applied < newest:
        faults.append("behind")
    if not report.problem and not report.is_armed:
        faults.append("not proven to be armed")
    if report.waiting:
        faults.append("releases wait for an admin there: 'bootlock sync etcd'")
    return "; ".join([*faults, *report.trouble])


def _same(host: Seen, cluster: str) -> bool:
    return host.report.cluster == cluster


def _host_as_dict(host: Seen) -> dict[str, Any]:
    fields = asdict(host.report)
    seq, value = fields.pop("journal")
    del fields["more"], fields["problem"]
    return fields | {"alive": host.alive, "journal_head": f"{seq}:{value}"}


def waited(there: Registry, pending: Pending, seconds: int) -> tuple[str, list[Seen]]:
    """The hosts, once none that lives is ``pending``, or time is over."""
    deadline = time.monotonic() + seconds
    on_terminal = sys.stderr.isatty()
    try:
        while True:
            began = time.monotonic()
            cluster, seen = there.hosts()
            waiting = pending(cluster, seen)
            if not waiting or time.monotonic() > deadline:
                return cluster, seen
            if on_terminal:
                line = _progress(waiting, sum(host.alive for host in seen))
                click.echo(f"\r\x1b[K{output.printable(line)}", err=True, nl=False)
            time.sleep(max(PAUSE, 10 * (time.monotonic() - began)))
    finally:
        if on_terminal:
            click.echo("\r\x1b[K", err=True, nl=False)


def _progress(waiting: Mapping[str, str], living: int) -> str:
    name, why = next(iter(waiting.items()))
    return f"{living - len(waiting)} of {living} hosts; {name}: {why}"


def _places(entry: Entry, missing: Mapping[str, str], seen: Sequence[Seen]) -> dict[str, Any]:
    return {
        "hosts": len(seen),
        "in_force": len(seen) - len(missing),
        "missing": dict(missing),
        "here": registry.here(entry, seen),
    }


def _print_places(entry: Entry, missing: Mapping[str, str], seen: Sequence[Seen]) -> None:
    ended = entry.record is not None and entry.record.released is not None
    click.echo(
        f"{'released' if ended else 'in force'} on {len(seen) - len(missing)} of {len(seen)} hosts"
    )
    for name, fences in registry.here(entry, seen).items():
        states = ", ".join(f"{fence} {state}" for fence, state in fences.items())
        click.echo(output.printable(f"the instance is on {name}: {states}"))
    if missing:
        output.note(f"not on {named(missing)}; see 'bootlock fleet status {entry.id}'")


def named(missing: Mapping[str, str]) -> str:
    """The first few of these hosts, in one line."""
    return ", ".join(list(missing)[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")


def judged(missing: Mapping[str, str], seen: Sequence[Seen]) -> Exit:
    """After waiting: who is silent was not waited for."""
    if not seen:
        output.note("no host has ever told this registry that it is there")
        return Exit.REFUSED
    living = {host.report.name for host in seen if host.alive}
    return Exit.REFUSED if living & missing.keys() else Exit.DONE


# -- one hold ---------------------------------------------------------------------------------

_MOMENTS = {"placed_at", "until", "retain_until", "released_at"}


def _as_dict(entry: Entry, now: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": entry.id, "state": _state(entry, now)}
    record = entry.record
    if record is None:
        return fields | {"problem": entry.problem, "revision": entry.revision}
    if record.order:
        fields |= asdict(record.order)
    end = record.released
    return fields | {
        "placed_at": record.placed_at,
        "released_at": end.at if end else None,
        "released_by": end.by if end else None,
        "release_reason": end.reason if end else None,
        "revision": entry.revision,
    }


def _state(entry: Entry, now: int) -> str:
    if entry.record is None:
        return "unreadable"
    if entry.record.released:
        return "released"
    return "active" if registry.in_force(entry, now) else "expired"


def _row(entry: Entry, now: int) -> list[object]:
    order = entry.record.order if entry.record else None
    placed = entry.record.placed_at if entry.record else None
    if order is None:
        return [entry.id, "-", "-", _state(entry, now), output.moment(placed), "-", entry.problem]
    return [
        entry.id,
        order.instance,
        order.kind.replace("_", " "),
        _state(entry, now),
        output.moment(placed),
        output.moment(order.until),
        order.reason,
    ]


def _instance(entry: Entry) -> str:
    order = entry.record.order if entry.record else None
    return order.instance if order else ""


def _is_open(entry: Entry) -> bool:
    return entry.record is not None and entry.record.released is None
