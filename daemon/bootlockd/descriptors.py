"""Open files that outlast this process, in systemd's file descriptor store (sd_pid_notify(3)).

The store hands them back when the service is started again, SIGKILL included; it drops them when
the service is stopped. Without systemd they last as long as this process.

There is one ``Descriptors`` a process: what the store handed back can be taken only once, and
reading the settings again must not lose it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from bootlockd.notify import kept_descriptors, notify

#: The kernel's limit for one message is 253.
_BATCH = 200


class Descriptors:
    """Named groups of open files. Each group is changed by one thread at a time."""

    def __init__(self, kept: Mapping[str, Sequence[int]]) -> None:
        self._lock = threading.Lock()
        self._groups = {name: list(descriptors) for name, descriptors in kept.items()}

    def of(self, name: str) -> list[int]:
        """The group's open files."""
        with self._lock:
            return list(self._groups.get(name, ()))

    def replace(self, name: str, wanted: Sequence[int]) -> None:
        """Make ``wanted`` the group; close what else was in it. Raises OSError."""
        had = self.of(name)
        with self._lock:
            self._groups.pop(name, None)
            if wanted:
                self._groups[name] = list(wanted)
        if had:
            # The store knows groups only as a whole.
            notify("FDSTOREREMOVE=1", f"FDNAME={name}")
        for batch in _batches(wanted):
            notify("FDSTORE=1", f"FDNAME={name}", descriptors=batch)
        for descriptor in had:
            if descriptor not in wanted:
                os.close(descriptor)


@cache
def of_this_process() -> Descriptors:
    """What the service manager kept for us, and what has come since."""
    return Descriptors(kept_descriptors())


def _batches(descriptors: Sequence[int]) -> Iterable[Sequence[int]]:
    return (descriptors[at : at + _BATCH] for at in range(0, len(descriptors), _BATCH))
