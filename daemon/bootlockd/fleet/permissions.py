"""What the registry says of each permit: turns its keys into permits and revocations.

A permit loosens. So what can't be read grants nothing, and is said; and that a key is gone says
nothing at all, since a permit ends by itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from bootlockd.fleet import records
from bootlockd.fleet.keys import Keys
from bootlockd.fleet.records import BadRecord
from bootlockd.fleet.wire import KeyValue
from bootlockd.sources.base import Revocation
from lockdb.values import Permit


class Permissions:
    """What was read so far, and what is wrong with which permit."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._problems: dict[str, str] = {}
        #: Why none of them may be read.
        self.refused = ""
        #: Something is no longer wrong, which only reading everything takes back.
        self.is_cleared = False

    @property
    def faults(self) -> tuple[str, ...]:
        """One line each."""
        lines = [f"permit {name}: {problem}" for name, problem in self._problems.items()]
        return (*([self.refused] if self.refused else []), *lines)

    @property
    def unread(self) -> list[str]:
        """Permits whose value can't be read."""
        return sorted(self._problems)

    def forget(self) -> None:
        """Everything is read again."""
        self._problems, self.is_cleared = {}, False

    def read(self, items: Iterable[KeyValue]) -> tuple[tuple[Permit, ...], tuple[Revocation, ...]]:
        """What these keys grant and end."""
        granted, revoked = [], []
        for item in items:
            name = self._keys.name_of(item.key)
            self._clear(name)
            try:
                record = records.decoded_permit(name, item.value)
            except BadRecord as error:
                self._problems[name] = f"its value can't be read, it grants nothing: {error}"
                continue
            if record.revoked:
                revoked.append(Revocation(name, record.revoked.by, record.evidence))
            elif record.permit:
                granted.append(record.permit)
        return tuple(granted), tuple(revoked)

    def gone(self, items: Iterable[KeyValue]) -> None:
        """These keys were deleted."""
        for item in items:
            self._clear(self._keys.name_of(item.key))

    def _clear(self, name: str) -> None:
        self.is_cleared = self._problems.pop(name, None) is not None or self.is_cleared
