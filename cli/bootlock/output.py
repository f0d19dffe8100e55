"""How commands print: JSON for programs, tables on a terminal, tabs in a pipe.

Whatever came from a guest's definition is printed without control characters: a domain's name must
not be able to drive an admin's terminal.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
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
    "kept_at",
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


#: What may be unprintable, in a text of more than one line.
_ODD = re.compile(r"[^ -~\n\t]")


def print_json(value: Any) -> None:
    """One JSON document, as ``json_text`` has it."""
    click.echo(json_text(value))


def json_text(value: Any) -> str:
    """``value`` as JSON; the times in it as ``2027-01-31T12:00:00Z``.

    What can't be printed is escaped: JSON itself asks for that below U+0020 only, and terminals
    obey U+009B too.
    """
    text = json.dumps(timed(value), indent=2, ensure_ascii=False)
    return escaped(text, lambda character: json.dumps(character)[1:-1])


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


def escaped(text: str, write: Callable[[str], str]) -> str:
    """Lines of ``text``, with what ``write`` makes of it in place of each unprintable character."""
    return _ODD.sub(lambda found: found[0] if found[0].isprintable() else write(found[0]), text)


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
