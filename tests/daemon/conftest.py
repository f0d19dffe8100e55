"""A private host with the hook installed, for the tests of one module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lockdb import database
from privatehost import PrivateHost


@pytest.fixture(scope="module")
def host() -> Iterator[PrivateHost]:
    with PrivateHost() as host:
        host.install_bootlock()
        yield host


@pytest.fixture
def lock_db(tmp_path: Path) -> Path:
    """A new, empty lock database."""
    path = tmp_path / "lock" / "lock.db"
    database.create(path, now=1, host="test")
    return path
