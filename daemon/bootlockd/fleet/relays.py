"""What a relay says of itself: in the registry, for admins, and in a file, for metrics.

In the registry it outlives the relay: when none leads any more, it says how far the last one came.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from bootlockd.sources.base import printable_line
from lockdb.values import UNTIL_MAX

SCHEMA = 1
_LONGEST = 80


@dataclass(frozen=True)
class RelayReport:
    """``problem``: it can't be read.

    ``read_at``: when what Nova said was last written, 0: never; ``whole_at``: of a look at
    everything. ``stale_after``: how old the relay lets that become. ``holds``: its own in force.
    ``faults``: what it could not be told at the last look at everything. ``waiting``: releases that
    are more than the guard allows. ``failing``: what does not work, in one word each.
    """

    name: str = ""
    problem: str = ""
    leads: bool = False
    read_at: int = 0
    whole_at: int = 0
    stale_after: int = 0
    holds: int = 0
    faults: int = 0
    waiting: int = 0
    failing: Sequence[str] = ()

    def is_stale(self, now: int) -> bool:
        """Nothing of Nova was written for too long."""
        return now - self.read_at > self.stale_after


def encoded(report: RelayReport) -> bytes:
    """As ``decoded`` reads it."""
    fields = asdict(report)
    del fields["problem"]
    return json.dumps({"schema": SCHEMA, **fields}, ensure_ascii=False).encode()


def decoded(value: bytes) -> RelayReport:
    """What a relay said. Whatever is not as it should be makes it a report with a problem."""
    try:
        fields = json.loads(value)
        if fields["schema"] != SCHEMA:
            return RelayReport(problem=f"schema {fields['schema']!r:.20} is unknown here")
        return RelayReport(
            name=printable_line(str(fields["name"]), _LONGEST),
            leads=fields["leads"] is True,
            read_at=_number(fields["read_at"]),
            whole_at=_number(fields["whole_at"]),
            stale_after=_number(fields["stale_after"]),
            holds=_number(fields["holds"]),
            faults=_number(fields["faults"]),
            waiting=_number(fields["waiting"]),
            failing=tuple(printable_line(str(word), _LONGEST) for word in fields["failing"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return RelayReport(problem=f"what it says of itself can't be read: {error!r:.80}")


def holder(value: bytes) -> str:
    """Who has the office, from the value of its key: a name, and the lease behind it."""
    return printable_line(value.decode("utf-8", "replace").rpartition(" ")[0], _LONGEST) or "?"


def _number(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= UNTIL_MAX:
        return value
    raise ValueError(f"{value!r:.40} is no number or time")
