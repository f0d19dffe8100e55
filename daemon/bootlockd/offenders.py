"""A QEMU that uses something held past libvirt: who it is, and how to mean it and nobody else.

A process is meant by its PID and start time, and held by a pidfd: what was read of it while the
pidfd was open is true of it if it has not ended afterwards.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bootlockd.qemus import Match, printable, start_of


@dataclass(frozen=True)
class Offender:
    """A QEMU that is not libvirt's and uses something held."""

    match: Match
    pid: int
    #: With ``pid``, the process and no other.
    start: int
    #: As text for staff; the process chose it.
    exe: str
    uid: int

    @property
    def process(self) -> tuple[int, int]:
        """The process, and no later one of its number."""
        return (self.pid, self.start)


@dataclass(frozen=True)
class Finding:
    """What was done about an offender."""

    offender: Offender
    killed: bool
    #: Milliseconds after its exec; None if that was not seen.
    after: float | None = None


@contextmanager
def opened(pid: int) -> Iterator[int | None]:
    """A pidfd; None if there is no such process."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        yield None
        return
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def has_ended(pidfd: int) -> bool:
    """Whether the process of a pidfd lives no more, so that its number may be another's."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def lives(pid: int, start: int) -> bool:
    """Whether this very process is there, be it dead and not reaped."""
    try:
        return start_of(pid) == start
    except OSError:
        return False


def offender_of(pid: int, match: Match) -> Offender | None:
    """Who it is; None if it has ended."""
    try:
        exe = printable(os.readlink(b"/proc/%d/exe" % pid))
        return Offender(match, pid, start_of(pid), exe, os.stat(f"/proc/{pid}").st_uid)
    except OSError:
        return None
