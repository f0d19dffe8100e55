"""Cgroups of a private host's own, without which libvirt starts no container."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Self

from waiting import wait_until

# Moves itself into the given cgroups (up to `--`), then becomes the rest of its arguments.
_JOIN = r"""
set -eu
while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done
shift
exec "$@"
"""


class Cgroups:
    """The cgroups of one host: a directory in each hierarchy, the root of a cgroup namespace.

    The daemons live in ``inside`` below it: with cgroup v2 a group that hands controllers on to
    its children, as libvirt makes the root do, can't hold processes itself.
    """

    def __init__(self, groups: Sequence[Path] = (), controllers: Sequence[str] = ()) -> None:
        self.controllers = tuple(controllers)
        self._groups = tuple(groups)

    @classmethod
    def make(cls, name: str, hierarchies: Mapping[str, Path]) -> Self:
        """New ones of this name in ``hierarchies``, as ``mounted_hierarchies`` gives them."""
        made = cls([mount / name for mount in hierarchies.values()], list(hierarchies))
        try:
            for group in made._groups:
                for directory in (group, group / "inside"):
                    directory.mkdir()
                    for value in ("cpuset.cpus", "cpuset.mems"):  # v1 starts with none of them
                        if (directory / value).exists() and made.controllers != ("2",):
                            (directory / value).write_text((directory.parent / value).read_text())
        except BaseException:
            made.remove()
            raise
        return made

    def rooting(self, argv: Sequence[str]) -> list[str]:
        """The command that makes these the root of a new cgroup namespace and runs argv there."""
        to_the_root = ["sh", "-c", _JOIN, "join", *map(str, self._groups), "--"]
        return [*to_the_root, "unshare", "--cgroup", *self.joining(argv)]

    def joining(self, argv: Sequence[str]) -> list[str]:
        """The command that runs argv in these cgroups."""
        if not self._groups:
            return list(argv)
        inside = [str(group / "inside") for group in self._groups]
        return ["sh", "-c", _JOIN, "join", *inside, "--", *argv]

    def remove(self) -> None:
        """Take them away, as soon as what ran in them is gone."""
        for group in self._groups:
            for directory, _, _ in os.walk(group, topdown=False):
                wait_until(partial(_removed, directory), f"cgroup {directory} is empty")
        self._groups = ()


def _removed(cgroup: str) -> bool:
    try:
        os.rmdir(cgroup)
    except FileNotFoundError:
        return True
    except OSError:  # the kernel takes a moment to forget the dead
        return False
    return True


def mounted_hierarchies() -> dict[str, Path]:
    """Where the cgroup controllers are: v1 by their names, or v2 alone as ``2``; nowhere: empty.

    On a hybrid machine the controllers are v1's; libvirt then can't use the `unified` tree.
    """
    v1: dict[str, Path] = {}
    v2: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        _, _, _, top, mount = before.split()[:5]
        kind, _, options = after.split()[:3]
        if top != "/":
            continue
        if kind == "cgroup2":
            v2["2"] = Path(mount)
        elif kind == "cgroup" and "name=" not in options:
            controllers = [o for o in options.split(",") if o not in ("rw", "ro", "xattr")]
            v1[",".join(controllers)] = Path(mount)
    return v1 or v2
