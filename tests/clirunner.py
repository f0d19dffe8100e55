"""Runs the CLI in this process, on a database of the test's own, with libvirt's test driver."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootlock.main import main
from lockdb import database, journal

RUNNING = "11111111-1111-4111-8111-111111111111"
SHUT_OFF = "22222222-2222-4222-8222-222222222222"

DOMAIN = """
  <domain type='test'>
    <name>{name}</name>
    <uuid>{uuid}</uuid>
    <memory>8192</memory>
    <os><type>hvm</type></os>
    <devices>
      <disk type='file' device='disk'>
        <source file='{disk}'/>
        <target dev='vda'/>
      </disk>
    </devices>
    <t:runstate xmlns:t='http://libvirt.org/schemas/domain/test/1.0'>{state}</t:runstate>
  </domain>"""


@contextmanager
def nobody() -> Iterator[None]:
    """This process as a user without rights. A command of its own could not reach the checkout."""
    groups = os.getgroups()
    os.setgroups([])
    os.setresgid(65534, 65534, 0)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)


@dataclass(frozen=True)
class Result:
    exit: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Cli:
    """``cli("place", ...)`` runs a command; ``path`` is its database, ``uri`` its libvirt."""

    path: Path
    uri: str
    read: Callable[[], tuple[str, str]]

    def __call__(self, *arguments: str) -> Result:
        code = main(["--database", str(self.path), "--connect", self.uri, *arguments])
        return Result(code, *self.read())

    def ok(self, *arguments: str) -> Result:
        result = self(*arguments)
        assert result.exit == 0, result
        return result

    def place(self, instance: str, *options: str) -> str:
        """Place a hold; its id."""
        arguments = ["place", instance, "--reason", "a test", "--json", *options]
        return str(self.ok(*arguments).json["id"])

    def head(self) -> journal.Head:
        with database.open_db(self.path, read_only=True) as lock_db:
            return journal.head(lock_db.db)
