"""What is run as a hook: bootlock's, an empty one, other ways to write one, and parts of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import guest
from benchmarks.database import Filled, fill
from benchmarks.launch import Launcher
from benchmarks.measure import Case
from hookrunner import DECIDE, SQLITE3, Hook

_PEERS = Path(__file__).parent / "peers"
_EMPTY = "#!/bin/sh\n"
#: The last step before the hook itself: all but the decision.
_NO_DECISION = "SELECT 'allow';\n"
_MEGABYTES = 3
FEW = 100


class WrongVerdict(Exception):
    """A hook didn't do what it was measured for."""


@dataclass(frozen=True)
class Scripts:
    """Everything that can be run as a hook, in one directory."""

    many: Filled
    few: Filled
    #: A database of its own: refusals are written down, which the allowing runs must not see.
    refusing: Filled
    hook: Path
    hook_few: Path
    hook_refusing: Path
    hook_no_decision: Path
    empty: Path
    child: Path
    sqlite: Path
    database: Path
    python: Path
    dispatcher: Path


def write_scripts(directory: Path, holds: int) -> Scripts:
    """Fill the databases, ``holds`` holds in each but one, and write the scripts for them."""
    many = fill(directory / "many" / "lock.db", holds)
    refusing = _copied(many, directory / "refusing" / "lock.db")
    few = fill(directory / "few" / "lock.db", FEW)
    no_decision = directory / "no-decision.sql"
    no_decision.write_text(_NO_DECISION)
    write = partial(_write, directory)
    hook = _hook(directory / "qemu.d", many.path)
    return Scripts(
        many=many,
        few=few,
        refusing=refusing,
        hook=hook.script,
        hook_few=_hook(directory / "few", few.path).script,
        hook_refusing=_hook(directory / "refusing", refusing.path).script,
        hook_no_decision=_hook(directory / "part", many.path, no_decision).script,
        empty=write("empty", _EMPTY),
        child=write("child", f"{_EMPTY}x=$(/usr/bin/true)\n"),
        sqlite=write("sqlite", _asking(":memory:", "SELECT 1")),
        database=write(
            "database", _asking(f"-readonly {many.path}", "SELECT value FROM meta LIMIT 1")
        ),
        python=write(
            "python",
            (_PEERS / "hook.py")
            .read_text()
            .replace('DATABASE = "/var/lib/bootlock/lock.db"', f'DATABASE = "{many.path}"'),
        ),
        dispatcher=write("qemu", (_PEERS / "dispatcher.bash").read_text()),
    )


def as_libvirt_calls(scripts: Scripts, launch: Launcher, holds: int) -> Sequence[Case]:
    """The hook and its like on ordinary XML, by a launcher that does what libvirt does."""
    call = partial(_call, launch, prefix="call")
    held = scripts.refusing
    big = guest.document(padding=_MEGABYTES * 1_000_000)
    refused = partial(call, scripts.hook_refusing, status=1)
    return (
        call(scripts.empty, "empty", "an empty sh hook"),
        call(scripts.hook, "other", "bootlock, any other operation", operation="release"),
        call(scripts.hook_few, "allow-few", f"bootlock allows, {FEW} holds"),
        call(scripts.hook, "allow", f"bootlock allows, {holds:,} holds"),
        call(scripts.hook, "allow-big", f"the same, {_MEGABYTES} MB of XML", document=big),
        refused("refuse", "bootlock refuses a UUID", document=guest.document(held.instance)),
        refused(
            "refuse-disk",
            "bootlock refuses a disk",
            document=guest.document(first_disk=held.disk),
        ),
        call(scripts.hook_refusing, "allow-refused", "bootlock allows, while others are refused"),
        call(scripts.python, "python", "the same decision in Python allows"),
        call(scripts.dispatcher, "dispatcher", "a bash dispatcher with bootlock behind it allows"),
        call(
            scripts.dispatcher,
            "dispatcher-other",
            "the same dispatcher, any other operation",
            operation="release",
        ),
    )


def alone(scripts: Scripts, launch: Launcher, holds: int) -> Sequence[Case]:
    """The hook's process alone, and the steps that lead to it, each with what the last one has."""
    call = partial(_call, launch, prefix="alone")
    return (
        call(scripts.empty, "empty", "sh"),
        call(scripts.child, "child", "sh, and a child that does nothing"),
        call(scripts.sqlite, "sqlite", "sh, and sqlite3 without a database"),
        call(scripts.database, "database", "sh, and sqlite3 reads one row of the database"),
        call(scripts.hook_no_decision, "no-decision", "the hook without its decision"),
        call(scripts.hook, "allow", f"the hook, {holds:,} holds"),
        call(scripts.hook_few, "allow-few", f"the hook, {FEW} holds"),
        call(scripts.hook, "other", "the hook, any other operation", operation="release"),
    )


def _call(
    launch: Launcher,
    script: Path,
    key: str,
    title: str,
    *,
    prefix: str,
    operation: str = "prepare",
    document: bytes | None = None,
    status: int = 0,
) -> Case:
    xml = guest.document() if document is None else document
    argv = [str(script), "instance-0000a3f1", operation, "begin", "-"]

    def run() -> float:
        done = launch(argv, xml)
        if done.status != status:
            raise WrongVerdict(f"{title}: exit status {done.status}, expected {status}")
        return done.seconds

    return Case(f"{prefix}.{key}", title, run)


def _hook(directory: Path, database: Path, decide: Path = DECIDE) -> Hook:
    directory.mkdir(exist_ok=True)
    hook = Hook(directory, database, decide=decide)
    hook.write()
    return hook


def _copied(source: Filled, path: Path) -> Filled:
    path.parent.mkdir()
    shutil.copyfile(source.path, path)
    return Filled(path, source.instance, source.disk)


def _asking(database: str, query: str) -> str:
    return f"{_EMPTY}x=$({SQLITE3} -batch -init /dev/null {database} '{query}')\n"


def _write(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)
    return path
