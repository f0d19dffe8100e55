"""A built copy of the source tree, and real hosts to install it on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import installing
from privatehost import PrivateHost


@pytest.fixture(scope="session")
def built(common_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree in which `make build` was run."""
    return installing.built_once(common_directory, tmp_path_factory.mktemp("tree") / "bootlock")


@pytest.fixture
def host() -> Iterator[PrivateHost]:
    """A host that bootlock was never on."""
    with installing.new_host() as host:
        yield host
