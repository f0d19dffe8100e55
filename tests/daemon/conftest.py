"""A lock database that nobody has open."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockdb import database


@pytest.fixture
def lock_db(tmp_path: Path) -> Path:
    """A new, empty lock database."""
    path = tmp_path / "lock" / "lock.db"
    database.create(path, now=1, host="test")
    return path
