"""bootlock verify."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import click

from bootlock import output
from bootlock.app import App, complete_instance, json_option, pass_app
from bootlock.exits import Exit
from bootlock.preservation import percent
from bootlockd.digests import open_content, size_of
from lockdb import preserved
from lockdb.errors import NotFound
from lockdb.preserved import Preserved

#: Bytes that are read at once.
PIECE = 1 << 22
#: Seconds between two lines on the terminal.
BEAT = 0.5


class Verdict(StrEnum):
    """What came of one disk."""

    SAME = "same"
    DIFFERS = "differs"
    UNREADABLE = "unreadable"
    NO_DIGEST = "no_digest"


@dataclass(frozen=True)
class Finding:
    """One disk: what it was, and what it is."""

    row: Preserved
    verdict: Verdict
    sha256: str = ""
    problem: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "path": self.row.path,
            "role": self.row.role,
            "stage": self.row.stage,
            "verdict": self.verdict,
            "recorded_sha256": self.row.sha256,
            "digested_at": self.row.digested_at,
            "sha256": self.sha256 or None,
            "problem": self.problem or None,
        }


@click.command()
@click.argument("instance", shell_complete=complete_instance)
@json_option
@pass_app
def verify(app: App, instance: str, as_json: bool) -> int:
    """Compare the preserved disks of INSTANCE with their digests.

    It reads them whole. Exit code 0: each is what it was when its digest was taken. 1: one differs,
    can't be read, or has no digest yet. 3: none of its disks was ever preserved here.

    \b
    Example:
      bootlock verify web-7
    """
    uuid = app.resolve(instance)
    with app.read() as lock_db:
        rows = [row for row in preserved.of_instance(lock_db, uuid) if row.has_content]
    if not rows:
        raise NotFound(f"no disk of {uuid} was preserved here", "see 'bootlock place --preserve'")
    findings = [_compared(row) for row in rows]
    if as_json:
        output.print_json([finding.as_dict() for finding in findings])
    else:
        _print(findings)
    same = all(finding.verdict is Verdict.SAME for finding in findings)
    return Exit.DONE if same else Exit.REFUSED


def _compared(row: Preserved) -> Finding:
    if row.sha256 is None:
        return Finding(row, Verdict.NO_DIGEST, problem="no digest was taken yet")
    try:
        descriptor = open_content(row)
        try:
            sha256 = _digest(descriptor, row.path)
        finally:
            os.close(descriptor)
    except OSError as error:
        return Finding(row, Verdict.UNREADABLE, problem=str(error))
    same = sha256 == row.sha256
    return Finding(row, Verdict.SAME if same else Verdict.DIFFERS, sha256)


def _digest(descriptor: int, path: str) -> str:
    size = size_of(descriptor)
    digest = hashlib.sha256()
    at, said = 0, 0.0
    is_seen = sys.stderr.isatty()
    while piece := os.pread(descriptor, PIECE, at):
        digest.update(piece)
        at += len(piece)
        if is_seen and time.monotonic() > said + BEAT:
            said = time.monotonic()
            line = output.printable(f"{path}: {percent(at, size)}")
            click.echo(f"\r\x1b[K{line}", err=True, nl=False)
    if is_seen:
        click.echo("\r\x1b[K", err=True, nl=False)
    return digest.hexdigest()


def _print(findings: Iterable[Finding]) -> None:
    for finding in findings:
        row = finding.row
        words = {
            Verdict.SAME: f"same as at {output.moment(row.digested_at)}, sha256 {row.sha256}",
            Verdict.DIFFERS: f"DIFFERS: sha256 was {row.sha256}, is {finding.sha256}",
            Verdict.UNREADABLE: f"UNREADABLE: {finding.problem}",
            Verdict.NO_DIGEST: finding.problem,
        }
        click.echo(output.printable(f"{row.path}: {words[finding.verdict]}"))
