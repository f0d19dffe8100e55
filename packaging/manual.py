"""Writes the manual, bootlock(1), bootlockd(8) and bootlock.toml(5), from what the programs say.

    manual.py DIRECTORY

Commands, options and exit codes are those of `--help`; the settings are docs/bootlock.toml.md,
which the tests hold against the code. So nothing is written twice, and a new option is in the
manual.
The pages are in mdoc(7), which man-db and mandoc both read.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from bootlock import __version__
from bootlock.main import cli
from bootlockd.config import DEFAULT_CONFIG, Daemon
from bootlockd.main import cli as daemon
from lockdb.database import DEFAULT_PATH

SETTINGS = Path(__file__).resolve().parents[1] / "docs/bootlock.toml.md"

_PAGES = ["bootlock 1", "virsh 1", "bootlock.toml 5", "bootlockd 8"]

_DAEMON_EXITS = {
    "0": "It was told to end; or the settings have no fault.",
    "2": "The settings can't be used, and the line on standard error names file and key.",
}
_SIGNALS = {
    "SIGHUP": "Read the settings again; bad ones leave the old ones in force.",
    "SIGTERM, SIGINT": "End. What is enforced stays enforced.",
}
_PATHS = {
    DEFAULT_PATH: "the holds and the journal, which the hook reads",
    Path("/usr/share/bootlock/decide.sql"): "how the hook decides",
    Path("/etc/libvirt/hooks/qemu.d/50-bootlock"): "the hook; the same in lxc.d and libxl.d",
    DEFAULT_CONFIG: "the settings of bootlockd",
    Daemon.control_socket: "where bootlockd answers bootlock",
    Path("/run/bootlock/break-glass"): "while it exists, starts that can't be decided go through",
}


def main(directory: Path) -> None:
    """Write the three pages into ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    pages = {"bootlock.1": bootlock(), "bootlockd.8": bootlockd(), "bootlock.toml.5": settings()}
    for name, lines in pages.items():
        (directory / name).write_text("\n".join(lines) + "\n", "utf-8")


def bootlock() -> Iterator[str]:
    """The command: every subcommand, its options, and the exit codes."""
    context = _context(cli, "bootlock")
    yield from _head("bootlock", 1, cli)
    yield from (".Sh SYNOPSIS", ".Nm", _text(" ".join(cli.collect_usage_pieces(context))))
    yield ".Sh DESCRIPTION"
    yield from _help(cli)
    yield from _tags(_options(cli, context))
    yield ".Sh COMMANDS"
    for command, inner in _commands(cli, context):
        usage = " ".join([inner.command_path, *command.collect_usage_pieces(inner)])
        yield from (f".Ss {_text(usage)}", *_help(command), *_tags(_options(command, inner)))
    yield ".Sh ENVIRONMENT"
    yield from _tags(
        (str(option.envvar), f"As {option.opts[0]}.")
        for option in cli.params
        if isinstance(option, click.Option) and option.envvar
    )
    yield ".Sh FILES"
    yield from _tags((str(path), f"{what}.") for path, what in _PATHS.items())
    yield from _exits(dict(re.findall(r"^  (\d)  (.+)$", cli.epilog or "", re.MULTILINE)))
    yield from _see_also("bootlock")


def bootlockd() -> Iterator[str]:
    """The daemon."""
    context = _context(daemon, "bootlockd")
    yield from _head("bootlockd", 8, daemon)
    yield from (".Sh SYNOPSIS", ".Nm", _text(" ".join(daemon.collect_usage_pieces(context))))
    yield ".Sh DESCRIPTION"
    yield from _help(daemon)
    yield from _tags(_options(daemon, context))
    yield ".Sh SIGNALS"
    yield from _tags(_SIGNALS.items())
    yield ".Sh FILES"
    yield from _tags((str(path), f"{what}.") for path, what in _PATHS.items())
    yield from _exits(_DAEMON_EXITS)
    yield from _see_also("bootlockd")


def settings() -> Iterator[str]:
    """The settings, as docs/bootlock.toml.md has them."""
    yield from _title("bootlock.toml", 5, "settings of bootlockd")
    yield ".Sh DESCRIPTION"
    yield from _markdown(SETTINGS.read_text("utf-8").partition("\n\n")[2])
    yield from _see_also("bootlock.toml")


# -- parts of a page ------------------------------------------------------------------------------


def _head(name: str, section: int, command: click.Command) -> Iterator[str]:
    first = inspect.cleandoc(command.help or "").partition("\n")[0].rstrip(".")
    return _title(name, section, first[:1].lower() + first[1:])


def _title(name: str, section: int, what: str) -> Iterator[str]:
    day = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))
    yield f".Dd {time.strftime('%B', day)} {day.tm_mday}, {day.tm_year}"
    yield f".Dt {name.upper()} {section}"
    yield f".Os bootlock {__version__}"
    yield from (".Sh NAME", f".Nm {name}", f".Nd {_text(what)}")


def _commands(
    group: click.Group, context: click.Context
) -> Iterator[tuple[click.Command, click.Context]]:
    for name in group.list_commands(context):
        command = group.commands[name]
        inner = _context(command, name, context)
        yield command, inner
        if isinstance(command, click.Group):
            yield from _commands(command, inner)


def _context(
    command: click.Command, name: str, parent: click.Context | None = None
) -> click.Context:
    return click.Context(command, parent, name, **command.context_settings)


def _options(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    for parameter in command.get_params(context):
        # --help of a command is that of all.
        if isinstance(parameter, click.Option) and not (context.parent and parameter.is_eager):
            yield parameter.get_help_record(context) or ("", "")


def _help(command: click.Command) -> Iterator[str]:
    """click's own marks: an empty line ends a paragraph, \\b begins one that keeps its lines."""
    for at, block in enumerate(inspect.cleandoc(command.help or "").split("\n\n")):
        yield from [".Pp"] * (at > 0)
        if block.startswith("\b\n"):
            title, *lines = block.splitlines()[1:]
            yield from (*_sentences(title), *_literal(lines))
        else:
            yield from _sentences(block)


def _exits(codes: dict[str, str]) -> Iterator[str]:
    yield ".Sh EXIT STATUS"
    yield from _tags(codes.items())


def _see_also(name: str) -> Iterator[str]:
    others = [page for page in _PAGES if page.split()[0] != name]
    yield ".Sh SEE ALSO"
    yield from (f".Xr {page} ," for page in others[:-1])
    yield f".Xr {others[-1]}"


def _tags(entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    lines = [line for tag, what in entries for line in _tag(tag, what)]
    if lines:
        yield from (".Bl -tag -width Ds", *lines, ".El")


def _tag(tag: str, what: str) -> Iterator[str]:
    yield f'.It Sy "{_text(tag)}"'
    yield from _sentences(what)


def _literal(lines: list[str]) -> Iterator[str]:
    yield ".Bd -literal -offset indent"
    yield from (_text(line) for line in lines)
    yield ".Ed"


def _sentences(text: str) -> Iterator[str]:
    """One on each line, as mdoc wants it; a line's breaks were for an editor."""
    for sentence in re.split(r"(?<=[.:]) (?=[A-Z])", " ".join(text.split())):
        yield from [_text(sentence)] * bool(sentence)


def _text(text: str) -> str:
    text = text.replace("\\", r"\e").replace("-", r"\-").replace('"', r"\(dq")
    return rf"\&{text}" if text.startswith((".", "'")) else text


# -- what our settings' page uses of Markdown -----------------------------------------------------


def _markdown(page: str) -> Iterator[str]:
    fenced = r"```\w*\n(?P<fenced>[\s\S]*?)\n```\n"
    indented = r"(?P<indented>(?:    .*\n)+)"
    table = r"\|.*\n\|[-|]+\n(?P<table>(?:\|.*\n)+)"
    heading = r"#+ (?P<heading>.*)\n"
    text = r"(?P<text>(?:.+\n)+)"
    before = ""
    for block in re.finditer(f"{fenced}|{indented}|{table}|{heading}|{text}|\n", page):
        kind, content = block.lastgroup, block[block.lastgroup or 0]
        if kind == "fenced":
            yield from _literal(content.splitlines())
        elif kind == "indented":
            yield from _literal([line[4:] for line in content.splitlines()])
        elif kind == "table":
            yield from _tags(map(_row, content.splitlines()))
        elif kind == "heading":
            yield f".Ss {_text(_plain(content))}"
        elif kind == "text":
            yield from [".Pp"] * (before not in ("", "heading"))
            yield from _sentences(_plain(content))
        before = kind or before


def _row(line: str) -> tuple[str, str]:
    name, _, what = line.strip("| ").partition(" | ")
    return _plain(name), _plain(what)


def _plain(text: str) -> str:
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text).replace("`", "")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
