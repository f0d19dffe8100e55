"""bootlock doctor."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import click

from bootlock import output
from bootlock.app import App, json_option, pass_app
from bootlock.daemon import settings
from bootlock.doctor import ALL
from bootlock.doctor.finding import Check, Finding, Level, Patient
from bootlock.exits import Exit
from lockdb.errors import LockDBError


@click.command()
@click.option("--fix", is_flag=True, help="Mend what can be mended without risk.")
@json_option
@pass_app
def doctor(app: App, fix: bool, as_json: bool) -> int:
    """Prove that this host refuses held instances.

    Looks at the database, the hook and what surrounds them, and at last starts a canary: a domain
    that libvirt must refuse with our line. Each fault is named with its mend. Exit code 1: there
    are faults.

    \b
    Example:
      bootlock doctor --fix
    """
    patient = patient_of(app)
    findings = list(_examine(patient, ALL, fix, show=not as_json))
    faults = [finding for finding in findings if finding.level is Level.FAULT]
    if as_json:
        output.print_json(
            {"healthy": not faults, "findings": [finding.as_dict() for finding in findings]}
        )
    elif faults:
        click.echo(f"{len(faults)} fault{'s' * (len(faults) > 1)}")
    else:
        click.echo("healthy")
    return Exit.REFUSED if faults else Exit.DONE


def patient_of(app: App) -> Patient:
    """This host, with its parts where the command line says."""
    return Patient(
        app.uris,
        app.now(),
        database=app.database,
        control=app.control,
        config=settings(app.config),
        settings=app.config,
    )


def print_finding(finding: Finding) -> None:
    """One line, and the mend under it."""
    colour = {Level.OK: "green", Level.NOTE: "yellow", Level.FAULT: "red"}[finding.level]
    mark = click.style(f"{'fixed' if finding.fixed else finding.level.value:<5}", fg=colour)
    click.echo(f"{mark}  {finding.check:<12} {output.printable(finding.detail)}")
    if finding.mend:
        click.echo(f"{'':19} -> {output.printable(finding.mend)}")


def _examine(patient: Patient, checks: Sequence[Check], fix: bool, show: bool) -> Iterator[Finding]:
    for check in checks:
        if show and sys.stderr.isatty():
            click.echo(f"checking {check.__name__.replace('_', ' ')} ...\r", err=True, nl=False)
        findings = list(check(patient))
        if fix and any(finding.fix for finding in findings):
            findings = _mend(patient, check, findings)
        for finding in findings:
            if show:
                print_finding(finding)
            yield finding


def _mend(patient: Patient, check: Check, findings: list[Finding]) -> list[Finding]:
    errors = [error for finding in findings if (error := _apply(finding))]
    faulty = {finding.check for finding in findings if finding.level is Level.FAULT}
    # What is claimed is proven: look again rather than believe that it worked.
    again = [
        replace(finding, fixed=finding.level is Level.OK and finding.check in faulty)
        for finding in check(patient)
    ]
    return [*again, *errors]


def _apply(finding: Finding) -> Finding | None:
    if finding.fix is None:
        return None
    try:
        finding.fix()
    except (OSError, LockDBError) as error:
        return Finding(finding.check, Level.FAULT, f"can't be mended: {error}", "run as root")
    return None
