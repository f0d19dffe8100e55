"""What a fence is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from bootlockd.values import Case, Outcome, Wake
from lockdb.values import Hold


class Fence(Protocol):
    """One mechanism that makes a hold true.

    The daemon calls ``apply``, ``verify`` and ``lift`` for one instance at a time, from a thread of
    that instance's own: two instances at once, one instance never twice at once. Each may be called
    again after it was interrupted anywhere, by SIGKILL too, and then ends where it would have
    ended. They may block; nothing else waits but this instance. They return an Outcome, or raise
    FenceError (the row is FAILED and tried again) or Unreachable.
    """

    #: As in the enforcement table and the documentation.
    name: str

    def asks(self, hold: Hold) -> bool:
        """Whether this hold orders this fence. Pure."""

    def wanted(self, case: Case) -> bool:
        """Whether it must be up for this instance now: ordered and not permitted away. Pure."""

    def reaches(self, case: Case) -> bool:
        """Whether there is anything on this host that it could act on. Pure but for a stat()."""

    def apply(self, case: Case) -> Outcome:
        """Make it true. May return PENDING with ``next_try`` rather than wait long."""

    def verify(self, case: Case) -> Outcome:
        """Look whether it is true: ENFORCED only if that was seen just now. Changes nothing."""

    def lift(self, case: Case) -> Outcome:
        """Undo it, exactly. LIFTED when nothing of it is left."""

    def prepare(self, case: Case) -> Outcome | None:
        """What can be done before libvirt answers, at the daemon's start: ``guest`` is unknown.

        Called where it is wanted, and, for an outcome of PENDING, once more when that is recorded.
        None: nothing to tell before libvirt has told of the guest.
        """

    def start(self, wake: Callable[[Wake], None]) -> None:
        """Begin to watch for what only this fence sees; ``wake`` may be called from any thread."""

    def follow(self, cases: Sequence[Case]) -> None:
        """All instances that have holds or rows, at each full look: what a watcher guards.

        Without any guest at the start, and where libvirt does not answer. Returns at once.
        """

    def stop(self) -> None:
        """End the watchers. What is enforced stays enforced."""


class Quiet:
    """A fence without watchers, that can do nothing before libvirt answers."""

    def prepare(self, case: Case) -> Outcome | None:
        """Nothing."""

    def start(self, wake: Callable[[Wake], None]) -> None:
        """No watcher."""

    def follow(self, cases: Sequence[Case]) -> None:
        """No watcher."""

    def stop(self) -> None:
        """No watcher."""
