"""Which guests left this host by a migration, as far as libvirt's events said so.

A migration may take the definition with it. To look at an instance that is not defined any more
does not tell that from an undefine, and to define it here again would make two of it.
"""

from __future__ import annotations

import threading


class Departures:
    """What this process heard of leaving guests. For any thread."""

    def __init__(self) -> None:
        self._changes = threading.Lock()
        self._left: set[str] = set()
        self._hearings: dict[str, int] = {}
        self._count = 0

    def hears(self, uri: str) -> None:
        """From now on events of this libvirt arrive."""
        with self._changes:
            self._count += 1
            self._hearings[uri] = self._count

    def is_deaf(self, uri: str) -> None:
        """No event of this libvirt arrives any more."""
        with self._changes:
            self._hearings.pop(uri, None)

    def hearing(self, uri: str) -> int | None:
        """The number of the time of hearing that goes on; None: nothing is heard.

        The same number twice: no event was missed between.
        """
        with self._changes:
            return self._hearings.get(uri)

    def left(self, instance: str) -> None:
        """A migration took it elsewhere."""
        with self._changes:
            self._left.add(instance)

    def came(self, instance: str) -> None:
        """It was defined or started here."""
        with self._changes:
            self._left.discard(instance)

    def has_left(self, instance: str) -> bool:
        """A migration took it elsewhere, and it did not come back."""
        with self._changes:
            return instance in self._left


departures = Departures()
