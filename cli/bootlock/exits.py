"""The exit codes, which scripts depend on, and what leads to each."""

from __future__ import annotations

from enum import IntEnum

from bootlockd.errors import ConfigError, FenceError, Unreachable
from bootlockd.sources.base import SourceError
from lockdb.errors import (
    AmbiguousPrefix,
    DatabaseError,
    InvalidValue,
    LockDBError,
    NotFound,
    NotNow,
)


class Exit(IntEnum):
    """Documented in every command's help and in the manual: never renumber."""

    DONE = 0
    REFUSED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_NOW = 4
    DATABASE = 5
    UNREACHABLE = 6


_BY_ERROR: list[tuple[type[LockDBError], Exit]] = [
    (InvalidValue, Exit.USAGE),
    (AmbiguousPrefix, Exit.USAGE),
    (ConfigError, Exit.USAGE),
    (NotFound, Exit.NOT_FOUND),
    (NotNow, Exit.NOT_NOW),
    (DatabaseError, Exit.DATABASE),
    # What a fence keeps on this host can't be read.
    (FenceError, Exit.DATABASE),
    (Unreachable, Exit.UNREACHABLE),
    (SourceError, Exit.UNREACHABLE),
]


def exit_of(error: LockDBError) -> Exit:
    """The exit code of an error; an error that is not in the list is a defect."""
    return next(code for kind, code in _BY_ERROR if isinstance(error, kind))
