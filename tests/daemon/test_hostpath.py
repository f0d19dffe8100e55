"""What the unit hides of the host is reached all the same, and only what is there."""

import subprocess
import sys
from pathlib import Path

import pytest

from bootlockd import hostpath, imagelocks

pytestmark = pytest.mark.live

#: With a first process that sees everything, and another that has one directory hidden.
_HIDING = (
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-euc"),
    'unshare --mount sh -euc \'mount -t tmpfs none "$1"; shift; "$@"\' sh "$@"; exit',
    "sh",
)


def _hidden(directory: Path, script: str, *arguments: Path | str) -> str:
    command = [*_HIDING, directory, sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    found = tmp_path / "hidden"
    found.mkdir()
    (found / "disk").write_bytes(b"a disk")
    return found


@pytest.mark.parametrize(
    "name",
    ["hidden/disk", "hidden/./../hidden//disk", "hidden/by-name", "hidden/by-path", "outside/disk"],
)
def test_a_hidden_file_is_found_by_every_kind_of_name(
    secret: Path, tmp_path: Path, name: str
) -> None:
    (secret / "by-name").symlink_to("../hidden/disk")
    (secret / "by-path").symlink_to(secret / "by-name")
    (tmp_path / "outside").symlink_to(secret)
    script = (
        "import sys; from bootlockd import hostpath\n"
        "found = hostpath.reachable(sys.argv[1])\n"
        "print(open(found).read(), hostpath.real(sys.argv[1]))\n"
    )
    assert _hidden(secret, script, f"{tmp_path}/{name}") == f"a disk {secret / 'disk'}\n"


def test_its_image_is_locked_for_all(secret: Path) -> None:
    script = (
        "import os, sys; from bootlockd import imagelocks\n"
        "disk = imagelocks.open_disk(sys.argv[1])\n"
        "assert imagelocks.inode_at(sys.argv[1]) == imagelocks.inode_of(disk)\n"
        "assert imagelocks.take(disk) and imagelocks.is_taken(disk)\n"
        "print(imagelocks.inode_at(sys.argv[1]))\n"
    )
    assert (
        _hidden(secret, script, secret / "disk") == f"{imagelocks.inode_at(str(secret / 'disk'))}\n"
    )


def test_what_is_nowhere_keeps_its_name(secret: Path) -> None:
    script = (
        "import sys; from bootlockd import hostpath\n"
        "for name in (sys.argv[1], 'relative', '/with\\0zero'):\n"
        "    assert hostpath.reachable(name) == name, name\n"
    )
    _hidden(secret, script, secret / "nothing")


def test_links_that_lead_in_a_circle_are_an_error(secret: Path) -> None:
    (secret / "a").symlink_to("b")
    (secret / "b").symlink_to(secret / "a")
    script = (
        "import sys; from bootlockd import hostpath\n"
        "try: hostpath.reachable(sys.argv[1])\n"
        "except OSError as error: print(error.strerror)\n"
    )
    assert _hidden(secret, script, secret / "a") == "Too many levels of symbolic links\n"


def test_what_is_here_is_used_as_it_is(secret: Path) -> None:
    (secret / "link").symlink_to("disk")
    assert hostpath.reachable(str(secret / "link")) == str(secret / "link")
    assert hostpath.real(str(secret / "link")) == str(secret / "disk")
