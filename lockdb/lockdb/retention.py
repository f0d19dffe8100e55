"""Retention: until when a hold may not end, and who may end it all the same.

The modes are those of S3 Object Lock
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock.html#object-lock-retention-modes):

- *governance*: before the date, only who says that he overrides it, with a reason.
- *compliance*: before the date, nobody. The date can only be put off, the mode not be left.

Governance may become compliance. After the date a hold goes on as any other: it is released, not
expired. Whether the date has come is ``witness.proven``'s to say. The rules are kept here and, for
programs that don't ask, by triggers of the table ``hold``.
"""

from __future__ import annotations

from typing import Any, Protocol

from lockdb.errors import InvalidValue, Retained
from lockdb.values import RETAIN_MAX, Retention
from lockdb.when import iso

#: From the weaker to the stronger.
_STRENGTH = {None: 0, Retention.GOVERNANCE: 1, Retention.COMPLIANCE: 2}


class Dated(Protocol):
    """What a hold is, or is ordered to be."""

    @property
    def until(self) -> int | None:
        """When it ends by itself."""

    @property
    def retain_until(self) -> int | None:
        """Before which it may not end."""

    @property
    def retention(self) -> Retention | None:
        """In which mode."""


def is_retained(hold: Dated, proven: int) -> bool:
    """Whether its date has not come yet."""
    return hold.retain_until is not None and hold.retain_until > proven


def refusal(hold_id: str, hold: Dated, proven: int, now: int) -> Retained:
    """Why it is not released."""
    assert hold.retain_until is not None
    problem = f"hold {hold_id} is retained until {iso(hold.retain_until)} ({hold.retention})"
    if hold.retain_until <= now:
        problem += f"; the clock says that this is over, but only {iso(proven)} is proven"
        hint = "once the clock is synchronised (NTP) it is believed, see docs/retention.md"
    elif hold.retention is Retention.GOVERNANCE:
        hint = "--override ends it before"
    else:
        hint = "nobody may end it before; 'bootlock permit' lets one start through"
    return Retained(problem, hint)


def check_date(until: int, now: int) -> int:
    """``until``, if it is no slip of the keyboard: nobody could take it back. InvalidValue."""
    if until > now + RETAIN_MAX:
        raise InvalidValue("retain_until", f"{iso(until)} is more than a hundred years away")
    return until


def extended(
    hold_id: str, hold: Dated, until: int | None, mode: Retention | None, *, now: int
) -> dict[str, Any]:
    """The columns after more was asked for. Raises InvalidValue or Retained."""
    if hold.until is not None:
        raise InvalidValue(
            "until",
            f"hold {hold_id} ends by itself at {iso(hold.until)}",
            "place another one with --retain-until",
        )
    until = hold.retain_until if until is None else check_date(until, now)
    if until is None:
        raise InvalidValue("until", f"hold {hold_id} is not retained yet: give a date")
    mode = mode or hold.retention or Retention.GOVERNANCE
    if hold.retain_until is not None and until < hold.retain_until:
        raise Retained(
            f"hold {hold_id} is retained until {iso(hold.retain_until)}, which is later",
            "a date can only be put off",
        )
    if _STRENGTH[mode] < _STRENGTH[hold.retention]:
        raise Retained(f"hold {hold_id} is retained in compliance mode", "which can't be left")
    return {"retain_until": until, "retention": mode}


def stronger(
    until: int | None, mode: Retention | None, stored: tuple[int | None, str | None]
) -> tuple[int | None, Retention | None]:
    """The later date and the stronger mode of what is stored and what is said now."""
    before = Retention(stored[1]) if stored[1] else None
    if until is None or stored[0] is None:
        return (until, mode) if stored[0] is None else (stored[0], before)
    return max(until, stored[0]), max(mode, before, key=_STRENGTH.__getitem__)


def facts(retain_until: int | None, mode: str | None, overridden: bool) -> dict[str, Any]:
    """What a hold's release says in the journal about its retention; nothing if it had none."""
    if retain_until is None:
        return {}
    return {"retain_until": retain_until, "retention": mode, "overridden": overridden}
