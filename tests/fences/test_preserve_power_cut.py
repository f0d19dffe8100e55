"""The power is cut between each two steps of preserving and of its undo: both end whole.

What is a step is not listed here: it is whatever changes a file system, and each transaction.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from domainxml import file_disk
from fences.preservescene import (
    Boundaries,
    Box,
    Scene,
    cut_in,
    in_own_mounts,
    is_immutable,
    make_immutable,
    mounted,
    overlay,
)
from lockdb.enforcements import State
from lockdb.preserved import Stage
from lockdb.values import Hold
from privatehost import PrivateHost

pytestmark = pytest.mark.live

#: More than there are steps: whoever needs so many does not come to an end.
MANY = 60


def treated(scene: Scene, hold: Hold, state: State) -> None:
    """What a daemon does that is started afterwards."""
    for _ in range(3):
        scene.treat()
    assert scene.outcome(hold).state is state, scene.outcome(hold).detail


def lower(scene: Scene) -> Path:
    """What its disk is an overlay of."""
    return scene.directory.parent / "base.img"


def contents(scene: Scene) -> list[bytes]:
    return [path.read_bytes() for path in (scene.disk, lower(scene))]


def is_kept(scene: Scene) -> None:
    links = {link.stat().st_ino for link in scene.links.iterdir()}
    assert links == {path.stat().st_ino for path in (scene.disk, lower(scene))}
    assert is_immutable(scene.links)
    assert is_immutable(scene.disk)
    assert not is_immutable(lower(scene))
    assert is_immutable(scene.directory)
    assert {row.stage for row in scene.rows()} == {Stage.KEPT}


def is_as_before(scene: Scene) -> None:
    assert not is_immutable(scene.disk)
    assert not is_immutable(scene.directory)
    assert not scene.links.exists()
    assert {path.stat().st_nlink for path in (scene.disk, lower(scene))} == {1}
    assert not any(row.stands for row in scene.rows())


def preserve(scene: Scene, box: Box, boundaries: Boundaries, at: int) -> bool:
    hold = scene.place()
    was_cut = cut_in(scene.treat, box, boundaries, at)
    treated(scene, hold, State.ENFORCED)
    is_kept(scene)
    scene.release(hold)
    treated(scene, hold, State.LIFTED)
    is_as_before(scene)
    return was_cut


def preserve_then_release_at_once(scene: Scene, box: Box, boundaries: Boundaries, at: int) -> bool:
    """The hold is gone before anybody could go on with it."""
    hold = scene.place()
    was_cut = cut_in(scene.treat, box, boundaries, at)
    scene.release(hold)
    for _ in range(2):
        scene.treat()
    is_as_before(scene)
    return was_cut


def undo(scene: Scene, box: Box, boundaries: Boundaries, at: int) -> bool:
    hold = scene.place()
    scene.treat()
    is_kept(scene)
    scene.release(hold)
    was_cut = cut_in(scene.treat, box, boundaries, at)
    treated(scene, hold, State.LIFTED)
    is_as_before(scene)
    return was_cut


def put_back(scene: Scene, box: Box, boundaries: Boundaries, at: int) -> bool:
    """Both names were removed, past the flag."""
    hold = scene.place()
    scene.treat()
    for path in (scene.disk, scene.directory):
        make_immutable(path, wanted=False)
    for path in (scene.disk, lower(scene)):
        path.unlink()
    # Whoever was at it when the name went has set this one again.
    make_immutable(scene.directory)
    os.sync()
    was_cut = cut_in(scene.treat, box, boundaries, at)
    treated(scene, hold, State.ENFORCED)
    is_kept(scene)
    scene.release(hold)
    treated(scene, hold, State.LIFTED)
    is_as_before(scene)
    return was_cut


@pytest.mark.parametrize(
    ("story", "database_is_cut"),
    [
        (preserve, True),
        (preserve_then_release_at_once, True),
        (put_back, True),
        (undo, True),
        # What it noted, on another disk, is there: then so must be what it did.
        (undo, False),
    ],
)
def test_cut_anywhere_it_ends_whole(
    host: PrivateHost,
    tmp_path: Path,
    story: Callable[[Scene, Box, Boundaries, int], bool],
    database_is_cut: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run() -> None:
        with mounted(tmp_path) as box:
            scene = Scene(host, box.root, None if database_is_cut else tmp_path / "state")
            lower(scene).write_bytes(b"the provider's" * 1000)
            overlay(scene.disk, lower(scene))
            scene.define(file_disk(scene.disk, image="qcow2"))
            os.sync()
            cuts = 0
            before = contents(scene)
            boundaries = Boundaries(box, monkeypatch)
            try:
                while cuts < MANY and story(scene, box, boundaries, cuts + 1):
                    cuts += 1
                    assert contents(scene) == before
            finally:
                boundaries.is_open = False
            scene.undefine()
            print(f"{story.__name__}: cut {cuts} times, between {sorted(boundaries.kinds)}")
            assert 5 < cuts < MANY

    in_own_mounts(run)
