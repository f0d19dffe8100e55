"""Runs the real hook as libvirt does, against a database of the test's own.

The hook names its files absolutely, so a test runs a copy of it in which exactly those lines are
different. Nothing else of it may be replaced.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self
from xml.sax.saxutils import escape

from lockdb.database import create

SOURCES = Path(__file__).resolve().parents[1]
HOOK = SOURCES / "hooks" / "50-bootlock"
DECIDE = SOURCES / "lockdb" / "lockdb" / "decide.sql"
SQLITE3 = Path("/usr/bin/sqlite3")

#: What libvirt leaves of the environment.
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/"}

_ENTITIES = {"'": "&apos;", '"': "&quot;"}


@dataclass(frozen=True)
class Answer:
    """What libvirt gets from the hook."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def line(self) -> str:
        """The one line on standard error; fails if there is not exactly one."""
        text = self.stderr.decode()
        assert text.endswith("\n"), text
        assert text.count("\n") == 1, text
        return text[:-1]


@dataclass(frozen=True)
class Hook:
    """A copy of the hook in ``directory``, and the paths it was given."""

    directory: Path
    database: Path
    sqlite3: Path = SQLITE3
    decide: Path = DECIDE
    shell: tuple[str, ...] = ()

    @classmethod
    def install(cls, directory: Path) -> Self:
        """Copy the hook there, with a fresh database in ``state`` below it."""
        database = directory / "state" / "lock.db"
        create(database, now=0, host="test")
        hook = cls(directory, database)
        hook.write()
        return hook

    @property
    def script(self) -> Path:
        return self.directory / "50-bootlock"

    @property
    def break_glass(self) -> Path:
        return self.directory / "break-glass"

    @property
    def upgrading(self) -> Path:
        return self.directory / "upgrading"

    def write(self) -> None:
        """Write the copy with this object's paths."""
        lines = HOOK.read_text().splitlines(keepends=True)
        for name in ("sqlite3", "database", "decide", "break_glass", "upgrading"):
            (place,) = (n for n, line in enumerate(lines) if line.startswith(f"{name}="))
            lines[place] = f"{name}={getattr(self, name)}\n"
        self.script.write_text("".join(lines))
        self.script.chmod(0o755)

    def with_paths(self, **paths: Path) -> Self:
        """The same hook with other paths."""
        other = replace(self, **paths)  # type: ignore[arg-type]  # none of them is called shell
        other.write()
        return other

    def run(
        self,
        document: str | bytes,
        operation: str = "start",
        *,
        name: str | bytes = "guest",
        wrapper: Sequence[str] = (),
    ) -> Answer:
        """Run it as libvirt would."""
        return self.call([name, operation, "begin", "-"], document, wrapper=wrapper)

    def call(
        self,
        arguments: Sequence[str | bytes],
        document: str | bytes,
        *,
        wrapper: Sequence[str] = (),
    ) -> Answer:
        """Run it with these arguments; ``wrapper`` is a command that runs its own arguments."""
        done = subprocess.run(
            [*wrapper, *self.shell, self.script, *arguments],
            input=document.encode() if isinstance(document, str) else document,
            capture_output=True,
            cwd="/",
            env=ENVIRONMENT,
            check=False,
            timeout=60,
        )
        return Answer(done.returncode, done.stdout, done.stderr)


def domain_xml(uuid: str, name: str = "guest", disks: Iterable[str] = ()) -> str:
    """A domain in libvirt's own formatting; ``disks`` are whole <disk> elements."""
    devices = "".join(f"    {disk}\n" for disk in disks)
    return (
        "<domain type='qemu'>\n"
        f"  <name>{escape(name, _ENTITIES)}</name>\n"
        f"  <uuid>{uuid}</uuid>\n"
        "  <memory unit='KiB'>65536</memory>\n"
        f"  <devices>\n{devices}  </devices>\n"
        "</domain>\n"
    )
