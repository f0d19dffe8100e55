"""bootlock sync: read the sources once, now, and say what came of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from bootlock import output
from bootlock.actor import actor
from bootlock.app import App, json_option, pass_app
from bootlock.exits import Exit
from bootlockd.config import Config, load
from bootlockd.sources.base import Source, SourceError
from bootlockd.sources.reconcile import Limits, Overtaken, Plan, known, preview, reconcile
from bootlockd.sources.registry import sources as configured
from bootlockd.sources.runner import limits_of
from lockdb import sources
from lockdb.errors import NotNow
from lockdb.sources import Ending

#: How often a source is read again because bootlockd had read it meanwhile.
TRIES = 5

#: What ``--accept-release`` means without a token.
_ASK = ""


@dataclass(frozen=True)
class Result:
    """What one source came to: a plan, or why it can't be read."""

    source: str
    plan: Plan | None = None
    error: str = ""
    #: The ids of what waited and was accepted now.
    accepted: Sequence[Ending] = ()


@click.command()
@click.argument("names", metavar="[SOURCE]...", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option(
    "--accept-release",
    "accepted",
    metavar="[TOKEN]",
    is_flag=False,
    flag_value=_ASK,
    help="End the holds that wait for an admin: exactly those that TOKEN names. Without TOKEN, "
    "ask at the terminal.",
)
@click.option(
    "--forget",
    "forgotten",
    metavar="SOURCE",
    help="Drop what is known of a source that is not configured any more; its holds stay.",
)
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The settings that name the sources, if not those of 'bootlock --config'.",
)
@json_option
@pass_app
def sync(
    app: App,
    names: tuple[str, ...],
    dry_run: bool,
    accepted: str | None,
    forgotten: str | None,
    path: Path | None,
    as_json: bool,
) -> int:
    """Read the sources of holds once, now, and bring this host's holds in step.

    bootlock-sync.service does it all the time; nothing is lost by doing it too. A source that can't
    be read releases nothing. Exit code 4: more holds would end than may at once, and wait; 6: a
    source can't be read.

    \b
    Example:
      bootlock sync --dry-run
      bootlock sync file --accept-release 3f9c2a11
      bootlock sync --forget nova
    """
    path = path or app.config
    config = load(path)
    if forgotten is not None:
        if names or dry_run or accepted is not None:
            raise click.UsageError("--forget goes alone")
        return _forget(app, config, forgotten, as_json)
    chosen = _chosen(configured(config), names)
    if accepted is not None and (len(chosen) != 1 or dry_run):
        raise click.UsageError("--accept-release is for one SOURCE, and not for --dry-run")
    results = []
    for source in chosen:
        result = _synced(app, source, limits_of(config, source.name), dry_run)
        if result.plan and accepted is not None:
            result = _accepted(app, result, accepted)
        results.append(result)
        if not as_json:
            _print(result, dry_run)
    if as_json:
        output.print_json([_as_dict(result) for result in results])
    elif not results:
        output.note(f"no source is configured in {path}")
    if any(result.error for result in results):
        return Exit.UNREACHABLE
    stopped = any(result.plan and result.plan.waiting for result in results)
    return Exit.NOT_NOW if stopped else Exit.DONE


def _forget(app: App, config: Config, name: str, as_json: bool) -> Exit:
    """Raises NotNow, NotFound."""
    if name in {source.name for source in configured(config)}:
        raise NotNow(
            f"the source {name} is configured",
            "take it out of the settings and reload bootlock-sync first, or it is read again",
        )
    with app.write() as lock_db:
        forgotten = sources.forget(lock_db, name, by=actor(), now=app.now())
    if as_json:
        output.print_json({"source": name, **asdict(forgotten)})
        return Exit.DONE
    click.echo(output.printable(f"forgot the source {name}; {forgotten.holds} of its holds stay"))
    if forgotten.waiting:
        click.echo(f"  of them {forgotten.waiting} waited to end, and wait no more")
    if forgotten.holds:
        output.note(
            f"'bootlock list --source {name}' shows them, 'bootlock release HOLD --override-source'"
            " ends one"
        )
    return Exit.DONE


def _chosen(found: Sequence[Source], names: Sequence[str]) -> list[Source]:
    by_name = {source.name: source for source in found}
    for name in names:
        if name not in by_name:
            there_are = ", ".join(by_name) or "none"
            raise click.UsageError(f"no source {name[:80]!r} is configured; there are: {there_are}")
    return [by_name[name] for name in dict.fromkeys(names)] or list(found)


def _synced(app: App, source: Source, limits: Limits, dry_run: bool) -> Result:
    try:
        for _ in range(TRIES):
            try:
                return Result(source.name, _once(app, source, limits, dry_run))
            except Overtaken as error:
                last = str(error)
        return Result(source.name, error=f"{last}, {TRIES} times")
    except SourceError as error:
        line = f"{error}; {error.hint}" if error.hint else str(error)
        if not dry_run:
            with app.write() as lock_db:
                sources.failed(lock_db, source.name, line, now=app.now())
        return Result(source.name, error=line)


def _once(app: App, source: Source, limits: Limits, dry_run: bool) -> Plan:
    before = known(app.database, source.name)
    reading = source.read(before)
    if dry_run:
        with app.read() as lock_db:
            return preview(lock_db, source.name, reading, limits=limits, now=app.now())
    with app.write() as lock_db:
        return reconcile(
            lock_db, source.name, reading, turn=before.turn, limits=limits, now=app.now()
        )


def _accepted(app: App, result: Result, token: str) -> Result:
    """What waits is ended, if it is what was shown. Raises NotNow."""
    assert result.plan
    waiting = result.plan.waiting
    if not waiting:
        output.note(f"nothing of {result.source} waits")
        return result
    if token == _ASK:
        if not sys.stdin.isatty():
            raise click.UsageError(
                f"name what is accepted: --accept-release {sources.token_of(waiting)}"
            )
        for line in _waiting_lines(result.plan):
            click.echo(line, err=True)
        click.confirm(f"End these {len(waiting)} holds?", abort=True, err=True)
        token = sources.token_of(waiting)
    with app.write() as lock_db:
        ended = sources.accept(lock_db, result.source, token, by=actor(), now=app.now())
    plan = replace(result.plan, waiting=(), stopped="")
    return Result(result.source, plan, accepted=ended)


def _print(result: Result, dry_run: bool) -> None:
    if result.plan is None:
        output.note(f"{result.source} can't be read, its holds stay: {result.error}")
        return
    click.echo(output.printable(f"{result.source}: {_counts(result, dry_run)}"))
    for line in _lines(result):
        click.echo(f"  {output.printable(line)}")
    if result.plan.waiting:
        token = sources.token_of(result.plan.waiting)
        output.note(
            f"nothing of {result.source} was released: {result.plan.stopped}; if they may: "
            f"'bootlock sync {result.source} --accept-release {token}'"
        )


def _counts(result: Result, dry_run: bool) -> str:
    assert result.plan
    steps = result.plan.steps
    would = "would be " if dry_run else ""
    numbers = {
        f"{would}added": len(steps.place),
        f"{would}changed": len(steps.change),
        f"{would}released": len(steps.end) + len(result.accepted),
        "waiting": len(result.plan.waiting),
        "retained": len(result.plan.retained),
        "kept though not shown": result.plan.after.vanished.count,
        "faults": result.plan.after.faults.count,
    }
    parts = [f"{result.plan.unchanged} unchanged"]
    return ", ".join(parts + [f"{count} {word}" for word, count in numbers.items() if count])


def _lines(result: Result) -> Iterator[str]:
    assert result.plan
    steps, after = result.plan.steps, result.plan.after
    for placing in steps.place:
        yield f"added {placing.new.instance}: {placing.new.reason} ({placing.ref})"
    for changing in steps.change:
        what = ", ".join(
            f"{name} {changing.before[name]} -> {value}" for name, value in changing.after.items()
        )
        yield f"changed {changing.hold_id} on {changing.instance}: {what}"
    for ending in (*steps.end, *result.accepted):
        yield f"released {ending.hold_id} on {ending.instance}: {ending.evidence}"
    for permit in steps.grant:
        end = output.moment(permit.until)
        yield f"permitted {permit.operation} of {permit.instance} until {end} ({permit.id})"
    for revoking in steps.revoke:
        yield f"revoked permit {revoking.permit_id} on {revoking.instance}: {revoking.evidence}"
    yield from _waiting_lines(result.plan)
    for ending in result.plan.retained:
        until = output.moment(ending.retain_until)
        yield f"retained {ending.hold_id} on {ending.instance} until {until}: {ending.evidence}"
    for ref in after.vanished.first:
        yield f"kept {ref}: not shown any more, and nobody said that it is released"
    for fault in after.faults.first:
        yield f"fault: {fault}"
    hidden = after.vanished.count - len(after.vanished.first)
    hidden += after.faults.count - len(after.faults.first)
    if hidden:
        yield f"and {hidden} more"


def _waiting_lines(plan: Plan) -> Iterator[str]:
    for ending in plan.waiting:
        word = "loosen" if ending.change else "release"
        yield f"would {word} {ending.hold_id} on {ending.instance}: {ending.evidence}"


def _as_dict(result: Result) -> dict[str, Any]:
    if result.plan is None:
        return {"source": result.source, "error": result.error}
    steps, after = result.plan.steps, result.plan.after
    waiting = result.plan.waiting
    return {
        "source": result.source,
        "error": None,
        "unchanged": result.plan.unchanged,
        "added": [
            {"ref": one.ref, "instance": one.new.instance, "reason": one.new.reason}
            for one in steps.place
        ],
        "changed": [
            {
                "hold": one.hold_id,
                "instance": one.instance,
                "before": one.before,
                "after": one.after,
            }
            for one in steps.change
        ],
        "released": [_ending(one) for one in (*steps.end, *result.accepted)],
        "permitted": [permit.as_dict() for permit in steps.grant],
        "revoked": [
            {"permit": one.permit_id, "instance": one.instance, "evidence": one.evidence}
            for one in steps.revoke
        ],
        "waiting": [_ending(one) for one in waiting],
        "retained": [
            _ending(one) | {"retain_until": one.retain_until} for one in result.plan.retained
        ],
        "token": sources.token_of(waiting) if waiting else None,
        "vanished": {"count": after.vanished.count, "first": list(after.vanished.first)},
        "faults": {"count": after.faults.count, "first": list(after.faults.first)},
    }


def _ending(ending: Ending) -> dict[str, Any]:
    return {
        "hold": ending.hold_id,
        "instance": ending.instance,
        "evidence": ending.evidence,
        "change": ending.change.after if ending.change else None,
    }
