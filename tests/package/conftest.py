"""The package, the one that comes after it, and real hosts to install them on."""

from __future__ import annotations

import subprocess
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
    """A later version, the hook of which decides from a database of another format."""
    unpacked = tmp_path_factory.mktemp("next") / "bootlock"
    subprocess.run(["dpkg-deb", "-R", package, unpacked], check=True)
    (lockdb,) = unpacked.glob("usr/lib/bootlock/lib/python3*/site-packages/lockdb")
    _edit(unpacked / "DEBIAN/control", "\nVersion: ", "\nVersion: 9.")
    _edit(unpacked / "DEBIAN/preinst", "name NOT IN (", "name NOT IN ('m9999_next', ")
    for decide in (lockdb / "decide.sql", unpacked / "usr/lib/bootlock/host/decide.sql"):
        _edit(decide, "= 'decision') IS NOT '2'", "= 'decision') IS NOT '3'")
    with (lockdb / "migrations.py").open("a") as file:
        file.write(_NEXT_STEP)
    package = unpacked.with_suffix(".deb")
    build = ["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(unpacked), str(package)]
    subprocess.run(build, check=True, capture_output=True)
    return package


_NEXT_STEP = """

@migrations()
def m9999_next(db: Database) -> None:
    db.execute("UPDATE meta SET value = '3' WHERE key = 'decision'")
"""


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert text.count(old) == 1, path
    path.write_text(text.replace(old, new), "utf-8")


@pytest.fixture
def host() -> Iterator[PrivateHost]:
    """A host that bootlock was never on."""
    with installing.new_host() as host:
        # An index of all manuals, made anew after each package, takes longer than all else.
        host.run(["rm", "-f", "/var/lib/man-db/auto-update"])
        yield host
