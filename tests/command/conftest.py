"""A CLI with a new database, and a libvirt that knows ``web`` (running) and ``db`` (shut off)."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from clirunner import DOMAIN, RUNNING, SHUT_OFF, Cli
from lockdb import database


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    node = tmp_path / "node.xml"
    domains = [
        DOMAIN.format(name="web", uuid=RUNNING, disk="/images/web.img", state=1),
        DOMAIN.format(name="db", uuid=SHUT_OFF, disk="/images/db.img", state=5),
    ]
    node.write_text(f"<node>{''.join(domains)}</node>", "utf-8")
    path = tmp_path / "lock" / "lock.db"
    database.create(path, now=1, host=platform.node())

    def read() -> tuple[str, str]:
        captured = capsys.readouterr()
        return captured.out, captured.err

    return Cli(path, f"test://{node}", read)
