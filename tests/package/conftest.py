"""The package, the one that comes after it, and real hosts to install them on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import installing
from privatehost import PrivateHost


@pytest.fixture(scope="session")
def tree(common_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree in which `make deb` was run."""
    return installing.built_once(common_directory, tmp_path_factory.mktemp("tree") / "bootlock")


@pytest.fixture(scope="session")
def package(tree: Path) -> Path:
    """The package."""
    (package,) = tree.glob("dist/bootlock_*.deb")
    return package


@pytest.fixture(scope="session")
def next_package(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one that comes after it."""
    return installing.following(package, tmp_path_factory.mktemp("next"))


@pytest.fixture
def host() -> Iterator[PrivateHost]:
    """A host that bootlock was never on."""
    with installing.new_host() as host:
        # An index of all manuals, made anew after each package, takes longer than all else.
        host.run(["rm", "-f", "/var/lib/man-db/auto-update"])
        yield host
