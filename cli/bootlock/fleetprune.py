"""``bootlock fleet prune``: what may go from the registry, and what keeps the rest there."""

from __future__ import annotations

from collections.abc import Iterator

import click

from bootlock import output
from bootlock.actor import actor
from bootlock.app import App
from bootlock.exits import Exit
from bootlock.fleet import asked
from bootlockd.fleet.pruning import Plan, Pruned, Pruner
from lockdb.when import iso


def prune(app: App, *, before: int, dry_run: bool, as_json: bool) -> Exit:
    """Have go what ended ``before``, if it may."""
    now = app.now()
    with asked(app) as (client, keys):
        pruner = Pruner(client, keys)
        made = pruner.look(before=before, now=now)
        done = Pruned(made) if dry_run else pruner.prune(made, before=before, by=actor(), now=now)
    if as_json:
        output.print_json(
            {
                "before": iso(before),
                "holds": [entry.id for entry in made.holds if entry.id not in done.left],
                "permits": [entry.id for entry in made.permits if entry.id not in done.left],
                "kept": made.kept,
                "left": list(done.left),
            }
        )
    else:
        _print(done, before, dry_run)
    return Exit.NOT_NOW if made.kept or done.left else Exit.DONE


def _print(done: Pruned, before: int, dry_run: bool) -> None:
    made = done.plan
    holds = sum(entry.id not in done.left for entry in made.holds)
    permits = sum(entry.id not in done.left for entry in made.permits)
    click.echo(
        f"{'would prune' if dry_run else 'pruned'} {holds} holds and {permits} permits that ended"
        f" before {iso(before)}"
    )
    for line in _kept(made):
        click.echo(f"  {output.printable(line)}")
    if done.left:
        output.note(
            f"{len(done.left)} were written to, or a host has joined, in between: try again"
        )
    elif made.kept:
        output.note(
            "a host that is gone for good is forgotten with 'etcdctl del', see docs/fleet.md"
        )


def _kept(made: Plan) -> Iterator[str]:
    """One line for each host that has not ended what was released."""
    by_host: dict[str, list[str]] = {}
    for hold_id, hosts in made.kept.items():
        for name, why in hosts.items():
            by_host.setdefault(name, []).append(f"{why}, as {hold_id}")
    for name, reasons in sorted(by_host.items()):
        yield f"kept {len(reasons)} that {name} has not ended: it {reasons[0]}"
