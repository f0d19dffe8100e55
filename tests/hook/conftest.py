"""The hook with a database that holds ``HELD``; ``FREE`` is not in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hookrunner import Hook
from samples import place


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    """libvirtd runs the hook as root; as anybody else it would let everything undecided through."""
    if os.geteuid() != 0:
        pytest.fail("these tests need root, as the hook does")


@pytest.fixture
def hook(tmp_path: Path) -> Hook:
    hook = Hook.install(tmp_path)
    place(hook.database)
    return hook
