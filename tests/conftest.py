"""Settings for all tests."""

from __future__ import annotations

from hypothesis import settings

from leftovers import pytest_sessionfinish, pytest_sessionstart

__all__ = ["pytest_sessionfinish", "pytest_sessionstart"]

# The same examples every time, and no time limit: a busy machine is not a fault.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
