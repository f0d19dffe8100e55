"""A built copy of the source tree, and real hosts to install it on."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from privatehost import PrivateHost

SOURCES = Path(__file__).resolve().parents[2]

# What a private host keeps outside of its /etc, /usr and /var: directories of its own, bound there.
BOUND = ("/etc/bootlock", "/usr/share/bootlock", "/var/lib/bootlock")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree in which `make build` was run. What is done in it leaves no trace in ours."""
    tree = tmp_path_factory.mktemp("tree") / "bootlock"
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "__pycache__")
    shutil.copytree(SOURCES, tree, symlinks=True, ignore=unwanted)
    done = subprocess.run(
        ["make", "-C", tree, "build"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return tree


@pytest.fixture
def host() -> Iterator[PrivateHost]:
    """A host that bootlock was never on. All it gets in /usr, /etc and /var/lib is thrown away."""
    with PrivateHost(scratch=("/usr",)) as host:
        for directory in BOUND:
            host.run(["umount", directory])
            host.run(["rmdir", directory])
        yield host
