"""``python -m benchmarks``: measure, print, and exit 1 when a target is missed."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine
from benchmarks.calls import alone, as_libvirt_calls, write_scripts
from benchmarks.launch import LibvirtLauncher, spawn
from benchmarks.measure import Group, measure
from benchmarks.report import Report, as_json, as_markdown, write_document
from benchmarks.starts import start_cases
from benchmarks.targets import outcomes


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    holds: int
    rounds: int
    starts: int


_FULL = Scale(holds=1_000_000, rounds=200, starts=200)
_QUICK = Scale(holds=1000, rounds=3, starts=2)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.quick and options.write:
        parser.error("a quick run is nothing to write down")
    # As Ctrl-C: what was made is removed again.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not options.quick:
        _go_first()
    groups = _measure(_QUICK if options.quick else _FULL, with_libvirt=not options.no_libvirt)
    report = Report(machine.facts(), groups, outcomes(groups), enforced=not options.quick)
    text = as_markdown(report)
    print(json.dumps(as_json(report), indent=2) if options.json else text)
    if options.write:
        write_document(text)
    return 0 if report.is_good else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", action="store_true", help="put it into docs/benchmarks.md too")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few holds, few runs, no target enforced: only to see that it works",
    )
    parser.add_argument("--no-libvirt", action="store_true", help="without real virsh starts")
    return parser


def _measure(scale: Scale, *, with_libvirt: bool) -> list[Group]:
    # Short: libvirt's sockets are below it.
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as name:
        directory = Path(name)
        _say(f"filling databases with {scale.holds:,} holds")
        scripts = write_scripts(directory, scale.holds)
        _say("calling hooks")
        with LibvirtLauncher() as as_libvirt:
            cases = as_libvirt_calls(scripts, as_libvirt, scale.holds)
            groups = [measure("As libvirt calls a hook", cases, scale.rounds)]
        cases = alone(scripts, spawn, scale.holds)
        groups.append(measure("The process alone, and where its time goes", cases, scale.rounds))
        if with_libvirt:
            _say("starting guests")
            with start_cases(directory, scripts.many.path, scale.holds) as cases:
                groups.append(measure("A start: `virsh start`", cases, scale.starts))
        return groups


def _go_first() -> None:
    """Let whatever else the machine does wait for us, and for all that we start."""
    # Not nice(): it has no say between sessions, each of which Linux gives an equal share.
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def _say(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
