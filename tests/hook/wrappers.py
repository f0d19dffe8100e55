"""Commands that run their arguments in a worse world: a full disk, fewer rights, no input."""

from __future__ import annotations

from pathlib import Path

CLOSED_STDIN = ("/bin/sh", "-c", 'exec "$@" <&-', "sh")

NOBODY = 65534
AS_NOBODY = (
    "/usr/bin/setpriv",
    f"--reuid={NOBODY}",
    f"--regid={NOBODY}",
    "--clear-groups",
    "--",
)

_POWERS = "-dac_override,-dac_read_search"
#: Root to whom file modes apply, as mandatory access control can make it.
ROOT_WITHOUT_POWERS = (
    "/usr/bin/setpriv",
    f"--bounding-set={_POWERS}",
    f"--inh-caps={_POWERS}",
    "--",
)

# $1: the directory that moves to a small file system, $2: what happens to that.
_OWN_MOUNTS = """
set -eu
cd "$1"
mount -t tmpfs -o size=1m tmpfs "$1"
cp -a . "$1"
cd "$1"
eval "$2"
cd /
shift 2
exec "$@"
"""


def _in_own_mounts(directory: Path, then: str) -> tuple[str, ...]:
    return ("/usr/bin/unshare", "-m", "/bin/sh", "-c", _OWN_MOUNTS, "sh", str(directory), then)


def full_disk(directory: Path) -> tuple[str, ...]:
    """No byte is left on the file system of ``directory``."""
    return _in_own_mounts(directory, "cat /dev/zero >fill 2>/dev/null || :")


def read_only(directory: Path) -> tuple[str, ...]:
    """The file system of ``directory`` has gone read-only."""
    return _in_own_mounts(directory, "mount -o remount,ro .")


def instead_of(path: str, other: Path) -> tuple[str, ...]:
    """The file or directory ``other`` is found at ``path``."""
    mount = 'mount --bind "$1" "$2"; shift 2; exec "$@"'
    return ("/usr/bin/unshare", "-m", "/bin/sh", "-euc", mount, "sh", str(other), path)
