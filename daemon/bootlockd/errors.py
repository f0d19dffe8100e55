"""What the daemon's parts raise. All carry one line, and a next step.

BootlockdError
├── ConfigError     a setting that can't be used: names file and key
├── Unreachable     libvirt did not answer
│   └── NoSuchDriver    it never will at this URI: there is no such driver on this host
├── NotStarted      libvirt did not start a guest
├── FenceError      a fence could not do what a hold orders
└── SourceError     a source of holds can't be read (sources/base.py)
"""

from __future__ import annotations

from lockdb.errors import LockDBError


class BootlockdError(LockDBError):
    """A failure with a next step, as lockdb's."""

    #: Of a program that it ends: as a rule its settings are of no use.
    exit_code = 2


class ConfigError(BootlockdError):
    """``path: key: problem``."""


class Unreachable(BootlockdError):
    """libvirt did not answer, or not in time."""


class NoSuchDriver(Unreachable):
    """This host has no such driver of libvirt's, and so none of its guests."""


class NotStarted(BootlockdError):
    """libvirt's own words, and where to look."""


class FenceError(BootlockdError):
    """Why it could not be done, on what, and what to do."""
