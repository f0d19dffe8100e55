"""Settings for all tests, and what most of them start from: a database, a libvirt host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from leftovers import pytest_sessionfinish, pytest_sessionstart
from lockdb import database
from lockdb.database import LockDB
from privatehost import PrivateHost

__all__ = ["pytest_sessionfinish", "pytest_sessionstart"]

# The same examples every time, and no time limit: a busy machine is not a fault.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def common_directory(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A directory of this run of tests, the same for all of its processes."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A new lock database."""
    path = tmp_path / "state" / "lock.db"
    database.create(path, now=1, host="test")
    return path


@pytest.fixture
def lock_db(path: Path) -> Iterator[LockDB]:
    """The same, open."""
    with database.open_db(path) as lock_db:
        yield lock_db


@pytest.fixture(scope="module")
def host() -> Iterator[PrivateHost]:
    """A real libvirt host with the hook and an empty database, for the tests of one module."""
    with PrivateHost() as host:
        host.install_bootlock()
        yield host
