"""How commands print: JSON for programs, tables on a terminal, tabs in a pipe.

Whatever came from a guest's definition is printed without control characters: a domain's name must
not be able to drive an admin's terminal.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
from tabulate import tabulate

from lockdb.when import iso

_TIMES = {
    "at",
    "digested_at",
    "error_since",
    "first_at",
    "granted_at",
    "last_at",
    "looked",
    "next_try",
    "placed_at",
    "read_at",
    "released_at",
    "retain_until",
    "revoked_at",
    "proven",
    "since",
    "started",
    "until",
    "whole_at",
}


def print_json(value: Any) -> None:
    """One JSON document; the times in it as ``2027-01-31T12:00:00Z``."""
    click.echo(json.dumps(timed(value), indent=2, ensure_ascii=False))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns on a terminal, the last cut to its width; else tab-separated lines."""
    cells = [[printable(_text(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        click.echo("\t".join(headers).lower())
        for row_cells in cells:
            click.echo("\t".join(row_cells))
        return
    table = tabulate(cells, headers, tablefmt="simple", disable_numparse=True)
    width = shutil.get_terminal_size().columns
    for line in table.splitlines():
        click.echo(line if len(line) <= width else line[: width - 1] + "…")


def print_fields(fields: Mapping[str, object]) -> None:
    """``name: value`` lines, the names aligned; fields without a value are left out."""
    shown = {name: _text(value) for name, value in fields.items() if value not in (None, "")}
    width = max((len(name) for name in shown), default=0) + 1
    for name, value in shown.items():
        click.echo(f"{name + ':':<{width}} {printable(value)}")


def note(text: str) -> None:
    """A remark for the person at the terminal; programs read standard output."""
    click.echo(f"bootlock: {printable(text)}", err=True)


def moment(value: int | None) -> str:
    """A time in a table."""
    return "-" if value is None else iso(value)


def printable(text: str) -> str:
    """``text`` with a question mark in place of each unprintable character."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def timed(value: Any) -> Any:
    """``value`` with the times in it as text, wherever they stand."""
    if isinstance(value, Mapping):
        return {
            key: iso(item) if key in _TIMES and isinstance(item, int) else timed(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [timed(item) for item in value]
    return value
