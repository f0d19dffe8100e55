"""A new lock database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lockdb import database
from lockdb.database import LockDB


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "state" / "lock.db"
    database.create(path, now=1, host="test")
    return path


@pytest.fixture
def lock_db(path: Path) -> Iterator[LockDB]:
    with database.open_db(path) as lock_db:
        yield lock_db
