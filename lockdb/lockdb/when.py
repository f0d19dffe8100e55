"""Points in time as people write them: ``36h``, ``14d``, ``2027-01-31T12:00:00Z``."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from lockdb.errors import InvalidValue

_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")
_FORMS = "write a duration (90s, 30m, 36h, 14d, 2w) or a time (2027-01-31T12:00:00Z)"
# 9999-12-31T23:59:59Z: what datetime can still print.
_LAST = 253402300799


def parse_until(field: str, text: str, now: int) -> int:
    """The Unix second that ``text`` names, which must lie after ``now``.

    A time without an offset is UTC, as everything bootlock prints. Raises InvalidValue.
    """
    duration = _DURATION.fullmatch(text.strip())
    moment = (
        now + int(duration[1]) * _UNIT[duration[2]] if duration else parse_time(field, text.strip())
    )
    if moment <= now:
        raise InvalidValue(field, f"{text} is not in the future", f"now is {iso(now)}")
    if moment > _LAST:
        raise InvalidValue(field, f"{text} is too far away", _FORMS)
    return moment


def parse_since(field: str, text: str, now: int) -> int:
    """The Unix second that ``text`` names, which must not lie after ``now``: 14d is 14 days ago.

    Raises InvalidValue.
    """
    duration = _DURATION.fullmatch(text.strip())
    moment = (
        now - int(duration[1]) * _UNIT[duration[2]] if duration else parse_time(field, text.strip())
    )
    if moment > now:
        raise InvalidValue(field, f"{text} is in the future", f"now is {iso(now)}")
    return max(0, moment)


def iso(moment: int) -> str:
    """A Unix second as ``2027-01-31T12:00:00Z``."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(field: str, text: str) -> int:
    """The Unix second of an ISO 8601 time; UTC without an offset. Raises InvalidValue."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return int(moment.timestamp())
    except (ValueError, OverflowError) as error:
        raise InvalidValue(field, f"{text[:80]!r} is not a time", _FORMS) from error
